"""What scripts need of a host, found by doing it: a capability that is reported may still fail.

Each probe returns None where the host has it, else why not, with what to do about it.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

from vmm._native import ffi, lib
from vmm.conformance.host import containers
from vmm.conformance.host.facts import facts
from vmm.conformance.host.limits import raise_if_exhausted
from vmm.conformance.host.memory_cgroup import no_memory_cgroup
from vmm.conformance.language.script import DISABLE_EXITS, KVM_CAP_X86_DISABLE_EXITS, XEN_INTERCEPT
from vmm.errors import KvmError
from vmm.kvm import Kvm
from vmm.msr import Msr
from vmm.nested.l1 import vendor_of
from vmm.nested.state import KVM_CAP_NESTED_STATE
from vmm.uffd import Userfaultfd

Probe = Callable[[Kvm], str | None]


def no_irqchip(kvm: Kvm) -> str | None:
    """Try to make the in-kernel irqchip, whole or split, in a VM of its own."""
    with kvm.create_vm() as vm:
        try:
            vm.create_any_irqchip()
        except KvmError as error:
            raise_if_exhausted(error)
            return f"no in-kernel irqchip: {error}"
    return None


def no_second_vcpu(kvm: Kvm) -> str | None:
    """Try to make two vCPUs in a VM of their own."""
    with kvm.create_vm() as vm:
        try:
            for vcpu_id in range(2):
                vm.create_vcpu(vcpu_id).close()
        except KvmError as error:
            raise_if_exhausted(error)
            busy = error.errno == errno.EBUSY
            hint = "; a mediated PMU and a perf event are at odds: end the perf" if busy else ""
            return f"a second vCPU cannot be made: {error}{hint}"
    return None


def no_userfaultfd(_: Kvm) -> str | None:
    """Try to get a userfaultfd that sees the kernel's own faults."""
    try:
        Userfaultfd().close()
    except KvmError as error:
        raise_if_exhausted(error)
        hint = "run as root" if os.geteuid() else containers.USERFAULTFD
        return f"userfaultfd for the kernel's own faults: {error.strerror}; {hint}"
    return None


def no_compat(kvm: Kvm) -> str | None:
    """Try ``int $0x80``; without ia32 emulation it is a fault, which only a child can take."""
    number = lib.KVM_GET_API_VERSION
    ended = lib.mw_ioctl_in_child(kvm.fd, number, 0, True)
    if ended < 0:
        raise KvmError(-ended, "fork")
    if os.WIFEXITED(ended) and lib.mw_ioctl_compat(kvm.fd, number, 0) == lib.KVM_API_VERSION:
        return None
    if os.WIFSIGNALED(ended) and os.WTERMSIG(ended) == signal.SIGSEGV:
        return "compat syscalls: this kernel has no ia32 emulation"
    return "compat syscalls: int $0x80 is refused here, as a seccomp profile does"


_TASK_HINTS = {
    errno.EACCES: "; a program with file capabilities may not look at itself: run as root",
    errno.ENOENT: "; this /proc is of another PID namespace: mount one of ours",
}


def no_task_syscall(_: Kvm, tasks: Path = Path("/proc/self/task")) -> str | None:
    """Try to read in which system call a thread of ours sleeps: only so is ``blocked`` seen."""
    try:
        (tasks / str(threading.get_native_id()) / "syscall").read_bytes()
    except OSError as error:
        raise_if_exhausted(error)
        return f"{tasks}/*/syscall: {error.strerror}{_TASK_HINTS.get(error.errno or 0, '')}"
    return None


def no_smm(kvm: Kvm) -> str | None:
    """Ask for ``KVM_CAP_X86_SMM``: without it ``KVM_SMI`` is no ioctl."""
    if kvm.check_extension(lib.KVM_CAP_X86_SMM):
        return None
    return "no SMM: this kernel is built without CONFIG_KVM_SMM, or its KVM module has none"


def no_one_reg(kvm: Kvm) -> str | None:
    """Ask for ``KVM_CAP_ONE_REG``, by which 6.18 and later name MSRs one at a time."""
    return None if kvm.check_extension(lib.KVM_CAP_ONE_REG) else "no KVM_GET_ONE_REG before 6.18"


def no_xen_hvm(kvm: Kvm, flags: int = 0) -> str | None:
    """Ask for ``KVM_CAP_XEN_HVM``, and try to give a VM an MSR for pages of hypercalls."""
    if not kvm.check_extension(lib.KVM_CAP_XEN_HVM):
        return "no KVM_XEN_HVM_CONFIG: this kernel is built without CONFIG_KVM_XEN, or has none"
    with kvm.create_vm() as vm:
        config = {"flags": flags, "msr": Msr.XEN_HYPERCALL}
        try:
            vm.xen_hvm_config(ffi.new("struct kvm_xen_hvm_config *", config))
        except KvmError as error:
            raise_if_exhausted(error)
            return f"KVM_XEN_HVM_CONFIG with flags {flags}: {error}"
    return None


def no_xen_intercept(kvm: Kvm) -> str | None:
    """Try to have KVM make pages of hypercalls itself, as from 5.12 on."""
    return no_xen_hvm(kvm, XEN_INTERCEPT)


def no_disable_exits(bit: int) -> Probe:
    """Return the probe of one thing that a guest may be let do without an exit."""

    def probe(kvm: Kvm) -> str | None:
        offered = kvm.check_extension(KVM_CAP_X86_DISABLE_EXITS)
        return (
            None
            if offered & bit
            else f"KVM_CAP_X86_DISABLE_EXITS offers {offered:#x}, not {bit:#x}"
        )

    return probe


def no_cpuid(leaf: int, index: int, register: str, bits: int, name: str) -> Probe:
    """Return the probe of a CPUID feature that KVM offers guests."""

    def probe(kvm: Kvm) -> str | None:
        cpuid = kvm.get_supported_cpuid()
        entries = [
            e for e in cpuid.entries[0 : cpuid.nent] if (e.function, e.index) == (leaf, index)
        ]
        has = any(getattr(entry, register) & bits for entry in entries)
        return None if has else f"KVM_GET_SUPPORTED_CPUID has no {name}"

    return probe


def no_mediated_pmu(_: Kvm, modules: Path = Path("/sys/module")) -> str | None:
    """Look whether a guest's counters can be the hardware's own (7.0 on)."""
    for module in ("kvm_intel", "kvm_amd"):
        try:
            said = (modules / module / "parameters/enable_mediated_pmu").read_text().strip()
        except OSError:
            continue
        if said in ("Y", "1"):
            return None
    return "no kvm_intel or kvm_amd here has enable_mediated_pmu=1"


def no_nested(kvm: Kvm) -> str | None:
    """Look whether a guest's CPUID may have SVM or VMX."""
    return None if vendor_of(kvm) else _why_not_nested()


def no_nested_state(kvm: Kvm) -> str | None:
    """Look whether guests can nest and ask for ``KVM_CAP_NESTED_STATE``."""
    if lack := no_nested(kvm):
        return lack
    return None if kvm.check_extension(KVM_CAP_NESTED_STATE) else "no KVM_GET_NESTED_STATE"


def no_nested_svm(kvm: Kvm) -> str | None:
    """Look whether a guest's CPUID may have SVM."""
    return None if vendor_of(kvm) == "svm" else "guests have no SVM here"


def no_nested_vmx(kvm: Kvm) -> str | None:
    """Look whether a guest's CPUID may have VMX."""
    return None if vendor_of(kvm) == "vmx" else "guests have no VMX here"


def _why_not_nested() -> str:
    known = facts()
    module, parameters = known["vendor_module"] or "kvm", known["parameters"]
    given = parameters.get(module, {}) if isinstance(parameters, dict) else {}
    if given.get("nested") in ("0", "N"):
        return f"{module}.nested is {given['nested']}: load {module} with nested=1"
    return f"{module} offers its guests neither SVM nor VMX"


CPUID = {
    "rdtscp": (0x8000_0001, 0, "edx", 1 << 27),
    "rdpid": (7, 0, "ecx", 1 << 22),
    "fsgsbase": (7, 0, "ebx", 1),
    "xsaves": (0xD, 1, "eax", 1 << 3),
    "sep": (1, 0, "edx", 1 << 11),
}
"""Instructions by leaf, subleaf, register and bit of CPUID."""

PROBES: dict[str, Probe] = {
    "vcpus": no_second_vcpu,
    "userfaultfd": no_userfaultfd,
    "compat": no_compat,
    "task_syscall": no_task_syscall,
    "smm": no_smm,
    **{name: no_cpuid(*at, name) for name, at in CPUID.items()},
    "single_step": lambda _: None,
    "upper_rcx": lambda _: None,
    "emulated_shadow": lambda _: None,
    **{f"disable_exits_{name}": no_disable_exits(bit) for name, bit in DISABLE_EXITS.items()},
    "one_reg": no_one_reg,
    "xen_hvm": no_xen_hvm,
    "xen_intercept": no_xen_intercept,
    "memory_cgroup": no_memory_cgroup,
    "shstk": no_cpuid(7, 0, "ecx", 1 << 7, "SHSTK"),
    "mediated_pmu": no_mediated_pmu,
    "nested": no_nested,
    "nested_state": no_nested_state,
    "nested_svm": no_nested_svm,
    "nested_vmx": no_nested_vmx,
}
"""The probe of each need that no guest must run for (``kernel.backend`` has the others)."""
