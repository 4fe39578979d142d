"""The records and their fields: what ``results.jsonl`` and ``--json`` hold, schema version 1.

Every line is one object with ``schema`` (1), ``type`` and ``host`` (``vmm.conformance.host.facts``:
the kernel release, vendor module, CPU, bare metal or nested, module parameters, capabilities,
taint).

``run`` opens a run: ``started`` (seconds since 1970), ``cases`` (how many are to be judged, out of
``catalogue``), ``resumed`` (how many of them an earlier run had recorded), ``jobs``, ``timeout``
(seconds for a case), ``kernel_log`` ("watched", or why not), of a part of a run its ``shard``
("2/5"), under ``--repeat`` how often each case is judged (``repeat``), and ``merged`` (of how
many runs ``msrward merge`` made it).

``case`` is one case: ``CaseRecord``. Each case of a run has one; where ``--resume`` judged it
again, since it was ERROR or TIMEOUT, the last one counts.

``first`` has the same fields: what a case left that failed or timed out and is therefore judged
once more, alone, in a fresh worker and VM. Its ``case`` follows, with the first evidence and
``again``; where none does, the run was cut short before, and ``--resume`` judges it.

``end`` closes a run: ``counts`` (by verdict, ``observed`` and
``refused``: see ``need``), ``seconds``, ``interrupted``,
``status`` (the exit status), ``fingerprint`` (12 hex digits over all observations), ``splats``
that fell in no case, ``foreign`` (one line each: splats that surely are other processes', which
change no status), ``lost`` (kernel log records that were overwritten unread), and ``broken`` (the
requirements that are not kept, by cases that are about them). Under
``--baseline`` it has ``baseline``: the ``path`` of that run's records, and the ids of the cases
that are newly ``failing``, ``passing`` or ``skipped``. Under ``--known`` it has ``unseen``: the
entries of the history that were known and that no case shows, though cases passed that could.

A run of ``stress``, ``churn`` or ``fuzz`` has the same three records, and its ``end`` has
``report``: the lines that a person read. Under ``--json`` such a run says in passing what it does:
``live`` has ``line`` and no facts of the host; it is in no file.

In the lab ``host`` has ``lab`` as well: ``kernel`` (what the user called it), ``vendor``,
``emulator``, ``cpu`` (its model, if it is not the vendor's own), ``append`` (what its command line
has besides), ``boot_seconds``, ``machines`` (how many played side by side); ``end`` has ``lab``:
``outcome``, ``reason``, ``attempts``, seconds (of the slowest machine), and the ``console``'s end
when it matters.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Any, Literal, Required, TypedDict, cast

from vmm.conformance.records.verdict import Verdict

SCHEMA = 1
Record = dict[str, Any]
"""Any record, as it was read."""


class StepRecord(TypedDict):
    """A step that left other events than expected: its place in the script, from 1, and both."""

    step: int
    action: str
    expected: list[str]
    seen: list[str]


class CaseOutcome(TypedDict, total=False):
    """What became of a case. The first field always is there, the others where they apply."""

    verdict: Required[Verdict]
    ms: float

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


class CaseRecord(CaseOutcome, total=False):
    """What is kept of one case: who it is, its outcome, and the other fields where they apply."""

    type: Required[Literal["case", "first", "run"]]
    """"run" in reports only, of what went wrong with the run as a whole."""
    id: Required[str]
    sentence: Required[str]
    requirements: Required[list[str]]
    """Ids; the first is the one that the case is about."""

    script: list[str]
    """One action's code text an item: of every case that is not PASS, SKIP or XPASS."""
    file: str
    """The JSON file that the case was read from, if it is none of the catalogue."""
    cause: str
    """The entry of the history that explains all that differs, where one does."""
    again: CaseOutcome
    """What came of it when it was judged once more: ``verdict``, ``ms`` and its own evidence.
    Absent where a splat was evidence enough, or others had timed out twice already."""
    repeats: dict[str, int]
    """Under ``--repeat``: how often it had each verdict. The evidence is that of its first failure,
    and ``verdict`` is UNSTEADY if it did not fail every time."""
    varied: list[str]
    """Under ``--repeat``: the observations of a case that made more than one, the first first."""
    series: dict[str, list[list[float]]]
    """What was measured while it ran, by name with unit: seconds since the start, and value."""
    histograms: dict[str, list[int]]
    """How often a measure lay where, by name with unit: the n-th (from 0) counts values from 2**n
    on, and below 2**(n+1). 64 counts at most."""
    found: Record
    """What ``fuzz`` found: ``case``, the JSON of a case (``language.codec``) with the trace seen;
    ``seed``, ``examples`` and ``bulk`` of the call that drew it; ``steady``, if it came again."""
    kept: list[str]
    """Under ``fuzz --json``: the scripts that it added to its corpus, as JSON of cases."""
    first: Verdict
    """What an UNSTEADY case was when it failed: FAIL or TIMEOUT."""

    schema: int
    host: Record


def case_of(record: Mapping[str, Any]) -> CaseRecord:
    """Return the record of a case that was read (``shape.checked``) as what it is."""
    return cast(CaseRecord, record)


def record_of(
    name: str, sentence: str, requirements: Iterable[str], outcome: CaseOutcome, ms: float = 0.0
) -> CaseRecord:
    """Return the record of a case that took ``ms``, unless its outcome says that itself."""
    told: Mapping[str, Any] = outcome
    who = {"type": "case", "id": name, "sentence": sentence, "requirements": list(requirements)}
    return case_of({**who, "ms": ms, **told})


def without(case: CaseRecord, names: Container[str]) -> CaseRecord:
    """Return the record of a case without some fields, none of which it must have."""
    return case_of({name: value for name, value in case.items() if name not in names})
