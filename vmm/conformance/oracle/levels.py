"""What the contract says of levels: who gets an access of L2, and what its entry and exit do.

One rule is one small method, as in ``filters``. ``LevelRules`` holds no state of its own, and asks
the ``Rest`` of the Model what filters say.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from vmm.conformance.language import script as s
from vmm.conformance.oracle.msrs import STORABLE, U32, U64
from vmm.conformance.oracle.state import IDLE, NO_REGS, Stage, VcpuState, VmState
from vmm.msr import X2APIC_FIRST, X2APIC_LAST, Msr

SPANS = (0, 0xC000_0000)
"""From where on both vendors' bitmaps have bits for 0x2000 MSRs."""
SVM_SPAN = 0xC001_0000
"""And from where on SVM's alone has."""
SPAN = 0x2000

SWITCHED = (
    *(Msr.FS_BASE, Msr.GS_BASE, Msr.EFER),
    *(Msr.IA32_SYSENTER_CS, Msr.IA32_SYSENTER_ESP, Msr.IA32_SYSENTER_EIP),
)
"""What an entry and an exit may change, by the fields of a VMCS or with the segments of a VMCB."""

UNLISTED = (Msr.FS_BASE, Msr.GS_BASE)
"""What no list may load: the VMCS has fields for them (SDM, volume 3, 27.4)."""
KINDS = {"read": s.Rdmsr, "write": s.Wrmsr}
Own = s.SaveNested | s.RestoreNested | s.LeaveNested


class Rest(Protocol):
    """What levels ask of the rest of the Model."""

    def allowed(self, vm: VmState, access: s.Access) -> bool | None:
        """Return what the filter in force says to an access; None: nobody knows."""


class LevelRules:
    """R36-R38: L1 first, then the filter; lists are filtered, and fields are not."""

    def step(self, model: Rest, vm: VmState, action: s.LevelAction) -> s.Step:
        """Return what an entry, a call of L1, or the host's own work on the level leaves."""
        vcpu = vm.vcpu(action.vcpu)
        if isinstance(action, Own):
            return self.by_host(vm, vcpu, action)
        vcpu.has_run = True
        if vcpu.stage is Stage.COMPLETED and not vcpu.moved:
            vcpu.stage = IDLE
        if vcpu.stage is not IDLE:
            return self.unsure(vcpu)
        if isinstance(action, s.EnterL2):
            return self.enter(model, vm, action)
        return self.leave(model, vm, action)

    def unsure(self, vcpu: VcpuState) -> s.Step:
        """From here on nobody knows in which level the vCPU is."""
        vcpu.stage, vcpu.l2 = Stage.UNSURE, None
        return (s.whatever,)

    # --- entry ---------------------------------------------------------------------------------

    def enter(self, model: Rest, vm: VmState, action: s.EnterL2) -> s.Step:
        """R37, R38: the list is loaded in its order, each MSR as by a WRMSR of the guest."""
        vcpu = vm.vcpu(action.vcpu)
        if vcpu.l2 is not None:
            return self.exit(model, vm, action.vcpu, s.L1Exit("entry"))
        self.switch(vcpu, fields=action.fields)
        vm.is_svm |= not action.bitmap and action.passes == "all"
        vcpu.is_misled = action.clean and self.misleads(vcpu, action)
        vcpu.entered = action
        for number, each in enumerate(action.entry_load, 1):
            loaded = self.loads(model, vm, action.vcpu, each)
            if loaded is None:
                return self.unsure(vcpu)
            if not loaded:
                return self.fail(model, vm, action, number)
        vcpu.l2 = action
        return (s.entered,)

    def misleads(self, vcpu: VcpuState, entry: s.EnterL2) -> bool:
        """R36: whether nobody knows what L1 intercepts, which says that its bitmap is clean.

        Clean is what is as at the last entry. Before the first there was none: that counts as any.
        """
        last = vcpu.entered
        is_true = last is None or (last.bitmap and last.passes == entry.passes)
        return vcpu.is_misled or not entry.bitmap or not is_true

    def fail(self, model: Rest, vm: VmState, action: s.EnterL2, number: int) -> s.Step:
        """R37: the failing entry's number, from 1; what comes with an exit is loaded all the same.

        MSRs loaded before it stay so, and nothing is stored.
        """
        self.switch(vm.vcpu(action.vcpu), fields=action.fields)
        return self.back(model, vm, action.vcpu, action, s.EntryFailed("msr_load", number))

    def loads(self, model: Rest, vm: VmState, number: int, each: s.Listed) -> bool | None:
        """R37: load one MSR of a list; False if that fails, None if nobody knows."""
        vcpu, index, value = vm.vcpu(number), each.index & U32, each.value & U64
        if index in UNLISTED or X2APIC_FIRST <= index <= X2APIC_LAST:
            return False
        if not (allowed := self.may_load(model, vm, number, each)):
            return allowed
        if not vcpu.can_hold(index, value):
            return None
        vcpu.msrs[index] = value
        return True

    def may_load(self, model: Rest, vm: VmState, number: int, each: s.Listed) -> bool | None:
        """R37: as a WRMSR."""
        return model.allowed(vm, s.Wrmsr(each.index, each.value, vcpu=number))

    def may_store(self, model: Rest, vm: VmState, number: int, each: s.Listed) -> bool | None:
        """R37: as a RDMSR."""
        return model.allowed(vm, s.Rdmsr(each.index, vcpu=number))

    def switch(self, vcpu: VcpuState, *, fields: bool) -> None:
        """R38: what L1 and L2 each have of their own is not filtered, and nobody's promise here."""
        for index in (*SWITCHED, *(STORABLE if fields else ())):
            vcpu.msrs.pop(index, None)

    # --- the host's own work -------------------------------------------------------------------

    def by_host(self, vm: VmState, vcpu: VcpuState, action: Own) -> s.Step:
        """R34, R81: what the host does asks no filter, and changes none."""
        if isinstance(action, s.SaveNested):
            vm.saved.pop(action.vcpu, None)
            vm.held.pop(action.vcpu, None)
        if vcpu.stage in (Stage.UNSURE, Stage.AWAY):
            return (s.whatever,)
        if isinstance(action, s.SaveNested):
            vm.saved[action.vcpu] = vcpu.l2
            if vcpu.stage is Stage.COMPLETED:
                vm.held[action.vcpu] = vcpu.access, vcpu.regs, vcpu.outcome
            return (s.got(int(vcpu.l2 is not None)),)
        if isinstance(action, s.LeaveNested):
            return self.taken_to(vm, vcpu, None)
        if action.vcpu not in vm.saved:  # the vCPU was saved where nobody knew what it is
            return self.unsure(vcpu)
        # L1's bitmap is as it was saved; of an L1 outside of L2 that is not the last KVM has seen.
        vcpu.entered, vcpu.is_misled = vm.saved[action.vcpu], vm.saved[action.vcpu] is None
        if vcpu.stage is Stage.COMPLETED:  # what is restored must be of the same access
            access, vcpu.regs, vcpu.outcome = vm.held.get(action.vcpu, (None, NO_REGS, s.whatever))
            if access != vcpu.access:
                return self.unsure(vcpu)
        return self.taken_to(vm, vcpu, vm.saved[action.vcpu])

    def taken_to(self, vm: VmState, vcpu: VcpuState, l2: s.EnterL2 | None) -> s.Step:
        """R81: the vCPU is at that level from then on, and its filter is the VM's.

        An access that waits for its answer is nobody's any more, and neither is a list for L1.
        """
        if vcpu.stage is Stage.EXITED or (vcpu.l2 and vcpu.l2.exit_load):
            return self.unsure(vcpu)
        self.switch(vcpu, fields=any(each.fields for each in (vcpu.l2, l2) if each))
        if vm.has_irqchip:
            vcpu.forget(Msr.IA32_APICBASE)
        vcpu.l2 = l2
        return (s.done,)

    # --- an access of L2 -----------------------------------------------------------------------

    def left_by(self, model: Rest, vm: VmState, access: s.Access) -> s.Step | None:
        """R36: what an access leaves that L1 gets; None if it stays between L2 and KVM."""
        vcpu = vm.vcpu(access.vcpu)
        if vcpu.l2 is None:
            return None
        intercepted = None if vcpu.is_misled else self.intercepts(vcpu.l2, access)
        if intercepted is None and vm.is_svm and not vcpu.is_misled:
            intercepted = self.intercepts_amds(vcpu.l2, access)
        if intercepted is None or access.mode != "long" or access.form != "register":
            return self.unsure(vcpu)
        return self.exit(model, vm, access.vcpu, self.seen(access)) if intercepted else None

    def intercepts(self, l2: s.EnterL2, access: s.Access) -> bool | None:
        """R36: what L1's bitmap says, or that it has none; all that it has no bit for is L1's."""
        if access.emulated and l2.passes != "all":
            return None
        if not l2.bitmap:
            return l2.passes == "none"
        index = access.index & U32
        if not self.has_bit(index):
            return None if SVM_SPAN <= index < SVM_SPAN + SPAN or access.emulated else True
        return not self.passes(l2.passes, access)

    def intercepts_amds(self, l2: s.EnterL2, access: s.Access) -> bool | None:
        """R36: SVM's bitmap has bits for the MSRs of a third span, as for others.

        And KVM's emulator asks it. On VMX that gives up on an access that L1 may intercept.
        """
        if SVM_SPAN <= access.index & U32 < SVM_SPAN + SPAN:
            return not self.passes(l2.passes, access)
        return self.intercepts(l2, replace(access, emulated=False)) if access.emulated else None

    def has_bit(self, index: int) -> bool:
        """Say whether the bitmaps of both vendors have bits for an MSR."""
        return any(first <= index < first + SPAN for first in SPANS)

    def passes(self, passes: s.Passes, access: s.Access) -> bool:
        """R36: by MSR, reads and writes apart."""
        if isinstance(passes, str):
            return passes == "all"
        return any(self.lets(each, access) for each in passes)

    def lets(self, each: s.Through, access: s.Access) -> bool:
        """R36: one MSR that L1 lets pass."""
        kind = each.access == "both" or isinstance(access, KINDS[each.access])
        return kind and each.index == access.index & U32

    def seen(self, access: s.Access) -> s.L1Exit:
        """R36: L1 sees the registers of L2, at the instruction."""
        if isinstance(access, s.Wrmsr):
            return s.L1Exit("wrmsr", access.index & U32, access.value & U64)
        return s.L1Exit("rdmsr", access.index & U32)

    # --- exit ----------------------------------------------------------------------------------

    def leave(self, model: Rest, vm: VmState, action: s.LeaveL2) -> s.Step:
        """Return L1's exit; in L1 it is a call of KVM, or of the host where it plays Xen."""
        vcpu = vm.vcpu(action.vcpu)
        if vcpu.l2 is None:
            is_xens = vm.xen is not None and vm.xen.flags & s.XEN_INTERCEPT
            return self.unsure(vcpu) if is_xens else (s.done,)
        return self.exit(model, vm, action.vcpu, s.L1Exit("hypercall"))

    def exit(self, model: Rest, vm: VmState, number: int, event: s.L1Exit) -> s.Step:
        """R37: store one list, load the other; what is denied aborts the exit."""
        vcpu = vm.vcpu(number)
        l2, vcpu.l2 = vcpu.l2, None
        if l2 is None:
            return self.unsure(vcpu)
        stored: tuple[int, ...] = ()
        for each in l2.exit_store:
            if not (allowed := self.may_store(model, vm, number, each)):
                return self.unsure(vcpu) if allowed is None else self.abort(vcpu)
            if not vcpu.can_read(each.index & U32):
                return self.unsure(vcpu)
            stored = (*stored, vcpu.msrs.get(each.index & U32, s.ANY))
        self.switch(vcpu, fields=l2.fields)
        return self.back(model, vm, number, l2, replace(event, stored=stored))

    def back(self, model: Rest, vm: VmState, number: int, l2: s.EnterL2, event: s.Event) -> s.Step:
        """R37: load the list for L1, and go on there."""
        vcpu = vm.vcpu(number)
        for each in l2.exit_load:
            if not (loaded := self.loads(model, vm, number, each)):
                return self.unsure(vcpu) if loaded is None else self.abort(vcpu)
        return (event,)

    def abort(self, vcpu: VcpuState) -> s.Step:
        """R37: a VM abort, which KVM makes a shutdown; what the vCPU is then, nobody says."""
        vcpu.stage, vcpu.l2 = Stage.UNSURE, None
        return (s.shutdown,)
