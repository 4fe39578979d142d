"""What the contract says of Xen's MSR: the filter is asked first, and then KVM writes a page (R39).

One rule is one small method, as in ``filters``. ``XenRules`` holds no state of its own. What KVM
does with an allowed write says api.rst 4.28.
"""

from __future__ import annotations

from errno import EINVAL
from typing import TypeGuard

from vmm.conformance.language import script as s
from vmm.conformance.oracle.msrs import U32, U64
from vmm.conformance.oracle.state import Reason, Unsure, VmState
from vmm.msr import INVAL, MsrExitReason

FIRST, LAST = 0x4000_0000, 0x4FFF_FFFF
"""The MSRs that every kernel takes; from 6.15 on it takes no other."""
HYPER_VS = range(0x4000_0000, 0x4001_0000)
"""Of these Hyper-V's had the same numbers before 5.12, and came first."""
OF_LONG_MODE, OF_OTHERS = 0x6400_0000, 0x3200_0000
WITHOUT_LMA = ("protected", "real", "smm")
"""Where EFER.LMA is 0. CPL3 writes no MSR; every other mode is long mode."""
MADE = 0xB8
"""How a page starts that KVM makes: with MOV to EAX of 0, the number of the first hypercall."""
NO_MEMORY = range(0x4000_0000, 0x8000_0000)
"""Addresses at which no guest here has memory, nor KVM something of its own."""
LOW_12 = 0xFFF


class XenRules:
    """R27, R28, R34, R39: the MSR that writes memory."""

    def config(self, vm: VmState, action: s.XenHvmConfig) -> s.Step:
        """R39: a filter asks only about MSRs by their number, whatever this one is made of."""
        if any(isinstance(each, s.Wrmsr) for each in vm.spins.values()):
            vm.page = s.ANY
        if action.flags & ~s.XEN_INTERCEPT > 1 or not self.is_taken(action.msr):
            vm.xen, vm.is_xen_sure = action, False
            return (s.whatever,)
        if action.flags & 1 or (action.flags and action.pages):
            return (s.rejected(EINVAL),)
        vm.xen, vm.is_xen_sure = action, True
        return (s.done,)

    def is_taken(self, msr: int) -> bool:
        """Say whether every kernel takes the MSR, or that there is none."""
        return msr == 0 or FIRST <= msr <= LAST

    def get_page(self, vm: VmState) -> s.Step:
        """R28: what no allowed write has written is as it was."""
        if any(self.is_about(each, vm) for each in vm.spins.values()):
            return (s.whatever,)
        return (s.got(vm.page),)

    def is_about(self, access: s.Access, vm: VmState) -> TypeGuard[s.Wrmsr]:
        """Say whether the access may have KVM write a page."""
        if vm.xen is None or vm.xen.msr == 0 or not isinstance(access, s.Wrmsr):
            return False
        return access.index & U32 == vm.xen.msr

    def failure(self, vm: VmState, access: s.Wrmsr) -> Reason:
        """R52: no page of that number, or nowhere to write it."""
        page, at = access.value & LOW_12, access.value & U64 & ~LOW_12
        if not vm.is_xen_sure or self.may_be_hyper_vs(vm):
            return Unsure.UNFILTERED
        if page >= self.pages(vm) or at in NO_MEMORY:
            return self.invalid()
        return None if at == s.HYPERCALL_PAGE else Unsure.UNFILTERED

    def invalid(self) -> MsrExitReason:
        """R52: KVM has the MSR, and not for this value."""
        return INVAL

    def may_be_hyper_vs(self, vm: VmState) -> bool:
        """Say whether a kernel without flag 2 has another MSR of that number."""
        return vm.xen is not None and not vm.xen.flags and vm.xen.msr in HYPER_VS

    def pages(self, vm: VmState) -> int:
        """Return how many pages there are to choose from."""
        if vm.xen is None:
            return 0
        return 1 if vm.xen.flags & s.XEN_INTERCEPT else vm.xen.pages

    def write(self, vm: VmState, access: s.Access, reason: Reason) -> None:
        """R27: an allowed write has its page written, which a mode of the guest chooses."""
        if self.is_about(access, vm) and not isinstance(reason, MsrExitReason):
            vm.page = s.ANY if reason else self.content(vm, access)

    def content(self, vm: VmState, access: s.Wrmsr) -> int:
        """Return what is in the page then."""
        if vm.xen and vm.xen.flags & s.XEN_INTERCEPT:
            return MADE
        kind = OF_OTHERS if access.mode in WITHOUT_LMA else OF_LONG_MODE
        return kind | access.value & LOW_12

    def by_host(self, vm: VmState, action: s.SetMsr) -> s.Event | None:
        """R34: not filtered; None if it is another MSR.

        Before 6.15 it is as the guest's write, and from there on nobody's MSR.
        """
        access = s.Wrmsr(action.index, action.value)
        if not self.is_about(access, vm):
            return None
        if isinstance(self.failure(vm, access), MsrExitReason) and action.index not in HYPER_VS:
            return s.refused
        vm.page = s.ANY
        return s.whatever
