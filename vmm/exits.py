"""What ``Vcpu.run()`` returns: one frozen value for each exit reason (``struct kvm_run``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from vmm.bits import Bits, MsrIndex, u8, u64
from vmm.msr import MsrExitReason, msr_code


@dataclass(frozen=True, slots=True, repr=False)
class RdmsrExit:
    """``KVM_EXIT_X86_RDMSR``: the whole of ``kvm_run.msr`` at the exit.

    ``data``, ``error`` and ``pad`` (56 bits) are zero from a kernel that keeps R54 and R55.
    """

    index: MsrIndex
    reason: MsrExitReason
    data: u64 = 0
    error: u8 = 0
    pad: Annotated[int, Bits(56)] = 0

    def __repr__(self) -> str:
        """Return the exit as a case writes it."""
        return _msr_exit("RdmsrExit", self, f"data={_hex(self.data)}" if self.data else "")


@dataclass(frozen=True, slots=True, repr=False)
class WrmsrExit:
    """``KVM_EXIT_X86_WRMSR``: ``data`` is EDX:EAX; the rest as in ``RdmsrExit``."""

    index: MsrIndex
    reason: MsrExitReason
    data: u64
    error: u8 = 0
    pad: Annotated[int, Bits(56)] = 0

    def __repr__(self) -> str:
        """Return the exit as a case writes it."""
        return _msr_exit("WrmsrExit", self, _hex(self.data))


@dataclass(frozen=True, slots=True)
class HltExit:
    """``KVM_EXIT_HLT``: the guest halted (without an in-kernel interrupt controller)."""


@dataclass(frozen=True, slots=True)
class IoExit:
    """``KVM_EXIT_IO``: a port access; ``data`` is what an OUT wrote (0 for an IN)."""

    port: int
    size: int
    is_write: bool
    data: int = 0


@dataclass(frozen=True, slots=True)
class MmioExit:
    """``KVM_EXIT_MMIO``: an access to a guest-physical address that no memslot backs."""

    address: int
    size: int
    is_write: bool
    data: int = 0


@dataclass(frozen=True, slots=True)
class DebugExit:
    """``KVM_EXIT_DEBUG``: a guest-debug event at linear address ``pc``."""

    exception: int
    pc: int
    dr6: int


@dataclass(frozen=True, slots=True)
class ShutdownExit:
    """``KVM_EXIT_SHUTDOWN``: the guest triple-faulted."""


@dataclass(frozen=True, slots=True)
class FailEntryExit:
    """``KVM_EXIT_FAIL_ENTRY``: the CPU refused the guest state; ``reason`` is the hardware's."""

    reason: int


@dataclass(frozen=True, slots=True)
class InternalErrorExit:
    """``KVM_EXIT_INTERNAL_ERROR``: KVM gave up, most often on an instruction it cannot emulate."""

    suberror: int


@dataclass(frozen=True, slots=True)
class OtherExit:
    """Any exit reason without a class of its own, by its ``KVM_EXIT_*`` number."""

    exit_reason: int


Exit = (
    RdmsrExit
    | WrmsrExit
    | HltExit
    | IoExit
    | MmioExit
    | DebugExit
    | ShutdownExit
    | FailEntryExit
    | InternalErrorExit
    | OtherExit
)


def _msr_exit(name: str, exit_: RdmsrExit | WrmsrExit, data: str) -> str:
    reason = getattr(exit_.reason, "name", None) or str(exit_.reason)
    index = msr_code(exit_.index) if isinstance(exit_.index, int) else exit_.index
    odd = [f"{key}={_hex(getattr(exit_, key))}" for key in ("error", "pad") if getattr(exit_, key)]
    return f"{name}({', '.join([str(index), str(reason), *([data] if data else []), *odd])})"


def _hex(value: object) -> str:
    return f"{value:#x}" if isinstance(value, int) else repr(value)  # a pattern may stand here
