"""A sweep on the kernel: the guest's loop, one call of the shim, and what came of each access."""

from __future__ import annotations

from collections.abc import Iterator

from vmm._native import ffi, lib
from vmm.conformance.host.limits import raise_if_exhausted
from vmm.conformance.kernel.program import Program
from vmm.conformance.language.script import REPLY, Ended, Event, Lost, Sweep, runs_of
from vmm.decode import RDMSR, WRMSR
from vmm.errors import KvmError
from vmm.msr import MsrExitReason

CHUNK = 0x8000
"""Accesses at a time: each has a byte in the vCPU's program area, after the program."""
GP = 13

REASONS: dict[int, Ended] = {1: "INVAL", 2: "UNKNOWN", 4: "FILTER"}
assert {each.value: each.name for each in MsrExitReason} == REASONS


def run_sweep(program: Program, action: Sweep) -> Event:
    """Execute a sweep; ``ExhaustedError`` where the host had not enough of something."""
    ended: list[Ended] = []
    indices = [*action.indices]
    try:
        for at in range(0, action.count, CHUNK):
            chunk = indices[at : at + CHUNK]
            ended += _chunk(program, action, chunk[0], len(chunk))
    except KvmError as error:
        raise_if_exhausted(error)
        return Lost(str(error))
    except _LostError as error:
        return Lost(str(error))
    except _LeftError as error:
        return error.event
    return runs_of(action, ended)


class _LostError(Exception):
    """The guest did not come to the end of its loop."""


class _LeftError(Exception):
    """L1 got one of the accesses, which ended L2."""

    def __init__(self, event: Event) -> None:
        self.event = event


def _chunk(program: Program, action: Sweep, first: int, count: int) -> Iterator[Ended]:
    faults = program.load_sweep(action.access, first, count, action.stride, action.value)
    reasons = ffi.new("uint8_t[]", count)
    request = ffi.new("struct mw_sweep *")
    request.fd, request.run = program.vcpu.fd, program.vcpu.kvm_run
    request.first, request.stride, request.count = first, action.stride & 0xFFFFFFFF, count
    is_write = action.access == "wrmsr"
    request.exit_reason = WRMSR if is_write else RDMSR
    request.data, request.reply = action.value if is_write else 0, REPLY
    request.reasons = reasons
    with program.vcpu.entered():
        end = lib.mw_sweep(request)
    if left := program.left(end):
        raise _LeftError(left)
    if how := program.how_ended(end):
        raise _LostError(how)
    return map(_ended, bytes(ffi.buffer(reasons)), faults())


def _ended(reason: int, fault: int) -> Ended:
    if fault:
        return "GP" if fault == GP and not reason else "STRANGE"
    return REASONS.get(reason, "STRANGE") if reason else "PASSED"
