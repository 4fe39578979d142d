"""Random-filter cases: both sides make the same installs and the same accesses."""

from __future__ import annotations

import contextlib
import functools
import struct
import tempfile
from collections.abc import Iterator

from bench.bare import BareC
from bench.line import Line, take_turns
from vmm.conformance.kernel.wire import EXIT, REPLY, RESULT, SEEN, STEP
from vmm.conformance.oracle.model import Model
from vmm.conformance.random.bulk import CHUNK, Sweep
from vmm.conformance.random.chunks import Chunks
from vmm.conformance.random.forecast import Forecast
from vmm.guest import Guest
from vmm.kvm import Kvm
from vmm.placed import NATIVE

PLAN = struct.Struct("<4Q")
SEED = 1


def measure_cases(kvm: Kvm, c: BareC, line: Line, work: tuple[int, int, int]) -> None:
    """Fill the line of random-filter cases: both sides make the same installs and accesses.

    ``work`` is the number of rounds, of cases in a round, and of accesses in a case.
    """
    rounds, cases, accesses = work
    with contextlib.ExitStack() as opened:
        plan = opened.enter_context(tempfile.NamedTemporaryFile(prefix="msrward-plan-"))
        sweep = opened.enter_context(Sweep(kvm, SEED, accesses))
        plan.write(b"".join(_plan(rounds, cases, accesses)))
        plan.flush()
        c.ask(f"plan {plan.name}")

        def checked() -> int:
            result = sweep.run(cases=cases)
            if result.mismatch:
                raise RuntimeError(f"the kernel breaks its contract: {result.mismatch}")
            line.python_gaps.extend(ns / 1e3 for ns in result.gaps)
            return result.exits

        for number in range(rounds):
            bare = functools.partial(c.ask, f"cases {number * cases} {cases}")
            take_turns(line, number, bare, checked, cases)


def _plan(rounds: int, cases: int, accesses: int) -> Iterator[bytes]:
    """Yield the file that tells the C program what the sweep of the same seed does."""
    chunks = Chunks(SEED, accesses)
    forecast = Forecast(chunks, Model(), Guest.load("access"), PLAN.size)
    end = Guest.load("access").symbols["op_done"]
    yield PLAN.pack(rounds * cases, accesses, end, PLAN.size + len(chunks.bits))
    yield chunks.bits
    for number, limit in enumerate(_limits(cases) * rounds):
        packed = forecast.pack(number, CHUNK, limit)
        at = 0
        for case in range(packed.size):
            _, _, exits, _ = SEEN.unpack_from(packed.expected, at)
            log = packed.expected[at + SEEN.size : at + SEEN.size + exits * EXIT.size]
            at += SEEN.size + len(log) + accesses * RESULT.size
            steps = [exit_[1] for exit_ in EXIT.iter_unpack(log)]
            answered = [
                _slice(packed.replies, REPLY.size, case * accesses + step) for step in steps
            ]
            yield _slice(packed.filters, NATIVE.size, case) + exits.to_bytes(8, "little")
            yield b"".join(answered).ljust(REPLY.size * accesses, b"\0")
            yield _slice(packed.programs, STEP.size * accesses, case)


def _limits(cases: int) -> list[int]:
    return [min(CHUNK, cases - first) for first in range(0, cases, CHUNK)]


def _slice(data: bytes, size: int, number: int) -> bytes:
    return data[number * size : (number + 1) * size]
