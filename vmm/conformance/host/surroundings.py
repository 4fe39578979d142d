"""What stands round a check on this host: its kernel, its CPUs, and who else is busy."""

from __future__ import annotations

import os
from typing import Any

from vmm.conformance.host import containers
from vmm.conformance.host.diagnosis import Diagnosis, Health
from vmm.conformance.host.facts import facts, taint_letters


def machine() -> Diagnosis:
    """Name the architecture."""
    machine = os.uname().machine
    if machine == "x86_64":
        return Diagnosis(Health.PASS, machine)
    return Diagnosis(Health.FAIL, machine, "the MSR filter exists on x86-64 alone")


def kernel() -> Diagnosis:
    """Name the kernel and the CPU."""
    known = facts()
    return Diagnosis(Health.PASS, f"{known['release']} {known['version']} on {known['cpu_model']}")


def kernel_log() -> Diagnosis:
    """Open the kernel log."""
    from vmm.conformance.host.klog import KernelLog

    log = KernelLog.open_or_reason()
    if isinstance(log, str):
        mend = "run as root, or sysctl kernel.dmesg_restrict=0"
        mend = containers.KMSG if containers.KMSG in log else mend
        remedy = f"{mend}; splats go unseen otherwise"
        return Diagnosis(Health.WARN, log, remedy)
    log.close()
    return Diagnosis(Health.PASS, "/dev/kmsg can be read: splats fail the case they fall in")


def cpus() -> Diagnosis:
    """Count the CPUs that we may use."""
    usable = len(os.sched_getaffinity(0))
    if usable > 1:
        return Diagnosis(Health.PASS, f"{usable} usable")
    return Diagnosis(
        Health.WARN, "1 usable: vCPUs never run at the same time", "widen the CPU affinity"
    )


def load() -> Diagnosis:
    """Hold the load against the CPUs."""
    from vmm.conformance.host import processes

    cpus, load = len(os.sched_getaffinity(0)), processes.load()
    text = f"load {load:.1f} on {cpus} usable CPUs"
    if load <= cpus:
        return Diagnosis(Health.PASS, text)
    return Diagnosis(Health.WARN, text, "wait, or give each case longer with --timeout")


def kvm_users() -> Diagnosis:
    """Name the other users of /dev/kvm."""
    from vmm.conformance.host import processes

    users, hidden = processes.kvm_users()
    unseen = f"; {hidden} processes cannot be looked at" if hidden else ""
    if not users:
        return Diagnosis(Health.PASS, f"nobody else{unseen}")
    shown = ", ".join(f"{user.name} ({user.pid}, VMs: {user.vms})" for user in users[:4])
    more = f" and {len(users) - 4} more" if len(users) > 4 else ""
    remedy = "their splats and taint show in this run, and they take CPU time: end them if you can"
    return Diagnosis(Health.WARN, f"{shown}{more}{unseen}", remedy)


def taint() -> Diagnosis:
    """Read what the kernel says it is tainted by."""
    taint: Any = facts()["taint"]
    if taint is None:
        return Diagnosis(Health.WARN, "cannot be read", "mount /proc")
    if not taint:
        return Diagnosis(Health.PASS, "not tainted")
    letters = taint_letters(taint)
    remedy = "see tainted-kernels.rst; a W or D is an earlier splat: reboot before you trust a run"
    return Diagnosis(Health.WARN, f"tainted: {letters} ({taint})", remedy)
