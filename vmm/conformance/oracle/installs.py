"""What the contract says of an install: who may call it, with what, and what it puts in force.

One rule is one small method, as in ``filters``. ``InstallRules`` holds no state of its own.
"""

from __future__ import annotations

from errno import EFAULT, EINVAL, EIO, ENOTTY
from typing import Protocol

from vmm.conformance.language import script as s
from vmm.conformance.oracle.filters import QUIRK, Errors, FilterRules, Installed
from vmm.conformance.oracle.state import VmState, Wait
from vmm.filter import MsrFilter

REPORTED: dict[Errors, int] = {
    frozenset({EINVAL}): EINVAL,
    frozenset({EFAULT}): EFAULT,
    frozenset({EFAULT, QUIRK}): EFAULT,
}
"""The errno of an install by all it could fail with; which of different ones is R13's quirk."""

SIZE_BITS = 0x3FFF_0000
"""The bits of an ioctl number that hold the size of its argument."""

NATIVE, COMPAT = s.KVM_X86_SET_MSR_FILTER, s.KVM_X86_SET_MSR_FILTER_COMPAT
FOREIGN: s.Step = (s.rejected(EIO),)


class Rest(Protocol):
    """What installs ask of the rest of the Model."""

    @property
    def filters(self) -> FilterRules:
        """What filters say."""


class InstallRules:
    """R02-R05, R10, R13, R14, R16, R29, R71, R74, R75: the ioctl, and the filter it leaves."""

    def install(self, model: Rest, vm: VmState, action: s.Install) -> s.Step:
        """R02, R03, R13: the caller, the ioctl, its argument, and then the filter."""
        if self.is_foreign(action):
            return FOREIGN
        if action.on != "vm":
            return self.wrong_fd(action)
        if action.number not in self.numbers(action.caller):
            return self.wrong_number(action)
        if action.argp is not None:
            return self.unreadable(vm, action)
        new = self.argument(action)
        errors = model.filters.errors(new)
        return self.refuse(model, vm, new, errors) if errors else self.accept(model, vm, new)

    # --- callers -------------------------------------------------------------------------------

    def is_foreign(self, action: s.Install) -> bool:
        """R03: a VM and its vCPUs belong to the mm that made them; /dev/kvm belongs to nobody."""
        return action.caller == "child" and action.on != "system"

    def numbers(self, caller: str) -> tuple[int, ...]:
        """R04, R05: the ioctl numbers that install, by the entry that the caller takes."""
        return (NATIVE, COMPAT) if caller == "compat" else (NATIVE,)

    def argument(self, action: s.Install) -> MsrFilter:
        """R05: the same filter, whichever layout it comes in."""
        return action.filter

    def wrong_fd(self, action: s.Install) -> s.Step:
        """R03: a vCPU and /dev/kvm answer EINVAL to a number that they do not know."""
        return (s.rejected(EINVAL) if _has_our_number(action) else s.whatever,)

    def wrong_number(self, action: s.Install) -> s.Step:
        """R03, R05: another size, the compat one too; any other number is another ioctl."""
        return (s.rejected(ENOTTY) if _has_our_number(action) else s.whatever,)

    def unreadable(self, vm: VmState, action: s.Install) -> s.Step:
        """R02."""
        return (s.rejected(EFAULT),)

    # --- what it leaves ------------------------------------------------------------------------

    def accept(self, model: Rest, vm: VmState, new: MsrFilter) -> s.Step:
        """R16, R74: in force at once, also if the ioctl has to wait before it returns."""
        old = vm.filter
        self.publish(vm, model.filters.installed(old, new))
        return (self.published(vm, old),)

    def published(self, vm: VmState, old: Installed | None) -> s.Event:
        """R74: a new filter is in force; its install waits for the readers of the old one."""
        is_certain = not any(self.is_held(vm, w) or w.is_queued for w in vm.waits.values())
        # Before 6.3 (B17) an install that waits holds kvm->lock, and the next one is not in force.
        vm.rivals = () if is_certain else (*vm.rivals, old)
        return s.blocked if self.has_readers(vm) else s.done

    def has_readers(self, vm: VmState) -> bool:
        """R74: a vCPU that waits for a page inside the kernel may be using the old filter."""
        return bool(vm.parked)

    def is_held(self, vm: VmState, wait: Wait) -> bool:
        """R74: one of the readers from before its publication is still there."""
        return not wait.readers.isdisjoint(vm.parked.values())

    def publish(self, vm: VmState, installed: Installed) -> None:
        """R71, R75: one filter for all vCPUs, there now or made later."""
        vm.filter = installed

    def refuse(self, model: Rest, vm: VmState, new: MsrFilter, errors: Errors) -> s.Step:
        """R10: where a kernel may refuse or accept, nobody knows the filter from there on."""
        if errors == {QUIRK}:
            vm.filter = None
            return (s.whatever,)
        self.fail(model, vm, new)
        return (s.rejected(REPORTED.get(errors, s.ANY)),)

    def fail(self, model: Rest, vm: VmState, new: MsrFilter) -> None:
        """R14: nothing changes."""

    def scribble(self, vm: VmState, action: s.ScribbleBitmaps) -> s.Step:
        """R29: the kernel has a copy of its own."""
        return (s.done,)


def _has_our_number(action: s.Install) -> bool:
    """Say whether the ioctl number is SET_MSR_FILTER's, whatever the size of the argument."""
    return action.number & ~SIZE_BITS == s.KVM_X86_SET_MSR_FILTER & ~SIZE_BITS
