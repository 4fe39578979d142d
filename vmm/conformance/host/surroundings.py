"""What stands round a check on this host: its kernel, its CPUs, and who else is busy."""

from __future__ import annotations

import os
from typing import Any

from vmm.conformance.host import containers
from vmm.conformance.host.facts import facts, taint_letters
from vmm.conformance.host.finding import Finding, Health


def machine() -> Finding:
    """Name the architecture."""
    machine = os.uname().machine
    if machine == "x86_64":
        return Finding(Health.PASS, machine)
    return Finding(Health.FAIL, machine, "the MSR filter exists on x86-64 alone")


def kernel() -> Finding:
    """Name the kernel and the CPU."""
    known = facts()
    return Finding(Health.PASS, f"{known['release']} {known['version']} on {known['cpu_model']}")


def kernel_log() -> Finding:
    """Open the kernel log."""
    from vmm.conformance.host.klog import KernelLog

    log = KernelLog.open_or_reason()
    if isinstance(log, str):
        mend = "run as root, or sysctl kernel.dmesg_restrict=0"
        mend = containers.KMSG if containers.KMSG in log else mend
        remedy = f"{mend}; splats go unseen otherwise"
        return Finding(Health.WARN, log, remedy)
    log.close()
    return Finding(Health.PASS, "/dev/kmsg can be read: splats fail the case they fall in")


def cpus() -> Finding:
    """Count the CPUs that we may use."""
    usable = len(os.sched_getaffinity(0))
    if usable > 1:
        return Finding(Health.PASS, f"{usable} usable")
    return Finding(
        Health.WARN, "1 usable: vCPUs never run at the same time", "widen the CPU affinity"
    )


def load() -> Finding:
    """Hold the load against the CPUs."""
    from vmm.conformance.host import processes

    cpus, load = len(os.sched_getaffinity(0)), processes.load()
    text = f"load {load:.1f} on {cpus} usable CPUs"
    if load <= cpus:
        return Finding(Health.PASS, text)
    return Finding(Health.WARN, text, "wait, or give each case longer with --timeout")


def kvm_users() -> Finding:
    """Name the other users of /dev/kvm."""
    from vmm.conformance.host import processes

    users, hidden = processes.kvm_users()
    unseen = f"; {hidden} processes cannot be looked at" if hidden else ""
    if not users:
        return Finding(Health.PASS, f"nobody else{unseen}")
    shown = ", ".join(f"{user.name} ({user.pid}, VMs: {user.vms})" for user in users[:4])
    more = f" and {len(users) - 4} more" if len(users) > 4 else ""
    remedy = "their splats and taint show in this run, and they take CPU time: end them if you can"
    return Finding(Health.WARN, f"{shown}{more}{unseen}", remedy)


def taint() -> Finding:
    """Read what the kernel says it is tainted by."""
    taint: Any = facts()["taint"]
    if taint is None:
        return Finding(Health.WARN, "cannot be read", "mount /proc")
    if not taint:
        return Finding(Health.PASS, "not tainted")
    letters = taint_letters(taint)
    remedy = "see tainted-kernels.rst; a W or D is an earlier splat: reboot before you trust a run"
    return Finding(Health.WARN, f"tainted: {letters} ({taint})", remedy)
