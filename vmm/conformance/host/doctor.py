"""``msrward doctor``: find out, by doing it, what this host allows to test.

Nothing is decided from cpuinfo flags or version numbers: the doctor opens, creates, runs and reads.
A FAIL means that ``msrward check`` cannot work here, a WARN that something is not tested or
that results need care.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from vmm.conformance.host import containers
from vmm.conformance.host.facts import facts, taint_letters
from vmm.conformance.records.verdict import Verdict
from vmm.errors import KvmError

GUEST_SECONDS = 5.0
KVM_CAP_SYNC_REGS, KVM_SYNC_X86_REGS = 74, 1  # linux/kvm.h; asm/kvm.h
SYS_USERFAULTFD, USERFAULTFD_IOC_NEW = 323, 0xAA00  # asm/unistd_64.h; linux/userfaultfd.h
UFFD_SYSCTL = Path("/proc/sys/vm/unprivileged_userfaultfd")


class Health(StrEnum):
    """What a check says of this host; WARN: something is not tested."""

    PASS = Verdict.PASS
    WARN = "WARN"
    FAIL = Verdict.FAIL


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found: the verdict, the fact, and what to do about it."""

    verdict: Health
    fact: str
    remedy: str = ""


def examine() -> dict[str, Finding]:
    """Return the findings of all checks by name, in order; never raises."""
    return {name: _guarded(check) for name, check in CHECKS}


def render(findings: Mapping[str, Finding], *, as_json: bool = False) -> str:
    """Return a line for each finding with its remedy, or one JSON object with the host's facts."""
    if as_json:
        import json

        checks = [{"check": name, **asdict(found)} for name, found in findings.items()]
        return json.dumps({"schema": 1, "checks": checks, "host": facts()}, indent=2)
    width = max(len(name) for name in findings)
    return "\n".join(
        f"{found.verdict} {name:{width}}  {found.fact}{found.remedy and f' -> {found.remedy}'}"
        for name, found in findings.items()
    )


def _guarded(check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except (OSError, ImportError) as error:  # KvmError is an OSError
        return Finding(Health.FAIL, str(error), _remedy(error))


def _remedy(error: Exception) -> str:
    if isinstance(error, ImportError):
        return "build and install msrward (scripts/check does both)"
    if isinstance(error, KvmError) and error.detail == "/dev/kvm":
        return "see /dev/kvm"
    return ""


def _machine() -> Finding:
    machine = os.uname().machine
    if machine == "x86_64":
        return Finding(Health.PASS, machine)
    return Finding(Health.FAIL, machine, "the MSR filter exists on x86-64 alone")


def _kernel() -> Finding:
    known = facts()
    return Finding(Health.PASS, f"{known['release']} {known['version']} on {known['cpu_model']}")


def _device() -> Finding:
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        why = f"/dev/kvm: {error.strerror}"
        if error.errno in (errno.EACCES, errno.EPERM):
            return Finding(
                Health.FAIL, why, "run as root or join the group that owns it (usermod -aG kvm)"
            )
        return Finding(
            Health.FAIL, why, "modprobe kvm_intel or kvm_amd; check the firmware's setting"
        )
    return Finding(Health.PASS, "/dev/kvm opens for reading and writing")


def _vendor_module() -> Finding:
    if module := facts()["vendor_module"]:
        return Finding(Health.PASS, str(module))
    return Finding(
        Health.WARN, "cannot tell which module runs guests", "see lsmod; records will lack it"
    )


def _platform() -> Finding:
    match facts()["platform"]:
        case "bare metal":
            return Finding(Health.PASS, "bare metal")
        case "virtual":
            text = "virtual: KVM is nested here, and the hypervisor below may colour what is seen"
            return Finding(Health.PASS, text)
    return Finding(
        Health.WARN, "cannot tell bare metal from virtual", "the records will not say either"
    )


def _capabilities() -> Finding:
    from vmm.kvm import Kvm
    from vmm.msr import KVM_CAP_X86_MSR_FILTER, KVM_CAP_X86_USER_SPACE_MSR

    caps = (KVM_CAP_X86_USER_SPACE_MSR, KVM_CAP_X86_MSR_FILTER)
    with Kvm() as kvm:
        values = {cap: kvm.check_extension(cap) for cap in caps}
    shown = ", ".join(f"{cap} is {value}" for cap, value in values.items())
    if all(values.values()):
        return Finding(Health.PASS, shown)
    return Finding(Health.FAIL, shown, "this kernel has no MSR filter: take 5.10 or newer")


def _sync_regs() -> Finding:
    from vmm.kvm import Kvm

    with Kvm() as kvm:
        fields = kvm.check_extension(KVM_CAP_SYNC_REGS)
    if fields & KVM_SYNC_X86_REGS:
        return Finding(Health.PASS, f"KVM_CAP_SYNC_REGS is {fields:#x}")
    return Finding(
        Health.FAIL, f"KVM_CAP_SYNC_REGS is {fields:#x}", "take a kernel that has it (4.17)"
    )


def _guest() -> Finding:
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
        return Finding(
            Health.PASS, "a guest ran: its denied RDMSR exited, was answered, and it halted"
        )
    fact = f"the guest did {denied or 'not exit in time'}, then {halted or 'not halt in time'}"
    return Finding(Health.FAIL, fact, "this kernel runs no guest as it should: see its log (dmesg)")


def _kvm_parameter(name: str) -> str | None:
    parameters: Any = facts()["parameters"]
    value: str | None = parameters.get("kvm", {}).get(name)
    return value


def _ignore_msrs() -> Finding:
    match _kvm_parameter("ignore_msrs"):
        case None:
            return Finding(Health.WARN, "cannot be read", "with 1, UNKNOWN exits would not happen")
        case "N" | "0":
            return Finding(Health.PASS, "off")
    remedy = "echo 0 > /sys/module/kvm/parameters/ignore_msrs"
    return Finding(Health.WARN, "on: cases that need UNKNOWN exits are skipped", remedy)


def _forced_emulation() -> Finding:
    value = _kvm_parameter("force_emulation_prefix")
    if value not in (None, "0", "N"):
        return Finding(Health.PASS, f"force_emulation_prefix is {value}")
    remedy = "load kvm with force_emulation_prefix=1 (kvm.force_emulation_prefix=1 at boot)"
    return Finding(Health.WARN, "off: the emulator's own accesses are not tested", remedy)


def _kernel_log() -> Finding:
    from vmm.conformance.host.klog import KernelLog

    log = KernelLog.open_or_reason()
    if isinstance(log, str):
        mend = "run as root, or sysctl kernel.dmesg_restrict=0"
        mend = containers.KMSG if containers.KMSG in log else mend
        remedy = f"{mend}; splats go unseen otherwise"
        return Finding(Health.WARN, log, remedy)
    log.close()
    return Finding(Health.PASS, "/dev/kmsg can be read: splats fail the case they fall in")


def _userfaultfd() -> Finding:
    tries = {"the system call": _uffd_by_syscall, "/dev/userfaultfd": _uffd_by_device}
    answers = {name: _attempt(way) for name, way in tries.items()}
    shown = "; ".join(f"{name}: {why or 'allowed'}" for name, why in answers.items())
    if "" in answers.values():
        return Finding(Health.PASS, f"{shown}; {_uffd_sysctl()}")
    remedy = "run as root, give access to /dev/userfaultfd, or sysctl vm.unprivileged_userfaultfd=1"
    remedy = remedy if os.geteuid() else containers.USERFAULTFD
    return Finding(Health.WARN, f"races are not tested: {shown}; {_uffd_sysctl()}", remedy)


def _uffd_by_syscall() -> int:
    import ctypes

    flags = os.O_CLOEXEC | os.O_NONBLOCK  # without UFFD_USER_MODE_ONLY: the kernel itself faults
    libc = ctypes.CDLL(None, use_errno=True)
    fd: int = libc.syscall(ctypes.c_long(SYS_USERFAULTFD), ctypes.c_int(flags))
    if fd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return fd


def _uffd_by_device() -> int:
    import fcntl

    device = os.open("/dev/userfaultfd", os.O_RDWR | os.O_CLOEXEC)
    try:
        return fcntl.ioctl(device, USERFAULTFD_IOC_NEW, os.O_CLOEXEC | os.O_NONBLOCK)
    finally:
        os.close(device)


def _attempt(way: Callable[[], int]) -> str:
    try:
        os.close(way())
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _uffd_sysctl() -> str:
    try:
        return f"vm.unprivileged_userfaultfd is {UFFD_SYSCTL.read_text().strip()}"
    except OSError as error:
        return f"vm.unprivileged_userfaultfd: {error.strerror}"


def _cpus() -> Finding:
    usable = len(os.sched_getaffinity(0))
    if usable > 1:
        return Finding(Health.PASS, f"{usable} usable")
    return Finding(
        Health.WARN, "1 usable: vCPUs never run at the same time", "widen the CPU affinity"
    )


def _load() -> Finding:
    from vmm.conformance.host import processes

    cpus, load = len(os.sched_getaffinity(0)), processes.load()
    text = f"load {load:.1f} on {cpus} usable CPUs"
    if load <= cpus:
        return Finding(Health.PASS, text)
    return Finding(Health.WARN, text, "wait, or give each case longer with --timeout")


def _kvm_users() -> Finding:
    from vmm.conformance.host import processes

    users, hidden = processes.kvm_users()
    unseen = f"; {hidden} processes cannot be looked at" if hidden else ""
    if not users:
        return Finding(Health.PASS, f"nobody else{unseen}")
    shown = ", ".join(f"{user.name} ({user.pid}, VMs: {user.vms})" for user in users[:4])
    more = f" and {len(users) - 4} more" if len(users) > 4 else ""
    remedy = "their splats and taint show in this run, and they take CPU time: end them if you can"
    return Finding(Health.WARN, f"{shown}{more}{unseen}", remedy)


def _taint() -> Finding:
    taint: Any = facts()["taint"]
    if taint is None:
        return Finding(Health.WARN, "cannot be read", "mount /proc")
    if not taint:
        return Finding(Health.PASS, "not tainted")
    letters = taint_letters(taint)
    remedy = "see tainted-kernels.rst; a W or D is an earlier splat: reboot before you trust a run"
    return Finding(Health.WARN, f"tainted: {letters} ({taint})", remedy)


CHECKS: Iterable[tuple[str, Callable[[], Finding]]] = (
    ("machine", _machine),
    ("kernel", _kernel),
    ("/dev/kvm", _device),
    ("vendor module", _vendor_module),
    ("platform", _platform),
    ("capabilities", _capabilities),
    ("sync regs", _sync_regs),
    ("guest", _guest),
    ("ignore_msrs", _ignore_msrs),
    ("forced emulation", _forced_emulation),
    ("kernel log", _kernel_log),
    ("userfaultfd", _userfaultfd),
    ("CPUs", _cpus),
    ("load", _load),
    ("users of /dev/kvm", _kvm_users),
    ("taint", _taint),
)
