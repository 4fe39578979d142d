"""Sampled races: vCPUs access MSRs while other threads install filters (R14, R70-R72, R77).

The loops and the judge are native, ``native/stress.h`` has the reasoning. Here the threads are
started, watched and joined, and what they found is told.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from vmm.conformance.host.parameters import ignores_msrs
from vmm.conformance.host.watch import Watch
from vmm.conformance.oracle.model import Model
from vmm.conformance.records.schema import CaseOutcome, CaseRecord, record_of
from vmm.conformance.records.verdict import Verdict
from vmm.conformance.stress.arena import Arena
from vmm.conformance.stress.plan import OUTCOMES, Plan, plan
from vmm.conformance.stress.violation import Violation
from vmm.x86 import MAX_VCPUS

TICK = 0.5
GLANCE = 0.02
"""Seconds from one look at a race to the next."""
TOOK = "ns from KVM_RUN to its exit"
"""What is counted by log2: the guest's few instructions are in it, and waits for other threads."""
REQUIREMENTS = "R14", "R70", "R71", "R72", "R77"
MAX_INSTALLERS, MAX_VMS = 64, 8
VMS_PER_INSTALLER = 2
"""In turns: an install right after another of the same VM waits 4-20 ms (docs/design.md)."""


@dataclass(frozen=True)
class Tally:
    """What has happened so far; ``outcomes`` counts in the order of ``OUTCOMES``."""

    seconds: float
    swaps: int
    refused: int
    outcomes: tuple[int, ...]

    @property
    def observations(self) -> int:
        """Return how many accesses were judged."""
        return sum(self.outcomes)

    def line(self) -> str:
        """Return one line of rates and outcomes since the start."""
        per = max(self.seconds, 1e-9)
        kinds = zip(OUTCOMES, self.outcomes, strict=True)
        shown = ", ".join(f"{name} {count}" for name, count in kinds if count)
        return (
            f"{self.seconds:.1f} s: {self.swaps / per:,.0f} swaps/s, "
            f"{self.observations / per:,.0f} observations/s ({shown})"
        )


@dataclass(frozen=True)
class StressResult:
    """How a stress ended. ``violation`` is None when everything seen was possible.

    ``loose`` counts entries of a vCPU that lasted through more installs than the judge keeps: there
    only what no filter at all permits was seen as impossible. ``complaints`` are the kernel's,
    ``blind`` is why its log could not be watched; ``took`` counts KVM_RUNs by their time, as
    ``Arena.took`` does; ``interrupted`` that Ctrl-C ended it before its time.
    """

    seed: int
    vcpus: int
    installers: int
    vms: int
    progress: Tally
    alike: int
    entries: int
    loose: int
    violation: Violation | None
    complaints: tuple[str, ...]
    blind: str
    foreign: tuple[str, ...] = ()
    took: tuple[int, ...] = ()
    interrupted: bool = False

    @property
    def conforms(self) -> bool:
        """Say whether something was observed and all of it was possible."""
        is_clean = self.violation is None and not self.complaints
        return is_clean and self.progress.observations > 0


def run(
    seconds: float = 10.0,
    vcpus: int = 0,
    installers: int = 2,
    seed: int | None = None,
    on_progress: Callable[[Tally], None] | None = None,
    *,
    model: Model | None = None,
) -> StressResult:
    """Race for ``seconds`` and return what came of it; stops at the first impossible observation.

    Ctrl-C ends it earlier, with what was seen until then.

    ``vcpus`` are threads, each with a vCPU in every VM (0: one for each CPU); ``seed`` None draws
    one. ``on_progress`` is called about twice a second. ``model`` is the oracle (None:
    one that is told what ``kvm.ignore_msrs`` is). ``KvmError`` when the host has no usable KVM,
    ValueError for counts and durations that cannot be.
    """
    vcpus = vcpus or min(os.cpu_count() or 1, MAX_VCPUS)
    _check(seconds, vcpus, installers)
    seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    drawn = plan(seed, model=model or Model(ignore_msrs=ignores_msrs()))
    vms = min(MAX_VMS, VMS_PER_INSTALLER * installers)
    with Watch() as watch, Arena(drawn, vcpus, installers, vms) as arena:
        start = time.monotonic()
        over, interrupted = arena.start(), False
        try:
            _watch(arena, over, start, seconds, on_progress)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            arena.stop()
        result = _result(arena, drawn, time.monotonic() - start, watch)
        return replace(result, interrupted=interrupted)


def _check(seconds: float, vcpus: int, installers: int) -> None:
    if not 0 < seconds < 1e9:
        raise ValueError(f"seconds must be more than 0, not {seconds}")
    if not 1 <= vcpus <= MAX_VCPUS:
        raise ValueError(f"vcpus must be 1 to {MAX_VCPUS}, not {vcpus}")
    if not 1 <= installers <= MAX_INSTALLERS:
        raise ValueError(f"installers must be 1 to {MAX_INSTALLERS}, not {installers}")


def _watch(
    arena: Arena,
    over: threading.Event,
    start: float,
    seconds: float,
    on_progress: Callable[[Tally], None] | None,
) -> None:
    told = start
    while (left := start + seconds - time.monotonic()) > 0 and not over.is_set():
        time.sleep(min(GLANCE, left))  # Ctrl-C within over.wait() may leave its lock in no order
        if on_progress and time.monotonic() - told >= TICK and not over.is_set():
            told = time.monotonic()
            on_progress(_progress(arena, told - start))


def _progress(arena: Arena, seconds: float) -> Tally:
    return Tally(seconds, arena.swaps(), arena.refused(), arena.outcomes())


def _result(arena: Arena, drawn: Plan, seconds: float, watch: Watch) -> StressResult:
    return StressResult(
        seed=drawn.seed,
        vcpus=arena.n_vcpus,
        installers=arena.n_installers,
        vms=len(arena.vms),
        progress=_progress(arena, seconds),
        alike=sum(drawn.is_alike(each) for each in drawn.accesses),
        entries=arena.entries(),
        loose=arena.loose(),
        violation=arena.violation(),
        complaints=watch.complaints(),
        blind=watch.blind,
        foreign=tuple(watch.foreign),
        took=arena.took(),
    )


def as_case(result: StressResult, samples: Sequence[Tally] = ()) -> CaseRecord:
    """Return the result as the record of one case; ``samples`` become its rates over time."""
    sentence = "Nothing that a vCPU sees while filters are swapped is impossible."
    seconds = result.progress.seconds
    record = record_of("stress.swaps", sentence, REQUIREMENTS, _outcome(result), seconds * 1000)
    if len(samples) > 1:
        record["series"] = _rates(samples)
    if any(result.took):
        last = max(n for n, count in enumerate(result.took) if count)
        record["histograms"] = {TOOK: list(result.took[: last + 1])}
    return record


def _outcome(result: StressResult) -> CaseOutcome:
    if result.violation:
        return {"verdict": Verdict.FAIL, "error": " ".join(result.violation.text.split())}
    if not result.progress.observations:
        return {"verdict": Verdict.SKIP, "reason": "nothing was observed"}
    return {"verdict": Verdict.PASS}


def _rates(samples: Sequence[Tally]) -> dict[str, list[list[float]]]:
    swaps, observations = list[list[float]](), list[list[float]]()
    for before, now in pairwise(_evenly(samples)):
        seconds = max(now.seconds - before.seconds, 1e-9)
        at = round(now.seconds, 3)
        swaps.append([at, round((now.swaps - before.swaps) / seconds, 1)])
        seen = now.observations - before.observations
        observations.append([at, round(seen / seconds, 1)])
    return {"swaps/s": swaps, "observations/s": observations}


def _evenly(samples: Sequence[Tally]) -> Sequence[Tally]:
    """Return samples whose last interval is no sliver, in which hardly anything can happen."""
    *others, last = samples
    long = max(now.seconds - then.seconds for then, now in pairwise(samples))
    return [*(each for each in others if last.seconds - each.seconds > long / 2), last]


def render(result: StressResult) -> str:
    """Return the result as the lines that a person reads."""
    counts = result.progress
    loose = f", {result.loose} of them too long to judge closely" if result.loose else ""
    lines = [
        f"stress: {'interrupted: ' if result.interrupted else ''}{_verdict(result)}",
        f"  {counts.line()}",
        f"  {result.vcpus} vCPUs in each of {result.vms} VMs, {result.installers} installers; "
        f"{counts.swaps} filters swapped, {counts.refused} refused as they must be",
        f"  {counts.observations} observations in {result.entries} entries of a vCPU{loose}",
    ]
    lines += [f"  the kernel: {each}" for each in result.complaints]
    lines += [f"  foreign, and no matter here: {each}" for each in result.foreign]
    lines += [f"  the kernel log was not watched: {result.blind}"] if result.blind else []
    return "\n".join(lines)


def words_of(result: StressResult) -> list[str]:
    """Return the words after ``msrward stress`` that repeat it."""
    told = (("seed", result.seed), ("vcpus", result.vcpus), ("installers", result.installers))
    return [word for name, value in told for word in (f"--{name}", str(value))]


def _verdict(result: StressResult) -> str:
    if result.violation:
        return f"IMPOSSIBLE: {result.violation.text}"
    if result.complaints:
        return "the kernel complained"
    return "nothing seen was impossible" if result.conforms else "nothing was observed"
