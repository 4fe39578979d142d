"""A vCPU: run it, answer its exits, read and set its state."""

from __future__ import annotations

import errno
import signal
import struct
import threading
from collections.abc import Callable, Iterable
from typing import Any

from vmm._native import ffi, lib
from vmm.errors import KvmError
from vmm.exits import (
    DebugExit,
    Exit,
    FailEntryExit,
    HltExit,
    InternalErrorExit,
    IoExit,
    MmioExit,
    OtherExit,
    RdmsrExit,
    ShutdownExit,
    WrmsrExit,
)
from vmm.ioctl import KvmFile
from vmm.msr import MsrExitReason

KICK = signal.SIGUSR1
RDMSR, WRMSR = lib.KVM_EXIT_X86_RDMSR, lib.KVM_EXIT_X86_WRMSR
IO = lib.KVM_EXIT_IO
MSR = struct.Struct("<QIIQ")
"""``kvm_run.msr``, at byte 32 (words 4 to 6): error and pad, reason, index, data."""

_enter, _reply, _fail, _WHOLE = lib.mw_enter, lib.mw_reply, lib.mw_fail, slice(None)
_KNOWN = lib.MW_KNOWN


class Vcpu(KvmFile):
    """A vCPU, made by ``Vm.create_vcpu`` (or a guest's ``boot``)."""

    def __init__(self, fd: int, vcpu_id: int, run_size: int) -> None:
        """Take over ``fd`` and map its ``kvm_run`` area of ``run_size`` bytes."""
        self.vcpu_id, self._run_size = vcpu_id, run_size
        flags = lib.PROT_READ | lib.PROT_WRITE
        self._area = lib.mmap(ffi.NULL, run_size, flags, lib.MAP_SHARED, fd, 0)
        if int(ffi.cast("uintptr_t", self._area)) == 2**64 - 1:
            raise KvmError(ffi.errno, "mmap", "kvm_run")
        self.fd = fd
        self.kvm_run: Any = ffi.cast("struct kvm_run *", self._area)
        self._use(fd)

    # --- running ----------------------------------------------------------------------------

    def run(self, reply: int | None = None, fail: bool = False) -> Exit:
        """Answer the pending MSR exit, if told how, and enter the guest until its next exit.

        ``reply`` lets the access succeed (a RDMSR with that value), ``fail`` has it raise #GP; with
        neither, what ``self.reply`` or ``self.fail`` left counts. ``KvmError`` with EINTR for a
        signal or a kick; ``ValueError``, the guest not entered, for both or without an exit.
        """
        if reply is not None and not fail:
            reason = _reply(self._entry, reply)
        elif reply is None:
            reason = (_fail if fail else _enter)(self._entry)
        else:
            raise ValueError("run(reply=..., fail=True): an access has one answer only")
        return self._known if reason == _KNOWN else self._decode(reason)

    def reply(self, data: int = 0) -> None:
        """Answer an MSR exit: the access succeeds at the next run, a RDMSR with ``data``."""
        words = self._words
        words[6] = data
        words[4] = 0

    def fail(self, error: int = 1) -> None:
        """Answer an MSR exit: the access raises #GP at the next run (R61)."""
        self.kvm_run.msr.error = error

    def kick(self, thread: int) -> None:
        """Make ``run`` in ``thread`` (``threading.get_ident()``) return EINTR, now or at once."""
        self.kvm_run.immediate_exit = 1
        signal.pthread_kill(thread, KICK)

    def run_for(self, seconds: float, reply: int | None = None, fail: bool = False) -> Exit | None:
        """Run for at most ``seconds``; None if the guest had not exited by itself by then."""
        allow_kicks()
        timer = threading.Timer(seconds, self.kick, [threading.get_ident()])
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
        self.pointed(lib.KVM_SET_REGS, regs, "KVM_SET_REGS")

    def get_sregs(self) -> Any:
        """Return ``struct kvm_sregs`` (a copy)."""
        return self._get("struct kvm_sregs *", "KVM_GET_SREGS")

    def set_sregs(self, sregs: Any) -> None:
        """Set ``struct kvm_sregs``."""
        self.pointed(lib.KVM_SET_SREGS, sregs, "KVM_SET_SREGS")

    def get_vcpu_events(self) -> Any:
        """Return ``struct kvm_vcpu_events`` (a copy): pending exceptions, interrupts, shadow."""
        return self._get("struct kvm_vcpu_events *", "KVM_GET_VCPU_EVENTS")

    def set_vcpu_events(self, events: Any) -> None:
        """Set ``struct kvm_vcpu_events``."""
        self.pointed(lib.KVM_SET_VCPU_EVENTS, events, "KVM_SET_VCPU_EVENTS")

    def get_mp_state(self) -> int:
        """Return ``KVM_MP_STATE_*``."""
        return int(self._get("struct kvm_mp_state *", "KVM_GET_MP_STATE").mp_state)

    def set_mp_state(self, state: int) -> None:
        """Set ``KVM_MP_STATE_*``."""
        request = ffi.new("struct kvm_mp_state *", {"mp_state": state})
        self.pointed(lib.KVM_SET_MP_STATE, request, "KVM_SET_MP_STATE")

    def get_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """Return the values of the MSRs up to the first that this host refuses."""
        msrs = msr_table(dict.fromkeys(indices, 0))
        count = self.pointed(lib.KVM_GET_MSRS, msrs, "KVM_GET_MSRS")
        return {entry.index: entry.data for entry in msrs.entries[0:count]}

    def set_msrs(self, values: dict[int, int]) -> int:
        """Set MSRs in order; return how many were set before the first that was refused."""
        return self.pointed(lib.KVM_SET_MSRS, msr_table(values), "KVM_SET_MSRS")

    def set_cpuid2(self, cpuid: Any) -> None:
        """Set the guest's CPUID (``struct kvm_cpuid2``)."""
        self.pointed(lib.KVM_SET_CPUID2, cpuid, "KVM_SET_CPUID2")

    def set_guest_debug(self, control: int) -> None:
        """Set ``KVM_GUESTDBG_*``; 0 turns guest debugging off."""
        request = ffi.new("struct kvm_guest_debug *", {"control": control})
        self.pointed(lib.KVM_SET_GUEST_DEBUG, request, "KVM_SET_GUEST_DEBUG")

    def set_signal_mask(self, blocked: Iterable[int] | None) -> None:
        """Block exactly these signals during ``KVM_RUN``; None restores the thread's own mask."""
        if blocked is None:
            self.ioctl(lib.KVM_SET_SIGNAL_MASK, 0, "KVM_SET_SIGNAL_MASK")
            return
        bits = sum(1 << (number - 1) for number in blocked)
        mask = ffi.new("uint8_t[]", (8).to_bytes(4, "little") + bits.to_bytes(8, "little"))
        self.pointed(lib.KVM_SET_SIGNAL_MASK, mask, "KVM_SET_SIGNAL_MASK")

    def sync_regs(self) -> Any:
        """Return ``kvm_run.s.regs.regs``: valid after a run with ``kvm_valid_regs`` set."""
        return lib.mw_sync_regs(self._area)

    def close(self) -> None:
        """Unmap ``kvm_run`` and close the descriptor."""
        if self.fd >= 0:
            lib.munmap(self._area, self._run_size)
            self._entry.fd = -1
        super().close()

    # --- inside -----------------------------------------------------------------------------

    def _get(self, struct: str, name: str) -> Any:
        value = ffi.new(struct)
        self.pointed(getattr(lib, name), value, name)
        return value

    def _use(self, fd: int) -> None:
        # What a run and a reply touch: on a CPU that comes back from a guest every cache is cold,
        # so each object more would be felt.
        self._entry: Any = ffi.new("struct mw_vcpu *", {"fd": fd, "run": self._area})
        self._words = memoryview(ffi.buffer(self._area, 64)).cast("Q")
        self._msr: Any = ffi.buffer(self._area + 32, MSR.size)
        self._reads: dict[bytes, RdmsrExit | WrmsrExit] = {}
        self._writes: dict[bytes, RdmsrExit | WrmsrExit] = {}
        self._last: Exit | None = None
        self._known: Any = None

    def _decode(self, reason: int) -> Exit:
        if reason == RDMSR:
            known = self._reads
        elif reason == WRMSR:
            known = self._writes
        elif reason >= 0:
            return EXITS.get(reason, self._other)(self.kvm_run)
        else:
            raise _refusal(reason)
        msr = self._msr[_WHOLE]
        exit_ = known.get(msr) or self._new_msr_exit(known, msr)
        if exit_ is self._last:
            self._expect(reason, msr, exit_)
        self._last = exit_
        return exit_

    def _expect(self, reason: int, msr: bytes, exit_: Exit) -> None:
        # The shim knows an exit that came twice in a row. A signal handler may raise between any
        # two of these lines: the shim must never know another exit than self._known.
        self._entry.known_reason = 0
        self._known = exit_
        ffi.memmove(self._entry.known, msr, len(msr))
        self._entry.known_reason = reason

    def _new_msr_exit(
        self, known: dict[bytes, RdmsrExit | WrmsrExit], msr: bytes
    ) -> RdmsrExit | WrmsrExit:
        # An exit is a value, so equal exits may be one object: a loop makes it once.
        kind = RdmsrExit if known is self._reads else WrmsrExit
        head, reason, index, data = MSR.unpack(msr)
        exit_ = kind(index, MsrExitReason(reason), data, head & 0xFF, head >> 8)
        if len(known) < 4096:
            known[msr] = exit_
        return exit_

    def _other(self, run: Any) -> Exit:
        return OtherExit(run.exit_reason)


def _refusal(reason: int) -> Exception:
    if reason == lib.MW_NOT_PENDING:
        return ValueError("run(reply=...) or run(fail=True): no MSR exit waits for an answer")
    return KvmError(-reason, "KVM_RUN")


def _io(run: Any) -> Exit:
    is_write = run.io.direction == lib.KVM_EXIT_IO_OUT
    at = ffi.cast("uint8_t *", run) + run.io.data_offset
    data = int.from_bytes(ffi.buffer(at, run.io.size), "little") if is_write else 0
    return IoExit(run.io.port, run.io.size, is_write, data)


def _mmio(run: Any) -> Exit:
    mmio = run.mmio
    data = int.from_bytes(bytes(mmio.data)[: mmio.len], "little") if mmio.is_write else 0
    return MmioExit(mmio.phys_addr, mmio.len, bool(mmio.is_write), data)


EXITS: dict[int, Callable[[Any], Exit]] = {
    lib.KVM_EXIT_HLT: lambda run: HltExit(),
    IO: _io,
    lib.KVM_EXIT_MMIO: _mmio,
    lib.KVM_EXIT_SHUTDOWN: lambda run: ShutdownExit(),
    lib.KVM_EXIT_FAIL_ENTRY: lambda run: FailEntryExit(
        run.fail_entry.hardware_entry_failure_reason
    ),
    lib.KVM_EXIT_INTERNAL_ERROR: lambda run: InternalErrorExit(run.internal.suberror),
    lib.KVM_EXIT_DEBUG: lambda run: DebugExit(
        run.debug.arch.exception, run.debug.arch.pc, run.debug.arch.dr6
    ),
}


def msr_table(values: dict[int, int]) -> Any:
    """Return ``struct kvm_msrs`` with these indices and values, in order."""
    msrs = ffi.new("struct kvm_msrs *", {"entries": len(values)})
    msrs.nmsrs = len(values)
    for entry, (index, data) in zip(msrs.entries[0 : len(values)], values.items(), strict=True):
        entry.index, entry.data = index, data
    return msrs


def allow_kicks() -> None:
    """Let ``KICK`` interrupt a run and do nothing else, in the whole process."""
    result = lib.mw_kick_handler(KICK)
    if result < 0:
        raise KvmError(-result, "sigaction")
