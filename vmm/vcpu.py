"""A vCPU: run it, answer its exits, read and set its state."""

from __future__ import annotations

import errno
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from vmm import structs
from vmm._entry import BUSY, GONE, NOT_PENDING, Entry
from vmm._native import ffi, lib
from vmm.decode import RDMSR, WRMSR, MsrExits, exit_of
from vmm.errors import Busy, KvmError
from vmm.exits import Exit, RdmsrExit, WrmsrExit
from vmm.ioctl import KvmFile, fits, struct_of
from vmm.kicks import allow_kicks, send_kick, tid_of


class Vcpu(Entry, KvmFile):
    """A vCPU, made by ``Vm.create_vcpu`` (or a guest's ``boot``)."""

    def __init__(self, fd: int, vcpu_id: int, run_size: int) -> None:
        """Take over ``fd`` and map its ``kvm_run`` area of ``run_size`` bytes."""
        self.vcpu_id, self._run_size = vcpu_id, run_size
        self.memories: object = None  # what the VM gave the guest: kept while this can run
        flags = lib.PROT_READ | lib.PROT_WRITE
        self._area = lib.mmap(ffi.NULL, run_size, flags, lib.MAP_SHARED, fd, 0)
        if int(ffi.cast("uintptr_t", self._area)) == 2**64 - 1:
            raise KvmError(ffi.errno, "mmap", "kvm_run")
        # The addresses stay taken until nobody can use them: a closed kvm_run is zeroes.
        self._area = ffi.gc(self._area, lambda at: lib.munmap(at, run_size))
        self.fd, self._pid = fd, os.getpid()
        self.kvm_run: Any = ffi.cast("struct kvm_run *", self._area)
        self._open(fd, int(ffi.cast("uintptr_t", self._area)))
        self._reads, self._writes = MsrExits(RdmsrExit), MsrExits(WrmsrExit)

    # --- running: run and reply are Entry's ---------------------------------------------------

    def fail(self, error: int = 1) -> None:
        """Answer an MSR exit: the access raises #GP at the next run (R61)."""
        self._must_be_open("fail")
        self.kvm_run.msr.error = fits("fail: error", error, 8)

    def kick(self, thread: int) -> None:
        """Make ``run`` in ``thread`` (``threading.get_ident()``) return EINTR, now or at once.

        ``ValueError`` for a thread that is none of ``threading``'s, or that has ended.
        """
        self._must_be_open("kick")
        self._kick(tid_of(thread))

    def run_for(self, seconds: float, reply: int | None = None, fail: bool = False) -> Exit | None:
        """Run for at most ``seconds``; None if the guest had not exited by itself by then."""
        if not (math.isfinite(seconds) and 0 <= seconds <= threading.TIMEOUT_MAX):
            raise ValueError(f"run_for: a finite number of seconds from 0 up, not {seconds}")
        self._must_be_open("KVM_RUN")
        timer = threading.Timer(seconds, self._kick, [threading.get_native_id()])
        timer.start()
        try:
            return self.run(reply, fail)
        except KvmError as error:
            if error.errno != errno.EINTR:
                raise
            return None
        finally:
            timer.cancel()
            timer.join()
            self.kvm_run.immediate_exit = 0

    # --- state ------------------------------------------------------------------------------

    def get_regs(self) -> Any:
        """Return ``struct kvm_regs`` (a copy)."""
        return self._get("struct kvm_regs *", "KVM_GET_REGS")

    def set_regs(self, regs: Any) -> None:
        """Set ``struct kvm_regs``."""
        self._set("struct kvm_regs", regs, "KVM_SET_REGS")

    def get_sregs(self) -> Any:
        """Return ``struct kvm_sregs`` (a copy)."""
        return self._get("struct kvm_sregs *", "KVM_GET_SREGS")

    def set_sregs(self, sregs: Any) -> None:
        """Set ``struct kvm_sregs``."""
        self._set("struct kvm_sregs", sregs, "KVM_SET_SREGS")

    def get_vcpu_events(self) -> Any:
        """Return ``struct kvm_vcpu_events`` (a copy): pending exceptions, interrupts, shadow."""
        return self._get("struct kvm_vcpu_events *", "KVM_GET_VCPU_EVENTS")

    def set_vcpu_events(self, events: Any) -> None:
        """Set ``struct kvm_vcpu_events``."""
        self._set("struct kvm_vcpu_events", events, "KVM_SET_VCPU_EVENTS")

    def get_mp_state(self) -> int:
        """Return ``KVM_MP_STATE_*``."""
        return int(self._get("struct kvm_mp_state *", "KVM_GET_MP_STATE").mp_state)

    def set_mp_state(self, state: int) -> None:
        """Set ``KVM_MP_STATE_*``."""
        request = ffi.new("struct kvm_mp_state *", {"mp_state": fits("mp_state", state, 32)})
        self.pointed(lib.KVM_SET_MP_STATE, request, "KVM_SET_MP_STATE")

    def smi(self) -> None:
        """Have the vCPU enter SMM before its next instruction (``KVM_SMI``, api.rst 4.96)."""
        self.ioctl(lib.KVM_SMI, 0, "KVM_SMI")

    def get_lapic(self) -> Any:
        """Return ``struct kvm_lapic_state`` (a copy) of a vCPU with an in-kernel APIC."""
        return self._get("struct kvm_lapic_state *", "KVM_GET_LAPIC")

    def set_lapic(self, lapic: Any) -> None:
        """Set ``struct kvm_lapic_state``."""
        self._set("struct kvm_lapic_state", lapic, "KVM_SET_LAPIC")

    def nmi(self) -> None:
        """Queue a non-maskable interrupt (``KVM_NMI``, api.rst 4.64)."""
        self.ioctl(lib.KVM_NMI, 0, "KVM_NMI")

    def interrupt(self, vector: int) -> None:
        """Queue an interrupt (``KVM_INTERRUPT``, api.rst 4.16); ENXIO behind an in-kernel PIC."""
        request = ffi.new("struct kvm_interrupt *", {"irq": fits("vector", vector, 32)})
        self.pointed(lib.KVM_INTERRUPT, request, "KVM_INTERRUPT")

    def get_debugregs(self) -> Any:
        """Return ``struct kvm_debugregs`` (a copy)."""
        return self._get("struct kvm_debugregs *", "KVM_GET_DEBUGREGS")

    def set_debugregs(self, debugregs: Any) -> None:
        """Set ``struct kvm_debugregs``."""
        self._set("struct kvm_debugregs", debugregs, "KVM_SET_DEBUGREGS")

    def get_xcrs(self) -> Any:
        """Return ``struct kvm_xcrs`` (a copy)."""
        return self._get("struct kvm_xcrs *", "KVM_GET_XCRS")

    def set_xcrs(self, xcrs: Any) -> None:
        """Set ``struct kvm_xcrs``."""
        self._set("struct kvm_xcrs", xcrs, "KVM_SET_XCRS")

    def get_xsave(self) -> Any:
        """Return ``struct kvm_xsave`` (a copy): 4 KiB as XSAVE lays them out (api.rst 4.42)."""
        return self._get("struct kvm_xsave *", "KVM_GET_XSAVE")

    def set_xsave(self, xsave: Any) -> None:
        """Set ``struct kvm_xsave``."""
        self._set("struct kvm_xsave", xsave, "KVM_SET_XSAVE")

    def get_fpu(self) -> Any:
        """Return ``struct kvm_fpu`` (a copy)."""
        return self._get("struct kvm_fpu *", "KVM_GET_FPU")

    def set_fpu(self, fpu: Any) -> None:
        """Set ``struct kvm_fpu``."""
        self._set("struct kvm_fpu", fpu, "KVM_SET_FPU")

    def get_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """Return the values of the MSRs up to the first that this host refuses."""
        msrs = structs.msr_table(dict.fromkeys(indices, 0))
        count = self.pointed(lib.KVM_GET_MSRS, msrs, "KVM_GET_MSRS")
        return {entry.index: entry.data for entry in msrs.entries[0:count]}

    def set_msrs(self, values: dict[int, int]) -> int:
        """Set MSRs in order; return how many were set before the first that was refused."""
        return self.pointed(lib.KVM_SET_MSRS, structs.msr_table(values), "KVM_SET_MSRS")

    def get_msr_by_one_reg(self, index: int) -> int:
        """Return an MSR's value (``KVM_GET_ONE_REG``, api.rst 4.69; 6.18 on)."""
        value = ffi.new("uint64_t *")
        register = structs.msr_register(index, value)
        self.pointed(lib.KVM_GET_ONE_REG, register, "KVM_GET_ONE_REG")
        return int(value[0])

    def set_msr_by_one_reg(self, index: int, data: int) -> None:
        """Set an MSR (``KVM_SET_ONE_REG``, api.rst 4.68; 6.18 on)."""
        value = ffi.new("uint64_t *", fits("data", data, 64))
        register = structs.msr_register(index, value)
        self.pointed(lib.KVM_SET_ONE_REG, register, "KVM_SET_ONE_REG")

    def get_nested_state(self) -> bytes:
        """Return ``struct kvm_nested_state`` with its data (api.rst 4.114)."""
        room = structs.nested_state_room()
        self.pointed(structs.KVM_GET_NESTED_STATE, room, "KVM_GET_NESTED_STATE")
        return structs.nested_state_in(room)

    def set_nested_state(self, state: bytes) -> None:
        """Set what ``get_nested_state`` returned, on this vCPU or another (api.rst 4.115)."""
        copy = structs.nested_state(state)
        self.pointed(structs.KVM_SET_NESTED_STATE, copy, "KVM_SET_NESTED_STATE")

    def set_cpuid2(self, cpuid: Any) -> None:
        """Set the guest's CPUID (``struct kvm_cpuid2``)."""
        self.pointed(lib.KVM_SET_CPUID2, structs.whole_cpuid(cpuid), "KVM_SET_CPUID2")

    def get_cpuid2(self) -> Any:
        """Return the guest's CPUID (``struct kvm_cpuid2``)."""
        cpuid = structs.cpuid_room()
        self.pointed(lib.KVM_GET_CPUID2, cpuid, "KVM_GET_CPUID2")
        return structs.cut_cpuid(cpuid)

    def set_guest_debug(self, control: int) -> None:
        """Set ``KVM_GUESTDBG_*``; 0 turns guest debugging off."""
        request = ffi.new("struct kvm_guest_debug *", {"control": fits("control", control, 32)})
        self.pointed(lib.KVM_SET_GUEST_DEBUG, request, "KVM_SET_GUEST_DEBUG")

    def set_signal_mask(self, blocked: Iterable[int] | None) -> None:
        """Block exactly these signals during ``KVM_RUN``; None restores the thread's own mask."""
        if blocked is None:
            self.ioctl(lib.KVM_SET_SIGNAL_MASK, 0, "KVM_SET_SIGNAL_MASK")
            return
        mask = structs.signal_mask(blocked)
        self.pointed(lib.KVM_SET_SIGNAL_MASK, mask, "KVM_SET_SIGNAL_MASK")

    def sync_regs(self) -> Any:
        """Return ``kvm_run.s.regs.regs``: valid after a run with ``kvm_valid_regs`` set."""
        self._must_be_open("sync_regs")
        return lib.mw_sync_regs(self._area)

    def close(self) -> None:
        """Take ``kvm_run`` away and close the descriptor; a thread in ``run`` gets ``Closed``."""
        is_open = self.fd >= 0
        super().close()
        if is_open:
            lib.mw_blank(self._area, self._run_size)

    def entered(self) -> AbstractContextManager[None]:
        """Within: this thread alone is in the vCPU, for native code that enters it by ``fd``.

        ``Busy`` while another thread is in it, ``Closed`` once it is closed.
        """
        self._must_be_open("KVM_RUN")
        return self._claimed()

    @contextmanager
    def _claimed(self) -> Iterator[None]:
        claimed = self._claim()
        if claimed < 0:
            raise self._unclaimed(claimed, "KVM_RUN")
        try:
            yield
        finally:
            if self._unclaim():
                self._let_go()

    # --- inside -----------------------------------------------------------------------------

    def _send(self, send: Callable[..., int], number: int, arg: int, name: str) -> int:
        # The kernel lets one thread into a vCPU; a second would wait until the guest exits.
        claimed = self._claim()
        if claimed < 0:
            raise self._unclaimed(claimed, name)
        try:
            return super()._send(send, number, arg, name)
        finally:
            if self._unclaim():
                self._let_go()

    def _retire(self) -> int:
        return self._retire_entry() + self._users

    def _interrupt(self) -> None:
        self._kick(self._thread())
        super()._interrupt()

    def _kick(self, tid: int) -> None:
        allow_kicks()
        self.kvm_run.immediate_exit = 1
        send_kick(tid)

    def _unclaimed(self, reason: int, name: str) -> KvmError:
        if reason == -errno.EBADF:
            return self._closed(name)
        return Busy(errno.EBUSY, name, "another thread is in this vCPU: kick it, or wait")

    def _set(self, kind: str, value: Any, name: str) -> None:
        self.pointed(getattr(lib, name), struct_of(kind, value, name), name)

    def _get(self, struct: str, name: str) -> Any:
        value = ffi.new(struct)
        self.pointed(getattr(lib, name), value, name)
        return value

    def _decode(self, reason: int, msr: bytes) -> Exit:
        if reason == RDMSR:
            return self._reads[msr]
        if reason == WRMSR:
            return self._writes[msr]
        if reason < 0:
            raise self._ended(reason)
        return exit_of(reason, self.kvm_run)

    def _ended(self, reason: int) -> Exception:
        if reason == NOT_PENDING:
            return ValueError("run(reply=...) or run(fail=True): no MSR exit waits for an answer")
        if reason == GONE:  # closed while it ran: this thread was the last in it
            self._let_go()
            return self._closed("KVM_RUN")
        if reason in (BUSY, -errno.EBADF):
            return self._unclaimed(reason, "KVM_RUN")
        return self._refusal(-reason, "KVM_RUN")
