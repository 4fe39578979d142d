"""The records and their fields: what ``results.jsonl`` and ``--json`` hold, schema version 1.

Every line is one object. ``run`` opens a run (``RunRecord``), ``end`` closes it (``EndRecord``).

``case`` is one case (``CaseRecord``). Each case of a run has one; where ``--resume`` judged it
again, since it was ERROR or TIMEOUT, the last one counts.

``first`` has the same fields: what a case left that failed or timed out and is therefore judged
once more, alone, in a fresh worker and VM. Its ``case`` follows, with the first evidence and
``again``; where none does, the run was cut short before, and ``--resume`` judges it.

A run of ``stress``, ``churn`` or ``fuzz`` has the same three records. Under ``--json`` such a run
says in passing what it does: ``live`` has ``line`` and no facts of the host; it is in no file.

These types are what a record is read by (``records.shape``): a field that must be there is
``Required`` or stands in a type that has no others; what its values may be beyond their type is
beside it. Fields that no type names may be there too, but in what has no optional ones.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Annotated, Any, Literal, NotRequired, Required, TypedDict, cast

from vmm.conformance.records import values
from vmm.conformance.records.status import Status
from vmm.conformance.records.verdict import Verdict

SCHEMA = 1


class MachineRecord(TypedDict, total=False):
    """The machine of the lab that a run was in."""

    kernel: str
    """What the user called it."""
    vendor: Required[str]
    emulator: Required[str]
    executor: str
    """"player" or "python": what ran the cases there."""
    cpu: str
    """Its model, if it is not the vendor's own."""
    append: str
    """What its command line has besides."""
    boot_seconds: float | None
    machines: int
    """How many played side by side."""


class HostFacts(TypedDict, total=False):
    """The facts of a host (``host.facts``), of which these are read by name; every line has all."""

    release: str | None
    version: str | None
    hostname: str | None
    vendor_module: str | None
    cpu_model: str | None
    platform: str | None
    msrward: str | None
    parameters: Annotated[dict[str, dict[str, Any]] | None, values.parameters]
    lab: MachineRecord


class Envelope(TypedDict, total=False):
    """What every line of a file has."""

    schema: int
    host: HostFacts


class RunRecord(Envelope, total=False):
    """What opens a run."""

    type: Required[Literal["run"]]
    cases: Required[int]
    """How many are to be judged, out of ``catalogue``."""
    catalogue: Required[int]
    resumed: Required[int]
    """How many of them an earlier run had recorded."""
    kernel_log: Required[str]
    """"watched", or why not."""

    started: float
    """Seconds since 1970."""
    jobs: int
    timeout: float
    """Seconds for a case."""
    shard: str
    """Of a part of a run which it is: "2/5"."""
    repeat: int
    """Under ``--repeat``: how often each case is judged."""
    merged: int
    """Of how many runs ``msrward merge`` made it."""


class StepRecord(TypedDict):
    """A step that left other events than expected: its place in the script, from 1, and both."""

    step: int
    action: str
    expected: list[str]
    seen: list[str]


class Upshot(TypedDict, total=False):
    """What became of a case. The first field always is there, the others where they apply."""

    verdict: Required[Verdict]

    trace: list[str]
    """All events seen, of a case that saw others than expected."""
    step: int
    """Where they first differ, from 1."""
    action: str
    expected: list[str]
    seen: list[str]
    """The step's action, and its events."""
    also: list[StepRecord]
    """The same of each later step that differs."""
    observation: str
    """What an ``observe`` case saw, one line."""
    reason: str
    """Why it was skipped."""
    need: str
    """The word of ``Case.all_needs`` that this host lacks, or ``msr:NAME`` where it refuses the MSR
    whether filtered or not: all was as expected, and it says nothing of the filter."""
    error: str
    """One line, of the harness or of the time limit."""
    traceback: str
    splats: list[list[str]]
    """The lines of each kernel log splat that fell in the case."""
    ignore_msrs: bool
    """True where ``kvm.ignore_msrs`` was 1 for the case."""


class CaseOutcome(Upshot, total=False):
    """What became of a case, before it is known how long it took, or after."""

    ms: float


class Judging(Upshot):
    """What became of a case, and how long it took."""

    ms: float


class Found(TypedDict):
    """What ``fuzz`` found."""

    case: str
    """The JSON of a case (``language.codec``) with the trace seen."""
    seed: Annotated[int, values.whole]
    examples: int
    bulk: bool
    """The call that drew it."""
    steady: bool
    """Whether it came again."""


class CaseRecord(Judging, Envelope, total=False):
    """What is kept of one case: who it is, its outcome, and the other fields where they apply."""

    type: Required[Literal["case", "first", "whole"]]
    """"whole" in reports only, of what went wrong with the run as a whole."""
    id: Required[Annotated[str, values.name]]
    sentence: Required[str]
    requirements: Required[list[str]]
    """Ids; the first is the one that the case is about."""

    script: list[str]
    """One action's code text an item: of every case that is not PASS, SKIP or XPASS."""
    file: str
    """The JSON file that the case was read from, if it is none of the catalogue."""
    cause: str
    """The entry of the history that explains all that differs, where one does."""
    again: Judging
    """What came of it when it was judged once more, with its own evidence. Absent where a splat
    was evidence enough, or others had timed out twice already."""
    repeats: Annotated[dict[str, int], values.repeats]
    """Under ``--repeat``: how often it had each verdict. The evidence is that of its first failure,
    and ``verdict`` is UNSTEADY if it did not fail every time."""
    varied: list[str]
    """Under ``--repeat``: the observations of a case that made more than one, the first first."""
    series: Annotated[dict[str, list[list[float]]], values.series]
    """What was measured while it ran, by name with unit: seconds since the start, and value."""
    histograms: Annotated[dict[str, list[int]], values.histograms]
    """How often a measure lay where, by name with unit: the n-th (from 0) counts values from 2**n
    on, and below 2**(n+1). 64 counts at most."""
    found: Found
    kept: list[str]
    """Under ``fuzz --json``: the scripts that it added to its corpus, as JSON of cases."""
    first: Verdict
    """What an UNSTEADY case was when it failed: FAIL or TIMEOUT."""


class Changes(TypedDict):
    """What changed since a baseline: the ids of the cases that newly are so."""

    path: str
    """Of that run's records."""
    failing: list[str]
    passing: list[str]
    skipped: list[str]


class LabRecord(TypedDict, total=False):
    """How it went with the machines of the lab; seconds are those of the slowest."""

    outcome: str
    reason: str
    attempts: int
    boot_seconds: float | None
    suite_seconds: float | None
    total_seconds: float | None
    console: list[str]
    """Its end, when it matters."""


class Ending(TypedDict):
    """What of the end of a run its cases do not tell."""

    seconds: float
    splats: list[list[str]]
    """Those that fell in no case."""
    foreign: NotRequired[list[str]]
    """One line each: splats that surely are other processes', which change no status."""
    lost: int
    """Kernel log records that were overwritten unread."""


class EndRecord(Ending, Envelope, total=False):
    """What closes a run."""

    type: Required[Literal["end"]]
    counts: Required[Annotated[dict[str, int], values.counts]]
    """How many cases had each verdict, or were ``observed`` or ``refused`` (see ``need``)."""
    interrupted: Required[bool]
    status: Required[Status]
    """The exit status."""
    fingerprint: Required[str]
    """12 hex digits over all observations."""

    broken: list[str]
    """The requirements that are not kept, by cases that are about them."""
    baseline: Changes
    """Under ``--baseline``."""
    unseen: list[str]
    """Under ``--known``: the entries of the history that were known and that no case shows, though
    cases passed that could."""
    report: list[str]
    """Of ``stress``, ``churn`` and ``fuzz``: the lines that a person read."""
    lab: LabRecord


Record = RunRecord | CaseRecord | EndRecord
"""Any record; its ``type`` says which."""


def run_of(
    cases: int, catalogue: int, *, resumed: int = 0, kernel_log: str = "watched"
) -> RunRecord:
    """Return the record that opens a run, with what must be in it."""
    return {
        "type": "run",
        "cases": cases,
        "catalogue": catalogue,
        "resumed": resumed,
        "kernel_log": kernel_log,
    }


def record_of(
    name: str, sentence: str, requirements: Iterable[str], outcome: CaseOutcome, ms: float = 0.0
) -> CaseRecord:
    """Return the record of a case that took ``ms``, unless its outcome says that itself."""
    record: CaseRecord = {
        "type": "case",
        "id": name,
        "sentence": sentence,
        "requirements": list(requirements),
        "verdict": outcome["verdict"],
        "ms": ms,
    }
    return {**record, **outcome}


def without(case: CaseRecord, names: Container[str]) -> CaseRecord:
    """Return the record of a case without some fields, none of which it must have."""
    return cast(CaseRecord, {name: value for name, value in case.items() if name not in names})
