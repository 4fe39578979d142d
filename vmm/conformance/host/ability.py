"""Whether this host's KVM can do what a check needs: each found out by doing it."""

from __future__ import annotations

import errno
import os
from typing import Any

from vmm.conformance.host.diagnosis import Diagnosis, Health
from vmm.conformance.host.facts import facts

GUEST_SECONDS = 5.0
KVM_CAP_SYNC_REGS, KVM_SYNC_X86_REGS = 74, 1  # linux/kvm.h; asm/kvm.h


def device() -> Diagnosis:
    """Open /dev/kvm."""
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        why = f"/dev/kvm: {error.strerror}"
        if error.errno in (errno.EACCES, errno.EPERM):
            return Diagnosis(
                Health.FAIL, why, "run as root or join the group that owns it (usermod -aG kvm)"
            )
        return Diagnosis(
            Health.FAIL, why, "modprobe kvm_intel or kvm_amd; check the firmware's setting"
        )
    return Diagnosis(Health.PASS, "/dev/kvm opens for reading and writing")


def vendor_module() -> Diagnosis:
    """Name the module that runs guests."""
    if module := facts()["vendor_module"]:
        return Diagnosis(Health.PASS, str(module))
    return Diagnosis(
        Health.WARN, "cannot tell which module runs guests", "see lsmod; records will lack it"
    )


def platform() -> Diagnosis:
    """Say whether KVM is nested."""
    match facts()["platform"]:
        case "bare metal":
            return Diagnosis(Health.PASS, "bare metal")
        case "virtual":
            text = "virtual: KVM is nested here, and the hypervisor below may colour what is seen"
            return Diagnosis(Health.PASS, text)
    return Diagnosis(
        Health.WARN, "cannot tell bare metal from virtual", "the records will not say either"
    )


def capabilities() -> Diagnosis:
    """Ask for the two capabilities of the filter."""
    from vmm.kvm import Kvm
    from vmm.msr import KVM_CAP_X86_MSR_FILTER, KVM_CAP_X86_USER_SPACE_MSR

    caps = (KVM_CAP_X86_USER_SPACE_MSR, KVM_CAP_X86_MSR_FILTER)
    with Kvm() as kvm:
        values = {cap: kvm.check_extension(cap) for cap in caps}
    shown = ", ".join(f"{cap} is {value}" for cap, value in values.items())
    if all(values.values()):
        return Diagnosis(Health.PASS, shown)
    return Diagnosis(Health.FAIL, shown, "this kernel has no MSR filter: take 5.10 or newer")


def sync_regs() -> Diagnosis:
    """Ask for the registers in the kvm_run page."""
    from vmm.kvm import Kvm

    with Kvm() as kvm:
        fields = kvm.check_extension(KVM_CAP_SYNC_REGS)
    if fields & KVM_SYNC_X86_REGS:
        return Diagnosis(Health.PASS, f"KVM_CAP_SYNC_REGS is {fields:#x}")
    return Diagnosis(
        Health.FAIL, f"KVM_CAP_SYNC_REGS is {fields:#x}", "take a kernel that has it (4.17)"
    )


def guest() -> Diagnosis:
    """Have a guest make a denied access."""
    from vmm.exits import HltExit, RdmsrExit
    from vmm.filter import MsrFilter
    from vmm.guest import Guest
    from vmm.kvm import Kvm
    from vmm.msr import FILTER, Msr

    with Kvm() as kvm, kvm.create_vm() as vm:
        vm.enable_msr_exits(FILTER)
        vm.set_msr_filter(MsrFilter.default_allow().deny(Msr.KERNEL_GS_BASE))
        vcpu = Guest.load("read_msr").boot(vm, rcx=Msr.KERNEL_GS_BASE)
        denied = vcpu.run_for(GUEST_SECONDS)
        vcpu.reply(0xC0FFEE)
        halted = vcpu.run_for(GUEST_SECONDS)
    if (denied, halted) == (RdmsrExit(Msr.KERNEL_GS_BASE, FILTER), HltExit()):
        return Diagnosis(
            Health.PASS, "a guest ran: its denied RDMSR exited, was answered, and it halted"
        )
    fact = f"the guest did {denied or 'not exit in time'}, then {halted or 'not halt in time'}"
    return Diagnosis(
        Health.FAIL, fact, "this kernel runs no guest as it should: see its log (dmesg)"
    )


def _kvm_parameter(name: str) -> str | None:
    parameters: Any = facts()["parameters"]
    value: str | None = parameters.get("kvm", {}).get(name)
    return value


def ignore_msrs() -> Diagnosis:
    """Read the parameter that silences UNKNOWN."""
    match _kvm_parameter("ignore_msrs"):
        case None:
            return Diagnosis(
                Health.WARN, "cannot be read", "with 1, UNKNOWN exits would not happen"
            )
        case "N" | "0":
            return Diagnosis(Health.PASS, "off")
    remedy = "echo 0 > /sys/module/kvm/parameters/ignore_msrs"
    return Diagnosis(Health.WARN, "on: cases that need UNKNOWN exits are skipped", remedy)


def forced_emulation() -> Diagnosis:
    """Read the parameter of the forced emulation prefix."""
    value = _kvm_parameter("force_emulation_prefix")
    if value not in (None, "0", "N"):
        return Diagnosis(Health.PASS, f"force_emulation_prefix is {value}")
    remedy = "load kvm with force_emulation_prefix=1 (kvm.force_emulation_prefix=1 at boot)"
    return Diagnosis(Health.WARN, "off: the emulator's own accesses are not tested", remedy)
