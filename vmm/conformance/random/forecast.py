"""What the Model says the cases of a sweep must leave, in the very bytes that they will leave.

Equal bytes mean that every field of every exit and of every result is as predicted; only where
they differ must anybody look at events.
"""

from __future__ import annotations

import copy
import struct
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

from vmm.conformance.kernel.wire import (
    SEEN,
    STEP,
    handlers,
    instructions,
    pack_exit,
    pack_outcome,
    pack_reply,
    step_words,
)
from vmm.conformance.language.script import (
    Access,
    Action,
    Install,
    Rdmsr,
    Rejected,
    Script,
    SetMsr,
    Wrmsr,
    enable_exits,
    wrote,
)
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.state import VcpuState, VmState
from vmm.conformance.random.chunks import DEFAULTS, RANGES, STORAGE, Chunk, Chunks, RandomCase
from vmm.decode import IO
from vmm.exits import RdmsrExit, WrmsrExit
from vmm.filter import MsrFilter, MsrRange
from vmm.guest import Guest
from vmm.msr import KVM_MSR_FILTER_MAX_RANGES, MsrExitReason
from vmm.placed import NATIVE

LANES = 2
"""VMs in turns: an install right after another of the same VM waits 4-20 ms (docs/design.md)."""

MASK = MsrExitReason.INVAL | MsrExitReason.UNKNOWN | MsrExitReason.FILTER
ZEROES = dict.fromkeys(STORAGE, 0)
"""What the MSRs of each VM hold at first, so that all that an access can return is known."""


@dataclass(slots=True)
class PackedAccess:
    """All that is fixed about an access: its bytes, and those of its fate by the exit reason."""

    access: Access
    image: bytes
    reply: bytes
    wrote: bytes
    fates: dict[int, tuple[bytes, bytes, bytes]]


class PackedChunk(NamedTuple):
    """A chunk as the kernel gets it, and what it must leave."""

    number: int
    size: int
    filters: bytes
    replies: bytes
    programs: bytes
    expected: bytes
    exits: int
    before: list[dict[int, int]]
    """What each VM's MSRs hold before the chunk."""


class Forecast:
    """Predicts chunks one after the other: the VMs keep what was written to them."""

    def __init__(self, chunks: Chunks, model: Model, guest: Guest, bits: int) -> None:
        """Predict with ``model``; their bits lie at address ``bits``."""
        self.chunks, self.model, self._bits = chunks, _remembering(model), bits
        self._handlers, self._instructions = handlers(guest), instructions(guest)
        self._steps = [struct.pack("<I", each) for each in range(chunks.accesses)]
        self._accesses: dict[int, PackedAccess] = {}
        self._vms = [self._new_vm(ZEROES) for _ in range(LANES)]

    def pack(self, number: int, size: int, limit: int) -> PackedChunk:
        """Return the first ``limit`` cases of chunk ``number`` of chunks of ``size``."""
        chunk = self.chunks.chunk(number, size)
        before = [dict(vm.vcpu(0).msrs) for vm in self._vms]
        filters, replies, programs, expected = _parts(), _parts(), _parts(), _parts()
        ranges = self._packed_ranges(chunk)
        exits = size = 0
        for random_case in islice(chunk.cases, limit):
            filters.append(HEADERS[random_case.filter.flags])
            filters += [ranges[each] for each in random_case.picked]
            filters.append(EMPTY_SLOTS)
            accesses = self._packed_accesses(random_case)
            replies += [packed.reply for packed in accesses]
            programs += [packed.image for packed in accesses]
            exits += self._predict(self._vms[size % LANES], random_case.filter, accesses, expected)
            size += 1
        join = b"".join
        return PackedChunk(
            number,
            size,
            join(filters),
            join(replies),
            join(programs),
            join(expected),
            exits,
            before,
        )

    def script(self, packed: PackedChunk, first: int, last: int, size: int) -> Script:
        """Return one VM's cases from ``first`` to ``last`` of a chunk as a script of their own.

        It begins with what the MSRs held, as far as the accesses touch them.
        """
        vm = self._new_vm(packed.before[last % LANES])
        cases = list(islice(self.chunks.chunk(packed.number, size).cases, last + 1))
        for random_case in cases[last % LANES : first : LANES]:
            self._predict(vm, random_case.filter, self._packed_accesses(random_case), [])
        actions: list[Action] = []
        for random_case in cases[first::LANES]:
            actions += [Install(random_case.filter), *map(self.chunks.access, random_case.keys)]
        touched = {each.index for each in actions if isinstance(each, Rdmsr | Wrmsr)}
        held = vm.vcpu(0).msrs
        prelude = [SetMsr(index, held[index]) for index in STORAGE if index in touched]
        return (enable_exits(MASK), *prelude, *actions)

    def _new_vm(self, msrs: dict[int, int]) -> VmState:
        vm = VmState()
        self.model.masks.enable_cap(vm, enable_exits(MASK))
        for index, value in msrs.items():
            self.model.host.set_msr(self.model, vm, SetMsr(index, value))
        return vm

    def _packed_ranges(self, chunk: Chunk) -> list[bytes]:
        return [
            NATIVE.range.pack(each.flags, each.nmsrs, each.base, self._bits + place)
            for each, place in zip(chunk.ranges, chunk.places, strict=True)
        ]

    def _predict(
        self, vm: VmState, filter_: MsrFilter, accesses: list[PackedAccess], expected: list[bytes]
    ) -> int:
        """Append what the case must leave; return how many exits that has."""
        event = self.model.installs.install(self.model, vm, Install(filter_))[0]
        vcpu, reason_of, steps = vm.vcpus[0], self.model.accesses.reason, self._steps
        log: list[bytes] = []
        results: list[bytes] = []
        exits = 0
        for step, packed in enumerate(accesses):
            reason = reason_of(self.model, vm, vcpu, packed.access)
            if reason is None:
                results.append(self._performed(vcpu, packed))
                continue
            head, tail, result = packed.fates.get(id(reason)) or self._fate(vm, packed, reason)
            results.append(result)
            if head:
                log += (head, steps[step], tail)
                exits += 1
        installed = -event.errno if isinstance(event, Rejected) else 0
        expected.append(SEEN.pack(installed, IO, exits, 0))
        expected += log
        expected += results
        return exits

    def _performed(self, vcpu: VcpuState, packed: PackedAccess) -> bytes:
        event = self.model.accesses.perform(self.model, vcpu, packed.access, None)
        return packed.wrote if event is wrote else pack_outcome(packed.access, event, 0)

    def _fate(self, vm: VmState, packed: PackedAccess, reason: Any) -> tuple[bytes, bytes, bytes]:
        # A failing access leaves the same whenever it fails for the same reason (R50, R28).
        access = packed.access
        at = self._instructions[isinstance(access, Wrmsr)]
        *exits, outcome = self.model.accesses.failing(self.model, vm, access, reason)
        head = tail = b""
        if exits and isinstance(exits[0], RdmsrExit | WrmsrExit):
            head, tail = pack_exit(exits[0], self.model.exits.regs_at_exit(access), at)
        packed.fates[id(reason)] = head, tail, pack_outcome(access, outcome, at)
        return packed.fates[id(reason)]

    def _packed_accesses(self, random_case: RandomCase) -> list[PackedAccess]:
        known = self._accesses
        try:
            return [known[key] for key in random_case.keys]
        except KeyError:
            return [known.get(key) or self._new_access(key) for key in random_case.keys]

    def _new_access(self, key: int) -> PackedAccess:
        access = self.chunks.access(key)
        image = STEP.pack(*step_words(access, self._handlers))
        untouched = b"" if isinstance(access, Rdmsr) else pack_outcome(access, wrote, 0)
        packed = PackedAccess(access, image, pack_reply(access.reply), untouched, {})
        self._accesses[key] = packed
        return packed


HEADERS = {flags: NATIVE.header.pack(flags) for flags in DEFAULTS}
EMPTY_SLOTS = bytes(NATIVE.range.size * (KVM_MSR_FILTER_MAX_RANGES - RANGES))


def _parts() -> list[bytes]:
    return []


def _remembering(model: Model) -> Model:
    """Return the same model, which asks its rules for a range only once for each range."""
    model = copy.copy(model)
    model.filters = copy.copy(model.filters)
    for rule in ("range_errors", "held"):
        setattr(model.filters, rule, _remembered(getattr(model.filters, rule)))
    return model


def _remembered(rule: Callable[[MsrRange], Any]) -> Callable[[MsrRange], Any]:
    answers: dict[int, tuple[MsrRange, Any]] = {}

    def ask(range_: MsrRange) -> Any:
        answer = answers.get(id(range_))
        if answer is None:
            if len(answers) > 4096:
                answers.clear()
            answer = answers[id(range_)] = range_, rule(range_)
        return answer[1]

    return ask
