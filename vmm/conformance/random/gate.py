"""Which scripts fuzz may run that it did not draw itself: made of others, or read from a file.

What it draws passes, which a test holds. A script of anybody's that passes asks of a host what a
drawn one does: nothing that breaks a guest, or that this host lacks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vmm.conformance.language import script as s
from vmm.conformance.language.effects import CARRIED
from vmm.conformance.language.needs import needs_of
from vmm.conformance.language.soundness import is_sound
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.msrs import EFER_RESERVED, STORABLE, fitting, is_unknown_to_kvm
from vmm.conformance.random.levels import IS_HYPER_V, LOADED, Levels, Standing
from vmm.conformance.random.opening import OPENING, may_come
from vmm.conformance.random.scripts import (
    AFTER,
    EFFECTS,
    LOOKED_AT,
    MODES,
    is_harmless,
)
from vmm.conformance.random.xen import PAGES, is_safe, may_be_xens
from vmm.exits import RdmsrExit, WrmsrExit
from vmm.filter import U32
from vmm.msr import X2APIC_FIRST, Msr

LONGEST = 64
"""Actions of a script, at most."""
SWEPT = 0x100
"""MSRs of a sweep, at most."""


@dataclass(frozen=True, slots=True)
class Gate:
    """What lets scripts through to a host: its vCPUs, its ``levels``, and why it lacks a need."""

    vcpus: int
    levels: Levels
    lacks: Callable[[str], str | None]

    def lets(self, script: s.Script) -> bool:
        """Say whether the script is sound, harmless, and has what it needs on this host."""
        return (
            0 < len(script) <= LONGEST
            and is_sound(script)
            and all(map(is_drawn, script))
            and all(getattr(_access(each), "vcpu", 0) < self.vcpus for each in script)
            and not any(map(self.lacks, needs_of(script)))
            and is_safe(script)
            and self._is_level(script)
        )

    def _is_level(self, script: s.Script) -> bool:
        """Say whether no vCPU goes on that is over or stale, or does what it may not there."""
        standing, model = Standing(self.levels), Model()
        for at, action in enumerate(script):
            vcpu = getattr(_access(action), "vcpu", None)
            if vcpu is not None and standing.is_over(vcpu):
                return False
            if isinstance(action, _BY_HOST) and not self._is_for_host(action, standing):
                return False
            if isinstance(action, s.FreshVm) and not standing.vm.saved:
                return False
            if isinstance(action, _STARTS) and vcpu is not None and standing.is_stale(vcpu):
                return False
            if not self._may_come(script[: at + 1], model):
                return False
            standing.note(action)
        return True

    def _may_come(self, script: s.Script, model: Model) -> bool:
        """Say whether the last of the script opens what it may, and each stop is at an exit."""
        access = _access(script[-1])
        if isinstance(access, s.Wrmsr) and not may_come(script[:-1], access, self.levels):
            return False
        stops = isinstance(script[-1], s.Begin)
        return not stops or isinstance(model.predict(script)[-1], RdmsrExit | WrmsrExit)

    @staticmethod
    def _is_for_host(action: s.Action, standing: Standing) -> bool:
        vcpu = getattr(action, "vcpu", 0)
        l2 = standing.l2(vcpu)
        if l2 and l2.exit_load:  # leaving it by the host's hand is nobody's promise
            return False
        return isinstance(action, s.SaveNested) or standing.is_saved(vcpu)


_BY_HOST = (s.SaveNested, s.RestoreNested, s.LeaveNested)
_STARTS = (s.Rdmsr, s.Wrmsr, s.Begin, s.Sweep, s.Execute, s.EnterL2)
"""What has a vCPU execute something where it is."""


def _access(action: s.Action) -> object:
    return action.access if isinstance(action, s.Begin) else action


def is_drawn(action: s.Action) -> bool:  # noqa: PLR0911, PLR0912 - one a kind of word
    """Say whether fuzz itself might draw the action."""
    match action:
        case s.Begin():
            return isinstance(action.access, s.Rdmsr | s.Wrmsr) and is_drawn(action.access)
        case s.Rdmsr():
            return _is_plain_enough(action)
        case s.Wrmsr():
            return _is_plain_enough(action) and _may_write(action.index, action.value)
        case s.Sweep():
            return action.count <= SWEPT and (action.access == "rdmsr" or _writes_nobodys(action))
        case s.Execute():
            known = action.instruction in EFFECTS and not action.emulated
            return known and 0 < action.value <= CARRIED[action.instruction]
        case s.EnableCap():
            return action == s.enable_exits(action.args[0] if action.args else 0)
        case s.Install():
            return action == s.install(action.filter, argp=action.argp)
        case s.GetMsr():
            return action.by == "msrs" and is_harmless(action.index)
        case s.SetMsr():
            fits = fitting(action.index, action.value) == action.value
            return action.by == "msrs" and is_harmless(action.index) and fits
        case s.EnterL2():
            return _enters(action)
        case s.CreateVcpu():
            return not action.no_fd
        case s.SetCpuidBits():
            return action in s.as_hyper_v(action.vcpu)
        case s.XenHvmConfig():
            is_known = action.flags in (0, s.XEN_INTERCEPT) and action.pages <= PAGES
            return is_known and (action.msr == 0 or may_be_xens(action.msr))
        case s.Inject():
            return action.kind in ("nmi", "smi")
        case s.Rewrite():
            return action.what in LOOKED_AT
        case s.Complete():
            return action.by != "debugger"
        case _:
            return isinstance(action, _ALWAYS)


_ALWAYS = (
    *(s.Finish, s.GetRegs, s.GetTaken, s.GetVcpuEvents),
    *(s.ScribbleBitmaps, s.GetHypercallPage, s.LeaveL2, s.FreshVm),
    *(s.SaveNested, s.RestoreNested, s.LeaveNested),
)


def _is_plain_enough(access: s.Access) -> bool:
    known = access.mode in ("long", *MODES) and access.after in AFTER
    return known and not (access.emulated or access.single_step)


def _may_write(index: int, value: int) -> bool:
    if is_harmless(index):
        return fitting(index, value) == value
    opens = value in OPENING.get(index, ()) or (index, value) == (IS_HYPER_V.index, 1)
    in_window = X2APIC_FIRST <= index < X2APIC_FIRST + 0x100 and value == 0
    return opens or in_window or (index == Msr.EFER and value == EFER_RESERVED)


def _writes_nobodys(sweep: s.Sweep) -> bool:
    swept = (sweep.first + n * sweep.stride & U32 for n in range(sweep.count))
    return all(map(is_unknown_to_kvm, swept))


def _enters(entry: s.EnterL2) -> bool:
    passes = () if isinstance(entry.passes, str) else entry.passes
    lists = (*entry.entry_load, *entry.exit_store, *entry.exit_load)
    return all(each.index in STORABLE for each in passes) and all(
        each.index in LOADED for each in lists
    )
