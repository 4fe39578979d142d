"""The bulk path: thousands of random cases a second, each exit and each value checked.

While the kernel runs one chunk of cases (one call of the shim, which drops the GIL), Python draws
and predicts the next; what came back is compared as bytes. A case that differs comes out as a
script with its expected and its seen trace.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, NamedTuple

from vmm._native import ffi, lib
from vmm.closing import Closing
from vmm.conformance.kernel.pool import PooledVm
from vmm.conformance.kernel.program import MAX_STEPS
from vmm.conformance.kernel.wire import SPARE_EXITS, first_change, handlers, read_case
from vmm.conformance.language.script import Access, Rdmsr, Script, Trace, Wrmsr, first_difference
from vmm.conformance.oracle.model import Model
from vmm.conformance.random.chunks import STORAGE, Chunks
from vmm.conformance.random.finding import Finding
from vmm.conformance.random.forecast import LANES, MASK, ZEROES, Forecast, PackedChunk
from vmm.conformance.random.fuzz import (
    Host,
    random_seed,
)
from vmm.conformance.records.status import Status
from vmm.guest import Guest, start_registers
from vmm.kvm import Kvm

CHUNK = 128
"""Cases in one call: enough that handing over a chunk costs nothing, and even (two lanes)."""
AHEAD = 2
"""Chunks that the kernel has or will have while Python predicts the next one."""
SWITCH_INTERVAL = 50e-6
"""Seconds until the thread that comes back from the kernel gets the GIL, to fetch a chunk."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A case whose trace is not as predicted, as a script that stands for itself."""

    script: Script
    expected: Trace
    seen: Trace


@dataclass(slots=True)
class SweepResult:
    """What was done: ``cases`` judged, of which the last is the ``mismatch`` if there is one.

    ``seconds`` is the wall time; ``gaps`` are the ns from each install to the next.
    """

    seed: int
    accesses: int
    cases: int = 0
    exits: int = 0
    seconds: float = 0.0
    mismatch: Mismatch | None = None
    gaps: array[int] = field(default_factory=lambda: array("Q"), repr=False)


def sweep(
    seed: int,
    *,
    cases: int | None = None,
    seconds: float | None = None,
    accesses: int = 4,
    model: Model | None = None,
) -> SweepResult:
    """Run random cases of ``accesses`` each until so many ``cases``, ``seconds``, or a mismatch.

    The cases depend on ``seed`` and ``accesses`` alone. ``KvmError`` as ``Kvm`` raises it.
    """
    with Kvm() as kvm, Sweep(kvm, seed, accesses, model) as opened:
        return opened.run(cases=cases, seconds=seconds)


def run(
    backend: Host,
    seed: int | None,
    cases: int,
    say: Callable[[str], None],
    model: Any = None,
    *,
    on_found: Callable[[Finding], None] | None = None,
) -> int:
    """Judge this host's kernel by so many ``cases``; return an exit status as ``fuzz.run`` does."""
    if reason := backend.lacks("no_ignore_msrs"):
        say(f"cannot fuzz: {reason}; load kvm with ignore_msrs=0")
        return Status.UNTESTED
    if reason := backend.lacks("upper_rcx"):
        say(f"cannot fuzz in bulk: {reason}; leave out --bulk")
        return Status.UNTESTED
    seed = random_seed() if seed is None else seed
    rerun = f"msrward fuzz --bulk --seed {seed} --examples {cases}"
    say(f"fuzzing with --bulk --seed {seed} --examples {cases}")
    result = sweep(seed, cases=cases, model=model)
    if not (found := result.mismatch):
        rate = result.cases / result.seconds
        say(f"{cases} cases, {rate:,.0f} a second: the kernel did what the Model predicted")
        return Status.CONFORMS
    step = first_difference(found.script, found.expected, found.seen)
    at = len(found.script) if step is None else step
    finding = Finding(found.script, found.expected, found.seen, at, rerun)
    say(str(finding))
    if on_found:
        on_found(finding)
    return Status.VIOLATES


class _Call(NamedTuple):
    """A chunk on its way through the kernel, and all memory that this takes."""

    packed: PackedChunk
    request: Any
    seen: Any
    began: Any
    kept: tuple[Any, ...]


class Sweep(Closing):
    """Two VMs and the cases of a seed; ``run`` goes on where the last one ended."""

    def __init__(self, kvm: Kvm, seed: int, accesses: int = 4, model: Model | None = None) -> None:
        """Create the VMs. ValueError for more accesses than a program of the guest has room for."""
        if not 0 < accesses <= MAX_STEPS:
            raise ValueError(f"a case has 1 to {MAX_STEPS} accesses, not {accesses}")
        self.seed, self.accesses, self._guest = seed, accesses, Guest.load("access")
        chunks = Chunks(seed, accesses)
        self._bits = ffi.from_buffer("uint8_t[]", chunks.bits)
        address = int(ffi.cast("uintptr_t", self._bits))
        self._forecast = Forecast(chunks, model or Model(), self._guest, address)
        self._next, self._over = 0, False
        self._vms = [PooledVm(kvm, keep=True) for _ in range(LANES)]
        self._lanes = ffi.new("struct mw_lane[]", LANES)
        self._start = start_registers(self._guest.entry, 0)
        for vm, lane in zip(self._vms, self._lanes, strict=True):
            self._prepare(vm, lane)
        self._free = deque(self._buffers() for _ in range(AHEAD + 1))

    def run(self, *, cases: int | None = None, seconds: float | None = None) -> SweepResult:
        """Run the next cases; ValueError when there is no end given, or after a mismatch."""
        if (cases is None and seconds is None) or self._over:
            raise ValueError("a sweep needs a number of cases or seconds, and ends at a mismatch")
        self._over = True  # unless this run comes to a good end
        result = SweepResult(self.seed, self.accesses)
        began = time.monotonic()
        with self._alone(), _kernel_thread() as (todo, ready):
            waiting = 0
            for call in self._calls(cases, None if seconds is None else began + seconds):
                todo.put(call)
                waiting += 1
                if waiting == AHEAD:
                    waiting -= 1
                    self._judge(*ready.get(), result)
                if result.mismatch:
                    break
            while waiting and not result.mismatch:
                waiting -= 1
                self._judge(*ready.get(), result)
        result.seconds = time.monotonic() - began
        self._over = result.mismatch is not None
        return result

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Within: nobody else enters the vCPUs, and their descriptors stay."""
        with contextlib.ExitStack() as entered:
            for vm in self._vms:
                entered.enter_context(vm.program(0).vcpu.entered())
            yield

    def close(self) -> None:
        """Destroy the VMs."""
        for vm in self._vms:
            vm.close()

    def _prepare(self, vm: PooledVm, lane: Any) -> None:
        program = vm.program(0)
        vm.vm.enable_msr_exits(MASK)
        if program.vcpu.set_msrs(ZEROES) != len(ZEROES):
            raise RuntimeError("KVM_SET_MSRS refused an MSR that every x86-64 CPU has")
        end = handlers(self._guest)[-1].to_bytes(8, "little")
        vm.memory.write(program.base + self.accesses * lib.MW_STEP, end)
        lane.vm, lane.start = vm.vm.fd, self._start
        lane.memory = ffi.cast("uint8_t *", vm.memory.address + program.base - vm.memory.base)
        batch = lane.batch
        batch.fd, batch.run, batch.program = program.vcpu.fd, program.vcpu.kvm_run, program.base

    def _buffers(self) -> tuple[Any, Any]:
        log = ffi.sizeof("struct mw_exit") * (self.accesses + SPARE_EXITS)
        case = ffi.sizeof("struct mw_seen") + log + lib.MW_RESULT * self.accesses
        return ffi.new("uint8_t[]", CHUNK * case), ffi.new("uint64_t[]", CHUNK)

    def _calls(self, cases: int | None, deadline: float | None) -> Iterator[_Call]:
        left = sys.maxsize if cases is None else cases
        while left > 0 and (deadline is None or time.monotonic() < deadline):
            packed = self._forecast.pack(self._next, CHUNK, min(left, CHUNK))
            self._next += 1
            left -= packed.size
            yield self._call(packed)

    def _call(self, packed: PackedChunk) -> _Call:
        seen, began = self._free.popleft()
        request = ffi.new("struct mw_bulk *")
        request.lanes, request.n_lanes = self._lanes, LANES
        request.n_cases, request.n_steps = packed.size, self.accesses
        request.filters = filters = ffi.from_buffer("struct kvm_msr_filter[]", packed.filters)
        request.replies = replies = ffi.from_buffer("struct mw_reply[]", packed.replies)
        request.programs = programs = ffi.from_buffer("uint8_t[]", packed.programs)
        request.began, request.seen = began, seen
        return _Call(packed, request, seen, began, (filters, replies, programs))

    def _judge(self, ran: int, call: _Call, result: SweepResult) -> None:
        packed, seen = call.packed, ffi.buffer(call.seen, call.request.seen_size)
        times = list(call.began[0:ran])
        result.gaps.extend(map(int.__sub__, times[1:], times))
        if seen == packed.expected:
            result.cases += packed.size
            result.exits += packed.exits
        else:
            number, case = first_change(packed.expected, bytes(seen), self.accesses)
            result.cases += number + 1
            result.mismatch = self._mismatch(packed, number, case)
        self._free.append((call.seen, call.began))

    def _mismatch(self, packed: PackedChunk, number: int, case: bytes) -> Mismatch:
        found = self._from(packed, number, number, case)
        step = first_difference(found.script, found.expected, found.seen)
        wrong = None if step is None else found.script[step]
        if isinstance(wrong, Rdmsr) and wrong.index in STORAGE:
            # What it read may have been left by an access of an earlier case of this VM.
            return self._from(packed, number % LANES, number, case)
        return found

    def _from(self, packed: PackedChunk, first: int, last: int, case: bytes) -> Mismatch:
        script = self._forecast.script(packed, first, last, CHUNK)
        before, accesses = script[: -1 - self.accesses], _accesses(script)[-self.accesses :]
        model, seen = self._forecast.model, read_case(case, accesses, self._guest)
        return Mismatch(script, model.predict(script), (*model.predict(before), *seen))


def _accesses(script: Script) -> list[Access]:
    return [each for each in script if isinstance(each, Rdmsr | Wrmsr)]


@contextlib.contextmanager
def _kernel_thread() -> Iterator[tuple[SimpleQueue[_Call | None], SimpleQueue[tuple[int, _Call]]]]:
    """Within: a thread makes the calls of the first queue; their results come from the second."""
    todo: SimpleQueue[_Call | None] = SimpleQueue()
    ready: SimpleQueue[tuple[int, _Call]] = SimpleQueue()

    def serve() -> None:
        while (call := todo.get()) is not None:
            ready.put((lib.mw_bulk(call.request), call))

    thread = threading.Thread(target=serve, name="sweep")
    interval = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL)
    thread.start()
    try:
        yield todo, ready
    finally:
        todo.put(None)
        thread.join()
        sys.setswitchinterval(interval)
