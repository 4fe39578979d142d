"""What ``kvm_run`` says when KVM_RUN has returned, as the values of ``exits``."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from vmm._native import ffi, lib
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
from vmm.msr import MsrExitReason

RDMSR, WRMSR = lib.KVM_EXIT_X86_RDMSR, lib.KVM_EXIT_X86_WRMSR
IO = lib.KVM_EXIT_IO
MSR = struct.Struct("<QIIQ")
"""``kvm_run.msr``, at byte 32 (words 4 to 6): error and pad, reason, index, data."""
MOST_KEPT = 4096
"""Exits that a vCPU keeps of a kind."""


def _io(run: Any) -> Exit:
    is_write = run.io.direction == lib.KVM_EXIT_IO_OUT
    at = ffi.cast("uint8_t *", run) + run.io.data_offset
    data = int.from_bytes(ffi.buffer(at, run.io.size), "little") if is_write else 0
    return IoExit(run.io.port, run.io.size, is_write, data)


def _mmio(run: Any) -> Exit:
    mmio = run.mmio
    data = int.from_bytes(bytes(mmio.data)[: mmio.len], "little") if mmio.is_write else 0
    return MmioExit(mmio.phys_addr, mmio.len, bool(mmio.is_write), data)


class MsrExits(dict[bytes, Exit]):
    """The exits of one kind of MSR access, by ``kvm_run.msr``.

    An exit is a value, so equal exits may be one object: a loop makes it once.
    """

    def __init__(self, kind: type[RdmsrExit] | type[WrmsrExit]) -> None:
        """Make exits of this kind when they are asked for."""
        self.kind = kind

    def __missing__(self, msr: bytes) -> Exit:
        head, reason, index, data = MSR.unpack(msr)
        exit_ = self.kind(index, MsrExitReason(reason), data, head & 0xFF, head >> 8)
        if len(self) < MOST_KEPT:
            self[msr] = exit_
        return exit_


def exit_of(reason: int, run: Any) -> Exit:
    """Return what ``kvm_run`` says of an exit that is of no MSR."""
    return EXITS[reason](run) if reason in EXITS else OtherExit(run.exit_reason)


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
"""What makes a value of each reason, but for those of MSRs, which a vCPU keeps."""
