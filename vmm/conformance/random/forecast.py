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
from vmm.conformance.random.deal import DEFAULTS, RANGES, STORAGE, Chunk, Deal, Dealt
from vmm.exits import RdmsrExit, WrmsrExit
from vmm.filter import MsrFilter, MsrRange
from vmm.guest import Guest
from vmm.msr import KVM_MSR_FILTER_MAX_RANGES, MsrExitReason
from vmm.placed import NATIVE
from vmm.vcpu import IO

LANES = 2
"""VMs in turns: an install right after another of the same VM waits 4-20 ms (DESIGN 6)."""

MASK = MsrExitReason.INVAL | MsrExitReason.UNKNOWN | MsrExitReason.FILTER
ZEROES = dict.fromkeys(STORAGE, 0)
"""What the MSRs of each VM hold at first, so that all that an access can return is known."""


@dataclass(slots=True)
class Card:
    """All that is fixed about an access: its bytes, and those of its fate by the exit reason."""

    access: Access
    image: bytes
    reply: bytes
    wrote: bytes
    fates: dict[int, tuple[bytes, bytes, bytes]]


class Sheet(NamedTuple):
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
    """Predicts the chunks of a deal, one after the other: the VMs keep what was written to them."""

    def __init__(self, deal: Deal, model: Model, guest: Guest, sea: int) -> None:
        """Predict with ``model``; the deal's bits lie at address ``sea``."""
        self.deal, self.model, self._sea = deal, _remembering(model), sea
        self._handlers, self._instructions = handlers(guest), instructions(guest)
        self._steps = [struct.pack("<I", each) for each in range(deal.accesses)]
        self._cards: dict[int, Card] = {}
        self._vms = [self._new_vm(ZEROES) for _ in range(LANES)]

    def sheet(self, number: int, size: int, limit: int) -> Sheet:
        """Return the first ``limit`` cases of chunk ``number`` of chunks of ``size``."""
        chunk = self.deal.chunk(number, size)
        before = [dict(vm.vcpu(0).msrs) for vm in self._vms]
        filters, replies, programs, expected = _parts(), _parts(), _parts(), _parts()
        ranges = self._packed_ranges(chunk)
        exits = size = 0
        for dealt in islice(chunk.cases, limit):
            filters.append(HEADERS[dealt.filter.flags])
            filters += [ranges[each] for each in dealt.picked]
            filters.append(EMPTY_SLOTS)
            cards = self._cards_of(dealt)
            replies += [card.reply for card in cards]
            programs += [card.image for card in cards]
            exits += self._predict(self._vms[size % LANES], dealt.filter, cards, expected)
            size += 1
        join = b"".join
        return Sheet(
            number,
            size,
            join(filters),
            join(replies),
            join(programs),
            join(expected),
            exits,
            before,
        )

    def script(self, sheet: Sheet, first: int, last: int, size: int) -> Script:
        """Return one VM's cases from ``first`` to ``last`` of the sheet as a script of their own.

        It begins with what the MSRs held, as far as the accesses touch them.
        """
        vm = self._new_vm(sheet.before[last % LANES])
        cases = list(islice(self.deal.chunk(sheet.number, size).cases, last + 1))
        for dealt in cases[last % LANES : first : LANES]:
            self._predict(vm, dealt.filter, self._cards_of(dealt), [])
        actions: list[Action] = []
        for dealt in cases[first::LANES]:
            actions += [Install(dealt.filter), *map(self.deal.access, dealt.keys)]
        touched = {each.index for each in actions if isinstance(each, Rdmsr | Wrmsr)}
        held = vm.vcpu(0).msrs
        prelude = [SetMsr(index, held[index]) for index in STORAGE if index in touched]
        return (enable_exits(MASK), *prelude, *actions)

    def _new_vm(self, msrs: dict[int, int]) -> VmState:
        vm = VmState()
        self.model.enable_cap(vm, enable_exits(MASK))
        for index, value in msrs.items():
            self.model.set_msr(vm, SetMsr(index, value))
        return vm

    def _packed_ranges(self, chunk: Chunk) -> list[bytes]:
        return [
            NATIVE.range.pack(each.flags, each.nmsrs, each.base, self._sea + place)
            for each, place in zip(chunk.ranges, chunk.places, strict=True)
        ]

    def _predict(
        self, vm: VmState, filter_: MsrFilter, cards: list[Card], expected: list[bytes]
    ) -> int:
        """Append what the case must leave; return how many exits that has."""
        event = self.model.install(vm, Install(filter_))[0]
        vcpu, reason_of, steps = vm.vcpus[0], self.model.reason, self._steps
        log: list[bytes] = []
        results: list[bytes] = []
        exits = 0
        for step, card in enumerate(cards):
            reason = reason_of(vm, vcpu, card.access)
            if reason is None:
                results.append(self._performed(vcpu, card))
                continue
            head, tail, result = card.fates.get(id(reason)) or self._fate(vm, card, reason)
            results.append(result)
            if head:
                log += (head, steps[step], tail)
                exits += 1
        installed = -event.errno if isinstance(event, Rejected) else 0
        expected.append(SEEN.pack(installed, IO, exits, 0))
        expected += log
        expected += results
        return exits

    def _performed(self, vcpu: VcpuState, card: Card) -> bytes:
        event = self.model.perform(vcpu, card.access, None)
        return card.wrote if event is wrote else pack_outcome(card.access, event, 0)

    def _fate(self, vm: VmState, card: Card, reason: Any) -> tuple[bytes, bytes, bytes]:
        # A failing access leaves the same whenever it fails for the same reason (R50, R28).
        access = card.access
        at = self._instructions[isinstance(access, Wrmsr)]
        *exits, outcome = self.model.failing(vm, access, reason)
        head = tail = b""
        if exits and isinstance(exits[0], RdmsrExit | WrmsrExit):
            head, tail = pack_exit(exits[0], self.model.exits.regs_at_exit(access), at)
        card.fates[id(reason)] = head, tail, pack_outcome(access, outcome, at)
        return card.fates[id(reason)]

    def _cards_of(self, dealt: Dealt) -> list[Card]:
        known = self._cards
        try:
            return [known[key] for key in dealt.keys]
        except KeyError:
            return [known.get(key) or self._new_card(key) for key in dealt.keys]

    def _new_card(self, key: int) -> Card:
        access = self.deal.access(key)
        image = STEP.pack(*step_words(access, self._handlers))
        untouched = b"" if isinstance(access, Rdmsr) else pack_outcome(access, wrote, 0)
        card = Card(access, image, pack_reply(access.reply), untouched, {})
        self._cards[key] = card
        return card


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
