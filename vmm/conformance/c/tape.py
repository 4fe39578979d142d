"""Cases as a tape: the flat bytes that ``native/player.c`` reads.

A tape is a header and records, all numbers little-endian::

    header   8 bytes "MSRWTAPE", u32 version, u32 records, u32 bytes of them, u32 their CRC-32
    record   u32 bytes that follow, u8 kind (1 need, 2 parameter, 3 case), text name, and
      parameter  text value: what /sys/module/kvm/parameters/NAME is set to, if the player may
      case       u8 flags (1: its VM may serve others, 2: it makes its vCPUs itself), u32 deadline
                 in ms, u8 count and as many texts (needs), u8 count and as many MSRs that it
                 writes (u8 vCPU, u32 index), u16 steps, and as many steps
    step     u16 bytes that follow, u8 patient (1: blocked or never would be wrong), an action
    action   u8 word, and its fields as ``layout.WORDS`` writes them
    text     u8 bytes that follow, and those

A need comes before the cases that have it: the player finds out once whether it is there.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from vmm.conformance.c.layout import packed, sized, text
from vmm.conformance.language import script as s
from vmm.conformance.language.case import Case
from vmm.conformance.language.lasting import needs_its_own_vm
from vmm.conformance.oracle import spoiled
from vmm.conformance.oracle.refused import asked_alone

VERSION = 0x43D6F034
"""What the layout of every action and each line of a trace come to, as a test computes it: no other
tape is played, and no other player's trace is judged."""
MAGIC = b"MSRWTAPE"
NEED, PARAMETER, CASE = 1, 2, 3
KEEPS, MAKES_VCPUS = 1, 2
BARE_NEEDS = {"single_step", "upper_rcx", "emulated_shadow", spoiled.NEED, "no_ignore_msrs"}
"""Needs that no player finds out: every host has them, or they are a parameter of the run."""

PROBED = frozenset(
    {
        *("irqchip", "vcpus", "userfaultfd", "compat", "task_syscall", "force_emulation_prefix"),
        *("one_reg", "memory_cgroup", "shstk", "mediated_pmu", "pt", "spec_ctrl", "xfd", "lbr"),
        *(f"disable_exits_{name}" for name in s.DISABLE_EXITS),
        *("nested", "nested_svm", "nested_vmx", "nested_state", "clean_bitmap"),
        *("smm", "put_off_debug", "xen_hvm", "xen_intercept"),
        *("wrmsrns", "msr_imm", "guest_tsc", "rdtscp", "rdpid", "pmu", "fsgsbase", "xsaves", "sep"),
    }
)
"""Needs that the words in C find out."""

HEADER = struct.Struct("<8sIIII")


def tape(cases: Sequence[Case], *, timeout: float = 10.0) -> bytes:
    """Return the tape that has the cases done, in an order in which parameters change once.

    ``timeout`` is seconds for a case. ValueError names a case that has no form on a tape.
    """
    records = [_written(entry, timeout) for entry in entries(cases)]
    body = b"".join(records)
    return HEADER.pack(MAGIC, VERSION, len(records), len(body), zlib.crc32(body)) + body


@dataclass(frozen=True)
class Alone:
    """An access in a VM of its own: what it leaves there is asked of cases that it is part of."""

    access: s.Access

    @property
    def case(self) -> Case:
        """The access as a case, which nobody judges."""
        return Case(f"alone {self.access!r}", "", "", (self.access,), ())


Entry = Case | str | tuple[str, str] | Alone
"""A record of a tape: a case, a need by its name, a parameter and its value, or a lone access."""


def is_playable(case: Case) -> bool:
    """Say whether all that the case needs can be found out in C; all that it does has a form."""
    return {*case.all_needs} <= PROBED | BARE_NEEDS


def entries(cases: Sequence[Case]) -> list[Entry]:
    """Return the records of the tape of ``cases`` in their order, which the player numbers."""
    plain = [case for case in cases if spoiled.NEED not in case.needs]
    ignoring = [case for case in cases if spoiled.NEED in case.needs]
    needs = dict.fromkeys(need for case in cases for need in _needs(case))
    head: list[Entry] = [*needs, *_alone(plain), *plain]
    if not ignoring:
        return head
    return [*head, ("ignore_msrs", "1"), *_alone(ignoring), *ignoring, ("ignore_msrs", "0")]


def _alone(cases: Sequence[Case]) -> list[Alone]:
    return [Alone(each) for each in dict.fromkeys(each for c in cases for each in asked_alone(c))]


def _written(entry: Entry, timeout: float) -> bytes:
    match entry:
        case Case():
            return _case(entry, timeout)
        case Alone():
            return _case(entry.case, timeout)
        case str():
            return _record(NEED, entry, b"")
        case (name, value):
            return _record(PARAMETER, name, text(value))


def crc_of(tape: bytes) -> int:
    """Return the checksum of a tape, which the player repeats: what it played is that tape."""
    return int(HEADER.unpack_from(tape)[4])


def _needs(case: Case) -> list[str]:
    return [need for need in case.all_needs if need not in BARE_NEEDS]


def _record(kind: int, name: str, rest: bytes) -> bytes:
    whole = bytes([kind]) + text(name) + rest
    return struct.pack("<I", len(whole)) + whole


def _case(case: Case, timeout: float) -> bytes:
    script, expected = case.actions, [] if case.observes else s.steps(case.actions, case.expected)
    keeps = _keeps(script)
    flags = KEEPS * keeps | MAKES_VCPUS * s.makes_vcpus(script)
    needs = _needs(case)
    written = sorted(
        {
            (each.vcpu, each.index)
            for each in map(s.innermost, script)
            if isinstance(each, s.Wrmsr | s.SetMsr)
        }
    )
    written = written if keeps and len(written) < 64 else []
    try:
        head = struct.pack("<BIB", flags, round(timeout * 1000), len(needs))
        head += b"".join(map(text, needs))
        head += struct.pack("<B", len(written))
        head += b"".join(struct.pack("<BI", *each) for each in written)
        head += struct.pack("<H", len(script))
        steps = [
            _step(action, expected[at] if at < len(expected) else None)
            for at, action in enumerate(script)
        ]
    except struct.error as error:
        raise ValueError(f"{case.id} does not fit a tape: {error}") from None
    return _record(CASE, case.id, head + b"".join(steps))


def _keeps(script: s.Script) -> bool:
    """Say whether the player's VM serves other cases after the script."""
    return not needs_its_own_vm(script) and not any(isinstance(each, DEAR) for each in script)


DEAR = (s.Begin, s.Sweep, s.BeginInstall, s.Meanwhile)
"""What it would take longer to undo than to make a VM: an access in its middle, other threads."""


def _step(action: s.Action, expected: s.Step | None) -> bytes:
    patient = expected is not None and expected[-1] not in (s.blocked, s.never)
    return sized(bytes([patient]) + packed(action))
