"""One step that was not as expected, as text, and what signatures ask of it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from vmm.msr import Msr

TOP = 1 << 32
MOST = 0x3000
"""MSRs that a range may have: its bitmap is 0x600 bytes then."""

_ACCESS = re.compile(r"(?:begin\()?(rd|wr)msr\((Msr\.\w+|0x[0-9a-f]+)")
_NOT_OF = {"rd": r"wrote|WrmsrExit\(", "wr": r"returned\(|RdmsrExit\("}
_FILTER = re.compile(r"\b(default_allow\(\)|default_deny\(\)|MsrFilter\((0x[0-9a-f]+)\))")
_CALL = re.compile(r"\.(deny|allow|range|hole|slot)\(((?:[^()]|\((?:[^()]|\([^()]*\))*\))*)\)")
_ONE = {"deny": r"b'\x00'", "allow": r"b'\x01'"}
_FLAGS = {"": 3, "READ": 1, "WRITE": 2, "READ_WRITE": 3}
_ESCAPE = r"\\x[0-9a-f]{2}|\\[nrt\\']"
_BYTES = re.compile(
    rf"""(b'(?:[ -&(-\[\]-~]|{_ESCAPE})*'|b"(?:[ !#-\[\]-~]|{_ESCAPE})*")(?: \* (0x[0-9a-f]+))?"""
)
_HEX = re.compile(r'bytes\.fromhex\("((?:[0-9a-f]{2})+)"\)')
_BITS = re.compile(r"bitmap_of\(0x[0-9a-f]+, \[(.*)\]\)")
_HEXADECIMAL = re.compile(r"0x[0-9a-f]{1,16}")
_REFUSED_TO_HOST = re.compile(r"[gs]et_msr\((Msr\.\w+|0x[0-9a-f]+)[,)].* -> refused")
_READ = re.compile(r"rdmsr\((Msr\.\w+|0x[0-9a-f]+)(?:, mode='\w+')?\)")
_RETURNED = re.compile(r"^returned\((\w+)\)$")
_WRITE_FAILS = {"set_msr": "refused", "wrmsr": r"gp$|WrmsrExit\([^()]*\b(?:UNKNOWN|INVAL)\b"}
_RUN = re.compile(r"\*range\((0x[0-9a-f]+), (0x[0-9a-f]+)\)|(0x[0-9a-f]+)")


@dataclass(frozen=True, slots=True)
class Difference:
    """One step that was not as expected, as text.

    ``action`` is the step's; ``expected`` and ``seen`` are its events, joined by ", ". ``before``
    has a line for each step before it, ``ACTION -> EVENTS``. ``vendor`` is the KVM module.
    """

    action: str
    expected: str
    seen: str
    before: Sequence[str] = ()
    vendor: str = ""

    @property
    def install(self) -> str:
        """The last line before this step that is about an install, or ""."""
        return next((line for line in reversed(self.before) if "install" in line), "")

    @property
    def is_of_its_access(self) -> bool:
        """Whether what was seen can come of this access: its direction, and exits for its MSR."""
        access = _ACCESS.match(self.action)
        if not access:
            return True
        exits = re.findall(r"msrExit\((Msr\.\w+|0x[0-9a-f]+)", self.seen)
        right = {_number(access[2])}
        return not re.search(_NOT_OF[access[1]], self.seen) and set(map(_number, exits)) <= right

    @property
    def is_refused_unfiltered(self) -> bool:
        """Whether the host was refused the MSR of this step before there was any filter."""
        index = re.match(r"[gs]et_msr\((Msr\.\w+|0x[0-9a-f]+)", self.action)
        unfiltered = takewhile(lambda line: "install" not in line, self.before)
        refused = {_number(found[1]) for found in map(_REFUSED_TO_HOST.match, unfiltered) if found}
        return index is not None and _number(index[1]) in refused

    @property
    def is_of_failed_write(self) -> bool:
        """Whether this read is to find what a write before it failed to leave, and finds the last.

        The host's write was refused, or the guest's failed. What no filter let pass is no such.
        """
        if not (read := _READ.fullmatch(self.action)):
            return False
        write = re.compile(rf"(set_msr|wrmsr)\({read[1]}, (\w+)(?:, mode='\w+')?\) -> (.*)")
        writes = [found.groups() for found in map(write.fullmatch, self.before) if found]
        failed = {value for word, value, end in writes if re.match(_WRITE_FAILS[word], end)}
        left = [value for _, value, end in writes if end in ("done", "wrote")]
        value, seen = (_RETURNED.sub(r"\1", text) for text in (self.expected, self.seen))
        return value in failed and seen == (left or ["0"])[-1]

    @property
    def at_top(self) -> bool:
        """Whether a range of the last install reaches 2^32 and holds the MSR of this access."""
        access = re.search(r"msr\((0x[0-9a-f]+)", self.action)
        index = int(access[1], 16) if access else -1
        ranges = re.findall(r"range\((0x[0-9a-f]+), (0x[0-9a-f]+)", self.install)
        ends = [(int(base, 16), int(base, 16) + int(nmsrs, 16)) for base, nmsrs in ranges]
        one = (TOP - 1, TOP)
        ends += [one] if re.search(r"(?:deny|allow)\([^)]*0xffffffff", self.install) else []
        return any(base <= index < end and end >= TOP for base, end in ends)

    @property
    def halfway(self) -> bool | None:
        """Whether the ranges before the one at which the last install failed or stands allow this.

        None where that cannot be told, or where no range made it fail.
        """
        access, started = _ACCESS.match(self.action), _started(self.before)
        kind = _FILTER.search(started)
        if not (access and kind):
            return None
        slots = list(_slots(started))
        good = list(takewhile(lambda slot: slot.is_good, slots))
        stall = re.search(r"stall_at=(0x[0-9a-f]+|\d{1,4})", started)
        if stall and re.search(r"-> stalled|fails=True", self.install):
            good = good[: int(stall[1], 0)]
        elif len(good) == len(slots):
            return None
        held = [slot for slot in good if slot.nmsrs]
        index, flag = _number(access[2]), 1 if access[1] == "rd" else 2
        for slot in held:
            if slot.flags & flag and slot.base <= index < slot.base + slot.nmsrs:
                return _bit(slot.bitmap, index - slot.base)
        denies = kind[1] == "default_deny()" or int(kind[2] or "0", 16) & 1
        return not (held and denies)


@dataclass(frozen=True, slots=True)
class _Slot:
    base: int
    nmsrs: int
    flags: int
    bitmap: str
    is_good: bool


def _started(before: Sequence[str]) -> str:
    """Return the action that gave the last install its filter."""
    return next(
        (line for line in reversed(before) if "install" in line and _FILTER.search(line)), ""
    )


def _slots(install: str) -> Iterator[_Slot]:
    for call, arguments in _CALL.findall(install):
        words = arguments.split(", ")
        if call in ("deny", "allow"):
            access = words.pop().removeprefix("access=") if "access=" in words[-1] else ""
            flags = _flags(access)
            yield from (
                _Slot(_number(word), 1, flags, _ONE[call], flags in (1, 2, 3)) for word in words
            )
        elif call == "range" and len(words) > 2:
            yield _range(words)
        else:
            yield _Slot(0, 0, 0, "", call == "hole")


def _range(words: Sequence[str]) -> _Slot:
    base, nmsrs, bitmap = _number(words[0]), _number(words[1]), ", ".join(words[2:])
    last = (
        words[-1] if len(words) > 3 and re.fullmatch(r"READ|WRITE|0x[0-9a-f]+", words[-1]) else ""
    )
    flags = _flags(last)
    is_read = "Pointer" not in bitmap and not _ends_early(bitmap, nmsrs)
    is_good = not nmsrs or (nmsrs <= MOST and is_read and flags in (1, 2, 3))
    return _Slot(base, nmsrs, flags, bitmap, is_good)


def _bit(bitmap: str, number: int) -> bool | None:
    """Return a bit of a bitmap as a case writes it; None where that is none of its ways."""
    if held := _BITS.search(bitmap):
        runs = [(int(a or one, 16), int(b, 16) if b else 0) for a, b, one in _RUN.findall(held[1])]
        return any(start <= number < (end or start + 1) for start, end in runs)
    data = _data(bitmap)
    return bool(data[number // 8] >> number % 8 & 1) if number < len(data) * 8 else None


def _ends_early(bitmap: str, nmsrs: int) -> bool:
    """Say whether the bitmap ends at the edge of what can be read, before its last long does."""
    return "AtEdge" in bitmap and len(_data(bitmap)) < (nmsrs + 63) // 64 * 8


def _data(bitmap: str) -> bytes:
    if hexadecimal := _HEX.search(bitmap):
        return bytes.fromhex(hexadecimal[1])
    if literal := _BYTES.search(bitmap):
        data: bytes = ast.literal_eval(literal[1])
        return data[:1] * min(int(literal[2], 16), MOST) if literal[2] else data
    return b""


def _flags(word: str) -> int:
    return _FLAGS.get(word, _number(word))


def _number(word: str) -> int:
    """Return an MSR or another number as a case writes it; -1 for what is none."""
    name = word.removeprefix("Msr.")
    if name != word and name in Msr.__members__:
        return int(Msr[name])
    return int(word, 16) if _HEXADECIMAL.fullmatch(word) else -1
