"""Mistakes with an L2: who gets its accesses, which filter it obeys, what its entry and exit do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from errno import EBUSY
from typing import Any

from mutant import mutant
from planting import Where, notes_of, unasked, window_filtered

from vmm.conformance.language import script as s
from vmm.conformance.oracle.accesses import AccessRules
from vmm.conformance.oracle.installs import InstallRules
from vmm.conformance.oracle.levels import LevelRules
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.msrs import U32
from vmm.conformance.oracle.races import RaceRules
from vmm.conformance.oracle.state import VcpuState, VmState
from vmm.msr import Msr, MsrExitReason

_BASES = (Msr.FS_BASE, Msr.GS_BASE, Msr.KERNEL_GS_BASE)
_PASSED = (*_BASES, Msr.STAR, Msr.LSTAR, Msr.CSTAR, Msr.SYSCALL_MASK)

Which = Callable[[s.Access], bool]


# --- which filter an L2 obeys ---------------------------------------------------------------------


def _of_l2(which: Which) -> Where:
    return lambda vm, vcpu, access: vcpu.l2 is not None and which(access)


def _stale(which: Which, *, forever: bool = False, opens: bool = True) -> dict[str, Any]:
    """Return the rules of a kernel whose L2 has the filter that its entry found (B20).

    ``forever`` is that of the first entry; not ``opens`` says that it alone cannot allow.
    """

    def reason(
        self: AccessRules, model: Model, vm: VmState, vcpu: VcpuState, access: s.Access
    ) -> Any:
        if vcpu.l2 is None:
            return AccessRules.reason(self, model, vm, vcpu, access)
        key = access.vcpu if forever else (access.vcpu, id(vcpu.l2))
        found = notes_of(vm).setdefault(key, vm.filter)
        now, vm.filter = vm.filter, found if which(access) else vm.filter
        said = AccessRules.reason(self, model, vm, vcpu, access)
        vm.filter = now
        is_open = not isinstance(said, MsrExitReason)
        return said if opens or not is_open else AccessRules.reason(self, model, vm, vcpu, access)

    return {"reason": reason}


def _is_read(access: s.Access) -> bool:
    return isinstance(access, s.Rdmsr)


def _is_write(access: s.Access) -> bool:
    return isinstance(access, s.Wrmsr)


def _mask_of_entry(
    self: AccessRules, model: Model, vm: VmState, access: s.Access, reason: MsrExitReason
) -> s.Step:
    l2 = vm.vcpu(access.vcpu).l2
    now = vm.mask
    if l2 is not None:
        vm.mask = notes_of(vm).setdefault((access.vcpu, id(l2)), vm.mask)
    left = AccessRules.failing(self, model, vm, access, reason)
    vm.mask = now
    return left


def _untold_is_l1s(
    self: AccessRules, model: Model, vm: VmState, access: s.Access, reason: MsrExitReason
) -> s.Step:
    vcpu = vm.vcpu(access.vcpu)
    if vcpu.l2 is None or model.masks.is_told(vm.mask, reason):
        return AccessRules.failing(self, model, vm, access, reason)
    vcpu.l2 = None
    return (s.L1Exit("other"),)


def _exit_ends_l2(
    self: AccessRules, model: Model, vm: VmState, access: s.Access, reason: MsrExitReason
) -> s.Step:
    if model.masks.is_told(vm.mask, reason):
        vm.vcpu(access.vcpu).l2 = None
    return AccessRules.failing(self, model, vm, access, reason)


def _writes_all_the_same(
    self: AccessRules, model: Model, vm: VmState, access: s.Access, reason: MsrExitReason
) -> s.Step:
    vcpu = vm.vcpu(access.vcpu)
    if vcpu.l2 is not None and isinstance(access, s.Wrmsr):
        vcpu.msrs[access.index] = access.value
    return AccessRules.failing(self, model, vm, access, reason)


# --- who gets an access ---------------------------------------------------------------------------


def _filter_first(self: LevelRules, model: Any, vm: VmState, access: s.Access) -> s.Step | None:
    if model.allowed(vm, access) is False:
        return None
    return LevelRules.left_by(self, model, vm, access)


def _l1_where_denied(self: LevelRules, model: Any, vm: VmState, access: s.Access) -> s.Step | None:
    vcpu = vm.vcpu(access.vcpu)
    if vcpu.l2 is not None and model.allowed(vm, access) is False:
        return self.exit(model, vm, access.vcpu, self.seen(access))
    return LevelRules.left_by(self, model, vm, access)


def _any_vcpus_l2(self: LevelRules, model: Any, vm: VmState, access: s.Access) -> s.Step | None:
    for number, vcpu in list(vm.vcpus.items()):
        if vcpu.l2 is not None and self.intercepts(vcpu.l2, access):
            return self.exit(model, vm, number, self.seen(access))
    return None


def _spans(size: int) -> Any:
    def has_bit(self: LevelRules, index: int) -> bool:
        return any(first <= index < first + size for first in (0, 0xC000_0000))

    return has_bit


def _lets(kind: Callable[[s.Through, s.Access], bool]) -> Any:
    def lets(self: LevelRules, each: s.Through, access: s.Access) -> bool:
        return each.index == access.index & U32 and kind(each, access)

    return lets


def _swapped(each: s.Through, access: s.Access) -> bool:
    return each.access == "both" or isinstance(access, s.Wrmsr) == (each.access == "read")


def _sees(**changes: Any) -> Any:
    def seen(self: LevelRules, access: s.Access) -> s.L1Exit:
        event = LevelRules.seen(self, access)
        wanted = {name: new(event, access) for name, new in changes.items()}
        return replace(event, **wanted)

    return seen


# --- entry and exit -------------------------------------------------------------------------------


def _fields_filtered(self: LevelRules, model: Any, vm: VmState, action: s.EnterL2) -> s.Step:
    """B06: what has a field is loaded as the guest would."""
    if action.fields and not model.allowed(vm, s.Wrmsr(Msr.EFER, 0, vcpu=action.vcpu)):
        return (s.EntryFailed("state"),)
    return LevelRules.enter(self, model, vm, action)


def _enters_twice(self: LevelRules, model: Any, vm: VmState, action: s.EnterL2) -> s.Step:
    vm.vcpu(action.vcpu).l2 = None
    return LevelRules.enter(self, model, vm, action)


def _numbered(number: Callable[[s.EnterL2, int], int]) -> Any:
    def fail(self: LevelRules, model: Any, vm: VmState, action: s.EnterL2, at: int) -> s.Step:
        return LevelRules.fail(self, model, vm, action, number(action, at))

    return fail


def _fails_alone(self: LevelRules, model: Any, vm: VmState, action: s.EnterL2, at: int) -> s.Step:
    return (s.EntryFailed("msr_load", at),)


def _fails_with_no_trace(
    self: LevelRules, model: Any, vm: VmState, action: s.EnterL2, at: int
) -> s.Step:
    for each in action.entry_load[:at]:
        vm.vcpu(action.vcpu).msrs[each.index] = 0
    return LevelRules.fail(self, model, vm, action, at)


def _loads_the_rest(
    self: LevelRules, model: Any, vm: VmState, action: s.EnterL2, at: int
) -> s.Step:
    for each in action.entry_load[at:]:
        vm.vcpu(action.vcpu).msrs[each.index] = each.value
    return LevelRules.fail(self, model, vm, action, at)


def _skips_denied(self: LevelRules, model: Any, vm: VmState, number: int, each: s.Listed) -> Any:
    return LevelRules.loads(self, model, vm, number, each) is not None


def _asks_no_more(
    self: LevelRules, model: Any, vm: VmState, number: int, each: s.Listed
) -> bool | None:
    return True


def _as_read(self: LevelRules, model: Any, vm: VmState, number: int, each: s.Listed) -> bool | None:
    return model.allowed(vm, s.Rdmsr(each.index, vcpu=number))


def _as_write(
    self: LevelRules, model: Any, vm: VmState, number: int, each: s.Listed
) -> bool | None:
    return model.allowed(vm, s.Wrmsr(each.index, 0, vcpu=number))


def _but_for_tsc(
    self: LevelRules, model: Any, vm: VmState, number: int, each: s.Listed
) -> bool | None:
    """B35: the value is at hand already."""
    return each.index == Msr.IA32_TSC or LevelRules.may_store(self, model, vm, number, each)


def _only_for(reason: str) -> Any:
    def exit_(self: LevelRules, model: Any, vm: VmState, number: int, event: s.L1Exit) -> s.Step:
        vcpu = vm.vcpu(number)
        if vcpu.l2 is not None and event.reason != reason:
            vcpu.l2 = replace(vcpu.l2, exit_store=(), exit_load=())
        return LevelRules.exit(self, model, vm, number, event)

    return exit_


def _with_the_filter_of_entry() -> dict[str, Any]:
    def enter(self: LevelRules, model: Any, vm: VmState, action: s.EnterL2) -> s.Step:
        notes_of(vm)[action.vcpu] = vm.filter
        return LevelRules.enter(self, model, vm, action)

    def exit_(self: LevelRules, model: Any, vm: VmState, number: int, event: s.L1Exit) -> s.Step:
        now, vm.filter = vm.filter, notes_of(vm).get(number, vm.filter)
        left = LevelRules.exit(self, model, vm, number, event)
        vm.filter = now
        return left

    return {"enter": enter, "exit": exit_}


def _tells_userspace(self: LevelRules, vcpu: VcpuState) -> s.Step:
    return (s.RdmsrExit(Msr.KERNEL_GS_BASE, MsrExitReason.FILTER), *LevelRules.abort(self, vcpu))


def _loses_writes(self: LevelRules, model: Any, vm: VmState, number: int, event: s.L1Exit) -> Any:
    left = LevelRules.exit(self, model, vm, number, event)
    for index in _PASSED:
        if index in vm.vcpu(number).msrs:
            vm.vcpu(number).msrs[index] = 0
    return left


def _call_is_an_exit(self: LevelRules, model: Any, vm: VmState, action: s.LeaveL2) -> s.Step:
    left = LevelRules.leave(self, model, vm, action)
    return (s.L1Exit("hypercall"),) if left == (s.done,) else left


# --- what the host does meanwhile -----------------------------------------------------------------


def _busy_with_l2(self: InstallRules, model: Model, vm: VmState, action: s.Install) -> s.Step:
    if any(vcpu.l2 is not None for vcpu in vm.vcpus.values()):
        return (s.rejected(EBUSY),)
    return InstallRules.install(self, model, vm, action)


def _cannot_close(self: RaceRules, model: Any, vm: VmState, action: s.CloseVcpu) -> s.Step:
    if vm.vcpu(action.vcpu).l2 is not None:
        return (s.rejected(EBUSY),)
    return RaceRules.close_vcpu(self, model, vm, action)


LEVELS = (
    mutant(
        Model,
        "l2_unfiltered",
        "No access of an L2 is filtered.",
        reason=unasked(_of_l2(lambda _: True)),
    ),
    mutant(
        Model,
        "l2_reads_unfiltered",
        "No RDMSR of an L2 is filtered.",
        reason=unasked(_of_l2(_is_read)),
    ),
    mutant(
        Model,
        "l2_writes_unfiltered",
        "No WRMSR of an L2 is filtered.",
        reason=unasked(_of_l2(_is_write)),
    ),
    mutant(
        *(Model, "l2_bases_unfiltered", "L2 reaches FS, GS and KERNEL_GS base (B05)."),
        reason=unasked(_of_l2(lambda access: access.index in _BASES)),
    ),
    *(
        mutant(
            *(Model, f"l2_{msr.name.lower()}_unfiltered", f"L2 reaches {msr.name}, denied or not."),
            reason=unasked(_of_l2(lambda access, msr=msr: access.index == msr)),  # type: ignore[misc]
        )
        for msr in (Msr.IA32_TSC, *_PASSED, Msr.IA32_SYSENTER_CS)
    ),
    mutant(Model, "l2_stale", "L2 obeys the filter of its entry.", **_stale(lambda _: True)),
    mutant(
        *(Model, "l2_stale_bitmap", "L2 has the passed-through MSRs of its entry (B20)."),
        **_stale(lambda access: access.index in _PASSED),
    ),
    mutant(Model, "l2_stale_reads", "L2's reads obey the filter of its entry.", **_stale(_is_read)),
    mutant(
        *(Model, "l2_stale_writes", "L2's writes obey the filter of its entry."),
        **_stale(_is_write),
    ),
    mutant(
        *(Model, "l2_never_opened", "What was denied at L2's entry stays so until it ends."),
        **_stale(lambda _: True, opens=False),
    ),
    mutant(
        *(Model, "l2_first_filter", "A vCPU's L2s obey the filter of the first of them."),
        **_stale(lambda _: True, forever=True),
    ),
    mutant(Model, "l2_mask_of_entry", "L2's exits obey its entry's mask.", failing=_mask_of_entry),
    mutant(Model, "l2_untold_is_l1s", "An untold #GP goes to L1.", failing=_untold_is_l1s),
    mutant(Model, "l2_ended_by_exit", "An exit to userspace ends L2.", failing=_exit_ends_l2),
    mutant(Model, "l2_denied_writes", "L2's denied WRMSR writes.", failing=_writes_all_the_same),
    mutant(
        Model,
        "l2_window",
        "L2's x2APIC window is filtered.",
        reason=window_filtered(_of_l2(lambda _: True)),
    ),
    mutant(LevelRules, "l0_first", "The filter decides before L1 does.", left_by=_filter_first),
    mutant(LevelRules, "l1_gets_denied", "L1 gets what is denied.", left_by=_l1_where_denied),
    mutant(LevelRules, "one_l2_for_all", "One vCPU's L2 is every vCPU's.", left_by=_any_vcpus_l2),
    mutant(LevelRules, "l1_never", "L1's bitmap counts for nothing.", intercepts=lambda *_: False),
    mutant(LevelRules, "l1_always", "L1 gets every access.", intercepts=lambda *_: True),
    mutant(
        LevelRules,
        "svms_span_is_l1s",
        "L1 gets every access to an MSR of which SVM's bitmap alone has bits.",
        intercepts_amds=lambda *_: True,
    ),
    mutant(LevelRules, "all_have_a_bit", "L1 passes what has no bit.", has_bit=lambda *_: True),
    mutant(LevelRules, "a_bit_less", "The last MSR of a bitmap is L1's.", has_bit=_spans(0x1FFF)),
    mutant(LevelRules, "a_bit_more", "The MSR after a bitmap has a bit.", has_bit=_spans(0x2001)),
    mutant(LevelRules, "kinds_swapped", "Reads obey the bits for writes.", lets=_lets(_swapped)),
    mutant(LevelRules, "kinds_joined", "One bit lets both.", lets=_lets(lambda *_: True)),
    mutant(
        *(LevelRules, "no_bitmap_swapped", "Without a bitmap L1 gets what it should not."),
        intercepts=lambda self, l2, access: (
            LevelRules.intercepts(self, l2, access) != (not l2.bitmap)
        ),
    ),
    mutant(LevelRules, "sees_next", "L1 sees RIP after it.", seen=_sees(skew=lambda *_: 2)),
    mutant(LevelRules, "sees_no_value", "L1 sees no EDX:EAX.", seen=_sees(value=lambda *_: 0)),
    mutant(
        *(LevelRules, "sees_half", "L1 sees EAX alone."),
        seen=_sees(value=lambda event, _: event.value & U32),
    ),
    mutant(
        *(LevelRules, "sees_reads", "L1 takes each access for a RDMSR."),
        seen=_sees(reason=lambda *_: "rdmsr"),
    ),
    mutant(
        *(LevelRules, "sees_16_bits", "L1 sees half of ECX."),
        seen=_sees(index=lambda event, _: event.index & 0xFFFF),
    ),
    mutant(LevelRules, "fields_filtered", "A denied field fails an entry.", enter=_fields_filtered),
    mutant(LevelRules, "enters_twice", "An L2 can enter an L2.", enter=_enters_twice),
    mutant(
        LevelRules, "counts_from_0", "Entries count from 0.", fail=_numbered(lambda _, n: n - 1)
    ),
    mutant(LevelRules, "always_the_first", "Entry 1 failed.", fail=_numbered(lambda *_: 1)),
    mutant(
        *(LevelRules, "always_the_last", "The list's last entry failed."),
        fail=_numbered(lambda action, _: len(action.entry_load)),
    ),
    mutant(LevelRules, "fails_alone", "A failed entry loads nothing for L1.", fail=_fails_alone),
    mutant(LevelRules, "undone", "A failed entry undoes its list.", fail=_fails_with_no_trace),
    mutant(LevelRules, "loads_the_rest", "A failed entry goes on loading.", fail=_loads_the_rest),
    mutant(LevelRules, "skips_denied", "A denied entry is skipped.", loads=_skips_denied),
    mutant(LevelRules, "loads_unfiltered", "Lists load unfiltered.", may_load=_asks_no_more),
    mutant(
        LevelRules, "stores_unfiltered", "Lists store unfiltered (B07).", may_store=_asks_no_more
    ),
    mutant(LevelRules, "loads_as_read", "A load is asked as a read.", may_load=_as_read),
    mutant(LevelRules, "stores_as_write", "A store is asked as a write.", may_store=_as_write),
    mutant(LevelRules, "tsc_unasked", "A store of TSC is not asked (B35).", may_store=_but_for_tsc),
    mutant(LevelRules, "on_call_only", "Lists go with calls only.", exit=_only_for("hypercall")),
    mutant(LevelRules, "not_on_call", "Lists go with accesses only.", exit=_only_for("rdmsr")),
    mutant(
        *(LevelRules, "exit_of_entry", "An exit obeys the filter of its entry."),
        **_with_the_filter_of_entry(),
    ),
    mutant(LevelRules, "aborts_tell", "An abort tells userspace first.", abort=_tells_userspace),
    mutant(LevelRules, "loses_writes", "What L2 wrote is lost with it.", exit=_loses_writes),
    mutant(LevelRules, "calls_itself", "L1's call is its own exit.", leave=_call_is_an_exit),
    mutant(Model, "busy_with_l2", "No install while an L2 is there.", install=_busy_with_l2),
    mutant(RaceRules, "no_close_in_l2", "A vCPU in L2 stays open.", close_vcpu=_cannot_close),
)
