"""What the contract says of the mask: which failing accesses userspace is told of (R43-R47, R50).

One rule is one small method, as in ``filters``. ``MaskRules`` holds no state of its own.
"""

from __future__ import annotations

from errno import EINVAL

from vmm.conformance.language import script as s
from vmm.conformance.oracle.state import VmState
from vmm.msr import KVM_CAP_X86_MSR_FILTER, KVM_CAP_X86_USER_SPACE_MSR, MsrExitReason

CAPS = (KVM_CAP_X86_USER_SPACE_MSR, KVM_CAP_X86_MSR_FILTER)


class MaskRules:
    """The capabilities (R01), the mask that one of them sets (R43-R47), and what it means (R50)."""

    def check_extension(self, vm: VmState, action: s.CheckExtension) -> s.Step:
        """R01."""
        return (s.got(1 if action.cap in CAPS else s.ANY),)

    def enable_cap(self, vm: VmState, action: s.EnableCap) -> s.Step:
        """R43-R47: one mask for the VM, not changed at all by a call that fails."""
        if action.cap == s.KVM_CAP_X86_DISABLE_EXITS and not vm.vcpus and action.on == "vm":
            known = sum(s.DISABLE_EXITS.values())
            return (s.whatever if self.mask_argument(action) & ~known else s.done,)
        if action.cap not in CAPS:
            return (s.whatever,)
        mask = self.mask_argument(action)
        if self.cap_is_invalid(action) or self.mask_is_invalid(mask):
            return (s.rejected(EINVAL),)
        vm.mask = self.new_mask(vm.mask, mask)
        return (s.done,)

    def cap_is_invalid(self, action: s.EnableCap) -> bool:
        """R01, R43: the second capability is only there to be checked."""
        return action.cap == KVM_CAP_X86_MSR_FILTER or action.flags != 0 or action.on != "vm"

    def mask_argument(self, action: s.EnableCap) -> int:
        """R43: args[1..3] are ignored."""
        return action.args[0] if action.args else 0

    def mask_is_invalid(self, mask: int) -> bool:
        """R43: bits 3..63."""
        return mask & ~0b111 != 0

    def new_mask(self, old: int, new: int) -> int:
        """R44: replaced, not OR-ed."""
        return new

    def is_told(self, mask: int, reason: MsrExitReason) -> bool:
        """R50."""
        return mask & int(reason) != 0
