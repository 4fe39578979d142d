"""Random entries of L2s: who is in one, and what L1 lets pass there.

B20 and B36 are open: an install leaves the L2 that runs, or is restored before its vCPU has run,
with the MSRs that hardware passed to it. A script that shows it shows nothing new, so such a vCPU
leaves its L2 before it goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol, TypeVar

from vmm.conformance.language import script as s
from vmm.conformance.language.domains import choices
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.msrs import STORABLE
from vmm.conformance.oracle.state import Stage
from vmm.msr import Msr

T = TypeVar("T")

Levels = Literal["", "svm", "vmx"]
"""Whose extensions the guests of a host have, if any."""

RUNS = s.Rdmsr | s.Wrmsr | s.Sweep | s.EnterL2 | s.LeaveL2 | s.Finish
"""What has the vCPU obey the filter in force before it executes anything."""
IS_HYPER_V = s.wrmsr(Msr.HV_GUEST_OS_ID, 1)
"""What a guest that uses Hyper-V's interface does first: it says who it is."""
LOADED = (Msr.KERNEL_GS_BASE, Msr.STAR, Msr.LSTAR, Msr.CSTAR)
"""MSRs that a list can hold on every CPU."""


class Dice(Protocol):
    """Draws small numbers, of which 0 is the plainest."""

    below: Callable[[int], int]

    def one_in(self, number: int) -> bool:
        """Say yes once in ``number`` times."""

    def pick(self, choices: Sequence[T]) -> T:
        """Return one of ``choices``."""


class Standing:
    """The levels of a script's vCPUs, as the Model knows them."""

    def __init__(self, levels: Levels) -> None:
        """Start in L1; without ``levels`` nothing here ever happens."""
        self._levels = levels
        self._model = Model()
        self.vm = self._model.new_vm(())
        self._stale: set[int] = set()
        self._untold: set[int] = set()
        """Who has not run since the last install."""

    def note(self, action: s.Action) -> None:
        """Take over what ``action`` makes of the levels."""
        if not self._levels:
            return
        self._model.step(self.vm, action)
        inside = {number for number, vcpu in self.vm.vcpus.items() if vcpu.l2}
        if isinstance(action, s.Install | s.FreshVm):
            self._untold = {*self.vm.vcpus}
        if isinstance(action, s.Install):
            self._stale |= inside
        elif isinstance(action, s.RestoreNested):
            self._stale = self._stale - {action.vcpu} | self._untold & {action.vcpu}
        elif isinstance(action, RUNS):
            self._untold.discard(action.vcpu)
        self._stale &= inside

    def is_over(self, vcpu: int) -> bool:
        """Say whether the vCPU has shut down, and nobody knows any more what it does."""
        return bool(self._levels) and self.vm.vcpu(vcpu).stage is Stage.UNSURE

    def is_stale(self, vcpu: int) -> bool:
        """Say whether the vCPU is in an L2 that an install left behind."""
        return vcpu in self._stale

    def is_saved(self, vcpu: int) -> bool:
        """Say whether the host has saved the vCPU's L2."""
        return bool(self._levels) and vcpu in self.vm.saved

    def l2(self, vcpu: int) -> s.EnterL2 | None:
        """Return the entry of the L2 that the vCPU is in, or None."""
        return self.vm.vcpu(vcpu).l2 if self._levels else None


class Ladder:
    """Draws how vCPUs change their levels; ``standing`` is where they are."""

    def __init__(self, dice: Dice, levels: Levels) -> None:
        """Start in L1; without ``levels`` nothing here ever happens."""
        self._dice, self._levels, self._is_hyper_v = dice, levels, False
        self.standing = Standing(levels)

    def hyper_v(self, vcpus: int) -> Iterator[s.Action]:
        """Yield what makes every vCPU an L1 that may call its bitmap clean, one time in three."""
        if self._dice.one_in(3):
            self._is_hyper_v = True
            for vcpu in range(vcpus):
                yield s.create_vcpu(vcpu)
                yield from s.as_hyper_v(vcpu)
            yield IS_HYPER_V

    def move(self, vcpu: int) -> s.LevelAction | None:
        """Return how the vCPU changes its level now, if it does."""
        if not self._levels or self.standing.is_over(vcpu):
            return None
        if self._dice.one_in(6) and (move := self._by_host(vcpu)):
            return move
        if self.standing.is_stale(vcpu):
            return s.leave_l2(vcpu)
        if self.standing.l2(vcpu):
            return s.leave_l2(vcpu) if self._dice.one_in(8) else None
        return self._entry(vcpu) if self._dice.one_in(3) else None

    def fresh(self) -> s.FreshVm | None:
        """Return the change to another VM, if there is anything to go on with there."""
        return s.fresh_vm() if self.standing.vm.saved and self._dice.one_in(30) else None

    def _by_host(self, vcpu: int) -> s.LevelAction | None:
        l2 = self.standing.l2(vcpu)
        if l2 and l2.exit_load:  # leaving it by the host's hand is nobody's promise
            return None
        if self.standing.is_saved(vcpu) and self._dice.below(3):
            back = self._dice.below(2) == 0
            return s.restore_nested(vcpu) if back else s.leave_nested(vcpu)
        return s.save_nested(vcpu)

    def _entry(self, vcpu: int) -> s.EnterL2:
        passes, bitmap = self._passes()
        state, clean = self.standing.vm.vcpu(vcpu), self._is_hyper_v and self._dice.one_in(2)
        if clean and state.entered:  # what an L1 gets that lies is nobody's promise
            passes, bitmap = state.entered.passes, state.entered.bitmap
        clean = clean and bitmap and not state.is_misled
        load, store, back = ((), (), ()) if clean else (self._list() for _ in range(3))
        fields = self._dice.one_in(4)
        return s.EnterL2(passes, bitmap, load, store, back, fields, clean, vcpu)

    def _passes(self) -> tuple[s.Passes, bool]:
        kind = self._dice.below(8)
        if kind < 4:
            return "all", self._levels == "vmx" or not self._dice.one_in(2)
        if kind == 4:
            return "none", self._levels == "svm" or not self._dice.one_in(2)
        kinds, some = choices(s.Through, "access"), sorted(STORABLE)
        passed = [(self._dice.pick(some), self._dice.pick(kinds)) for _ in range(4)]
        return tuple(s.Through(*each) for each in passed[self._dice.below(4) :]), True

    def _list(self) -> tuple[s.Listed, ...]:
        if self._levels != "vmx" or not self._dice.one_in(4):
            return ()
        number = 1 + self._dice.below(self._dice.pick((3, 3, 32)))
        return tuple(s.listed(self._dice.pick(LOADED), 0x1000 * n) for n in range(number))
