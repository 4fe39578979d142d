"""Several runs of one kernel as one: the records of shards, with holes and doubles named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vmm.conformance.records.results import SAME_HOST, ResultsError
from vmm.conformance.records.saved import Saved
from vmm.conformance.records.schema import CaseRecord, EndRecord, RunRecord, run_of
from vmm.conformance.records.summary import end_record

ONE_MACHINE = tuple(name for name in SAME_HOST if name != "hostname")
"""The facts that runs must share to be one: a shard may run on another machine of the same make."""


@dataclass(frozen=True, slots=True)
class Merged:
    """The records of one run, made of several; ``notes`` names what is twice or missing."""

    host: Mapping[str, Any]
    run: RunRecord
    cases: Mapping[str, CaseRecord]
    end: EndRecord
    notes: Sequence[str] = field(default_factory=tuple)


def merge(runs: Sequence[Saved]) -> Merged:
    """Return the runs as one; ResultsError where they are not of one kernel on one make of machine.

    The first record of a case counts. A case that is in two runs with another verdict, a run that
    did not get to its end, a shard that is not there: each is a note, and the status is TROUBLE.
    """
    first = runs[0]
    for other in runs[1:]:
        for name in ONE_MACHINE:
            if first.host.get(name) != other.host.get(name):
                raise ResultsError(
                    f"{other.path} is of another {name}: {other.host.get(name)},"
                    f" not {first.host.get(name)}"
                )
    cases: dict[str, CaseRecord] = {}
    doubles = [note for run in runs for note in _add(cases, run)]
    holes = [*_unfinished(runs), *_missing(runs)]
    notes = [*doubles, *holes]
    ends = [run.end for run in runs if run.end]
    end = end_record(
        list(cases.values()),
        sum(end["seconds"] for end in ends),
        splats=[splat for end in ends for splat in end["splats"]],
        foreign=[line for end in ends for line in end.get("foreign", ())],
        lost=sum(end["lost"] for end in ends),
        interrupted=any(end["interrupted"] for end in ends),
        trouble=bool(holes) or any("differs" in note for note in doubles),
    )
    return Merged(first.host, _run(runs, len(cases)), cases, end, tuple(notes))


def _add(cases: dict[str, CaseRecord], run: Saved) -> list[str]:
    notes = []
    for name, record in run.cases.items():
        before = cases.setdefault(name, record)
        if before is record:
            continue
        same = before["verdict"] == record["verdict"]
        how = "the same" if same else f"it differs: {before['verdict']}, {record['verdict']}"
        notes.append(f"twice: {name}, in {_place(run)} too, {how}")
    return notes


def _unfinished(runs: Sequence[Saved]) -> list[str]:
    return [f"hole: {_place(run)}: {run.trouble}" for run in runs if not run.end]


def _missing(runs: Sequence[Saved]) -> list[str]:
    """Name the shards that are not there, where any of the runs was one."""
    shards = [run.run.get("shard", "") if run.run else "" for run in runs]
    totals = {int(shard.partition("/")[2]) for shard in shards if shard}
    if not totals:
        return []
    if len(totals) > 1 or not all(shards):
        return ["hole: these are not the shards of one run"]
    total = totals.pop()
    there = {int(shard.partition("/")[0]) for shard in shards}
    return [f"hole: no shard {n}/{total}" for n in range(1, total + 1) if n not in there]


def _run(runs: Sequence[Saved], cases: int) -> RunRecord:
    began = [run.run for run in runs if run.run]
    blank = run_of(cases, cases, kernel_log="not told")
    first = min(began, key=lambda run: run.get("started", 0.0), default=blank)
    merged: RunRecord = {**first, "cases": cases, "resumed": 0, "merged": len(runs)}
    merged.pop("shard", None)
    return merged


def _place(run: Saved) -> Path:
    return run.path.parent
