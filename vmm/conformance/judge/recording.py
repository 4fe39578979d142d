"""The record of a case, from what a worker or a player left of it, and what a run was asked for."""

from __future__ import annotations

import time
from dataclasses import dataclass
from fnmatch import fnmatchcase

from vmm.conformance.judge.judging import code
from vmm.conformance.language.case import Case
from vmm.conformance.records.causes import explains
from vmm.conformance.records.schema import CaseOutcome, CaseRecord, RunRecord, record_of, run_of
from vmm.conformance.records.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Options:
    """How to run: ``jobs`` workers, ``timeout`` seconds for a case, globs of known failures.

    A case that waits for the kernel has so much longer (``kernel.waits``).

    ``repeat`` is how often each case is judged (``judge.again``).
    ``shard`` says which part of a run this is ("2/5"), "" for all of it.
    ``known`` has the entries of the history whose failures are known, on ``vendor``'s KVM module.
    """

    jobs: int = 1
    timeout: float = 10.0
    xfail: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    vendor: str = ""
    shard: str = ""
    repeat: int = 1


def run_record(
    cases: int, catalogue: int, options: Options, *, resumed: int = 0, kernel_log: str = "watched"
) -> RunRecord:
    """Return the record of a run that begins now (``records.schema``)."""
    run: RunRecord = {
        **run_of(cases, catalogue, resumed=resumed, kernel_log=kernel_log),
        "started": round(time.time(), 3),
        "jobs": options.jobs,
        "timeout": options.timeout,
    }
    if options.shard:
        run["shard"] = options.shard
    if options.repeat > 1:
        run["repeat"] = options.repeat
    return run


def case_record(
    case: Case, outcome: CaseOutcome, ms: float, splats: list[list[str]], options: Options
) -> CaseRecord:
    """Return the record of a case that ended with ``outcome`` (``judging.judge``) after ``ms``.

    A splat is FAIL whatever the case saw, and known to nobody. A case that was to fail and hangs
    is TIMEOUT.
    """
    record = record_of(case.id, case.sentence, case.requirements, outcome, ms)
    if case.file:
        record["file"] = case.file
    if splats:
        record = {**record, "verdict": Verdict.FAIL, "splats": splats}
    elif any(fnmatchcase(case.id, glob) for glob in options.xfail) and not case.observes:
        record["verdict"] = record["verdict"].expected
    if not record["verdict"].is_good:
        record["script"] = code(case.actions)
    if record["verdict"] is Verdict.FAIL and not splats:
        entry = explains(record, {"vendor_module": options.vendor})
        record["verdict"] = Verdict.XFAIL if entry in options.known else Verdict.FAIL
    return record
