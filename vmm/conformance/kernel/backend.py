"""The kernel as a witness: runs a script on /dev/kvm and returns the trace."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from vmm._native import lib
from vmm.closing import Closing
from vmm.conformance.host.needs import PROBES, no_irqchip, no_nested
from vmm.conformance.host.parameters import ignores_msrs
from vmm.conformance.host.told import told_lacks
from vmm.conformance.kernel.effects import counter_of
from vmm.conformance.kernel.execution import Execution
from vmm.conformance.kernel.flight import DisturbedError
from vmm.conformance.kernel.pool import PooledVm
from vmm.conformance.language.lasting import needs_its_own_vm
from vmm.conformance.language.script import (
    Access,
    Fault,
    Returned,
    Script,
    Trace,
    Wrote,
    as_hyper_v,
    create_irqchip,
    create_vcpu,
    enter_l2,
    entered,
    execute,
    executed,
    gp,
    l1_exit,
    leave_l2,
    makes_vcpus,
    rdmsr,
    wrmsr,
)
from vmm.errors import KvmError
from vmm.kvm import Kvm, Vm
from vmm.msr import Msr
from vmm.nested.evmcs import KVM_CAP_HYPERV_ENLIGHTENED_VMCS
from vmm.nested.l1 import vendor_of

TRIES = 5
NOBODYS = 0x474F4F00
"""An MSR that no KVM knows."""
DB = 1
POOLED = 2
"""VMs in turns: an install right after another of the same VM waits 4-20 ms (docs/design.md)."""


class KvmBackend(Closing):
    """Runs scripts on this host's kernel, in pooled VMs. ``KvmError`` when it cannot be opened."""

    def __init__(self, path: str = "/dev/kvm") -> None:
        """Open the device; a kernel without ``KVM_CAP_SYNC_REGS`` cannot be driven (ENOTSUP)."""
        self.kvm = Kvm(path)
        if not self.kvm.check_extension(lib.KVM_CAP_SYNC_REGS) & lib.KVM_SYNC_X86_REGS:
            self.kvm.close()
            raise KvmError(errno.ENOTSUP, "KVM_CHECK_EXTENSION", "no KVM_CAP_SYNC_REGS")
        self._pool: deque[PooledVm] = deque()
        self._control: Vm | None = None
        self._lacks: dict[str, str | None] = {}

    def lacks(self, need: str) -> str | None:
        """Return why this host does not have what ``Case.needs`` names, or None when it has."""
        if need not in self._lacks:
            self._lacks[need] = told_lacks().get(need) or self._probe(need)
        return self._lacks[need]

    def _probe(self, need: str) -> str | None:
        if need in BY_A_GUEST:
            return BY_A_GUEST[need](self)
        if need in PROBES:
            return PROBES[need](self.kvm)
        return f"{need}: not known to this version"

    def run(self, script: Script, *, expected: Trace | None = None) -> Trace:
        """Return what was seen; the trace ends with ``Lost`` where the guest did.

        ``blocked`` and ``never`` say that something has not happened yet. At a step where
        ``expected`` has neither, they are said only after a longer wait: a machine that is slow
        must not look like a kernel that is wrong.

        A signal from outside that takes a parked vCPU out of the kernel (SIGSTOP, the freezer)
        makes the race another one: it is run anew, and ``flight.DisturbedError`` says that it was
        disturbed ``TRIES`` times.

        A thread that does not come back from the kernel is ``flight.StuckError``: the VM and the
        thread are left as they are, and the process is not fit for more.
        """
        for _ in range(TRIES - 1):
            with suppress(DisturbedError):
                return self._run(script, expected)
        return self._run(script, expected)

    def _run(self, script: Script, expected: Trace | None) -> Trace:
        vm = self._take(script)
        execution = Execution(vm, script, self._control_vm, expected)
        kept = False
        try:
            try:
                trace = tuple(execution.events())
            finally:
                execution.close()
            execution.race.flight.must_be_undisturbed()
            kept = execution.restore()
        finally:
            if kept:
                self._pool.append(execution.vm)
            else:
                execution.vm.close()
        return trace

    def close(self) -> None:
        """Destroy the VMs."""
        while self._pool:
            self._pool.popleft().close()
        if self._control:
            self._control.close()
        self.kvm.close()

    def _take(self, script: Script) -> PooledVm:
        own = needs_its_own_vm(script)
        if own or len(self._pool) < POOLED:
            vm = PooledVm(self.kvm, keep=not own)
            if not makes_vcpus(script):
                vm.create_vcpu(0)
            return vm
        vm = self._pool.popleft()
        vm.reset()
        return vm

    def _control_vm(self) -> Vm:
        if self._control is None:
            self._control = self.kvm.create_vm()
        return self._control


def _ignores_msrs(_: KvmBackend) -> str | None:
    return "kvm.ignore_msrs is 1: unknown MSRs succeed here" if ignores_msrs() else None


def _no_running_irqchip(backend: KvmBackend) -> str | None:
    """Have a guest run on its APIC: Bochs 3.0 refuses the VM entry where KVM has APICv."""
    if lack := no_irqchip(backend.kvm):
        return lack
    seen = backend.run((create_irqchip(), rdmsr(Msr.IA32_TSC)))
    if isinstance(seen[-1], Returned):
        return None
    return f"no vCPU with an in-kernel APIC runs, without a filter either: {seen[-1]!r}"


def _no_forced_emulation(backend: KvmBackend) -> str | None:
    # Without the parameter the prefix is an undefined instruction.
    seen = backend.run((rdmsr(Msr.IA32_TSC, emulated=True),))
    if isinstance(seen[-1], Returned):
        return None
    return "kvm.force_emulation_prefix is 0: load kvm with force_emulation_prefix=1"


def _no_state(msr: int, value: int, what: str) -> Callable[[KvmBackend], str | None]:
    """Return the probe that a guest's write of ``value`` counts: it is read again."""

    def probe(backend: KvmBackend) -> str | None:
        seen = backend.run((wrmsr(msr, value), rdmsr(msr)))
        return None if seen[-1] == Returned(value) else f"{what} cannot be turned on: {seen[-1]!r}"

    return probe


def _no_pmu(backend: KvmBackend) -> str | None:
    vm = PooledVm(backend.kvm, keep=False)
    try:
        if counter_of(vm.vcpu(0)):
            return None
    finally:
        vm.close()
    return "no PMU: this CPU, or its KVM for a guest, has no performance counters"


def _no_guest_tsc(backend: KvmBackend) -> str | None:
    if backend.run((execute("rdtsc", 0x1234),)) == (executed(0x1234),):
        return None
    return "guest_tsc: RDTSC does not show the TSC that KVM_SET_MSRS has set, without a filter too"


def _no_put_off_debug(backend: KvmBackend) -> str | None:
    # KVM's emulator, which executes all of a guest on some hosts, raises #DB behind MOV SS itself.
    access = rdmsr(Msr.STAR, single_step=True, after="mov_ss")
    if backend.run((access,)) == (Fault(DB, skew=2),):
        return None
    return "put_off_debug: MOV SS puts no #DB off here, without a filter too"


def _no_clean_bitmap(backend: KvmBackend) -> str | None:
    """Have an L1 lie: where KVM takes its word, an MSR passes that L1 no longer lets through."""
    if lack := no_nested(backend.kvm) or _no_evmcs(backend.kvm):
        return lack
    seen = backend.run(
        (
            *(create_vcpu(0), *as_hyper_v(), wrmsr(Msr.HV_GUEST_OS_ID, 1)),
            *(enter_l2(), leave_l2(), enter_l2(passes="none"), rdmsr(Msr.KERNEL_GS_BASE)),
            *(enter_l2(), leave_l2(), enter_l2(passes="none", clean=True)),
            rdmsr(Msr.KERNEL_GS_BASE),
        )
    )
    honest, _, _, entry, lying = (None, None, None, None, None, *seen)[-5:]
    is_l1s = l1_exit("rdmsr", Msr.KERNEL_GS_BASE)
    if honest == is_l1s and entry == entered and isinstance(lying, Returned):
        return None
    if honest == lying == is_l1s:
        return "clean_bitmap: KVM does not ask a Hyper-V guest which bitmap of MSRs is clean"
    return f"clean_bitmap: a Hyper-V guest that lies is as one that does not: {seen!r}"


def _no_evmcs(kvm: Kvm) -> str | None:
    has = vendor_of(kvm) == "svm" or kvm.check_extension(KVM_CAP_HYPERV_ENLIGHTENED_VMCS)
    return None if has else "clean_bitmap: KVM has no enlightened VMCS"


def _no_form(access: Access, name: str) -> Callable[[KvmBackend], str | None]:
    """Return the probe that an access which every KVM refuses is one, and no undefined opcode.

    ``KVM_GET_SUPPORTED_CPUID`` is not asked: what the CPU executes, a guest can execute.
    """

    def probe(backend: KvmBackend) -> str | None:
        seen = backend.run((access,))
        has = seen[-1] == gp or isinstance(seen[-1], Returned | Wrote)
        return None if has else f"{name}: this CPU, or its KVM, does not execute it: {seen[-1]!r}"

    return probe


BY_A_GUEST: dict[str, Callable[[KvmBackend], str | None]] = {
    "spec_ctrl": _no_state(Msr.IA32_SPEC_CTRL, 1, "SPEC_CTRL.IBRS"),
    "xfd": _no_state(Msr.IA32_XFD, 1 << 18, "XFD for AMX"),
    "lbr": _no_state(Msr.IA32_DEBUGCTLMSR, 1, "DEBUGCTL.LBR"),
    "pt": _no_state(Msr.IA32_RTIT_CTL, 1, "RTIT_CTL.TraceEn"),
    "no_ignore_msrs": _ignores_msrs,
    "irqchip": _no_running_irqchip,
    "force_emulation_prefix": _no_forced_emulation,
    "pmu": _no_pmu,
    "wrmsrns": _no_form(wrmsr(NOBODYS, 0, form="wrmsrns"), "WRMSRNS"),
    "msr_imm": _no_form(rdmsr(NOBODYS, form="immediate"), "RDMSR with an immediate"),
    "guest_tsc": _no_guest_tsc,
    "put_off_debug": _no_put_off_debug,
    "clean_bitmap": _no_clean_bitmap,
}
"""The probes of needs that take more than descriptors, beside those of ``host.needs``."""
