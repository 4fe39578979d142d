"""What a guest says of its run, held against what was asked of it.

The records are made by the kernel under test. Here it is decided what of them is believed: counts
and status are computed anew, every case that was asked for is there exactly once, and the words of
the contract are the host's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from vmm.conformance.language.case import Case
from vmm.conformance.records.jsonl import decode
from vmm.conformance.records.schema import CaseRecord, Ending, EndRecord, Record, without
from vmm.conformance.records.status import Status
from vmm.conformance.records.steadiness import ways
from vmm.conformance.records.summary import end_record
from vmm.conformance.records.verdict import Verdict
from vmm.lab.machines.machine import LabResult, Outcome

OURS = ("file", "rerun", "cause")
"""Fields of a case that no guest fills in."""
Told = tuple[Record, Mapping[str, Any]]
"""A record, and the facts of its host."""


class Damaged(Exception):
    """What the guest says cannot be of a run of ours; the text is one line."""


class Claims:
    """The records of one guest, as they come. ``end`` is None until it came, and agrees."""

    def __init__(self, asked: Iterable[Case], options: Sequence[str], repeat: int = 1) -> None:
        """Expect ``asked``, and failures as known only where the ``options`` name any.

        Each case is judged ``repeat`` times.
        """
        self.repeat = repeat
        self.asked = {case.id: case for case in asked}
        self.excuses = any(word.startswith(("--xfail", "--known")) for word in options)
        self.cases: dict[str, CaseRecord] = {}
        self.firsts: set[str] = set()
        self.begun = False
        self.end: EndRecord | None = None

    running: tuple[str, ...] = ()
    """The guest does not say what runs."""

    def take(self, line: str) -> Iterator[Told]:
        """Yield the record of a line, as far as it is believed, and its host's facts."""
        try:
            record = decode(line)
        except ValueError as error:
            raise Damaged(f"the guest sent what is no record: {error}") from None
        host = record.pop("host")
        if self.end or self.begun is (record["type"] == "run"):
            raise Damaged(f"the guest sent a record of type {record['type']} out of turn")
        self.begun = True
        if record["type"] != "run" and record["type"] != "end":
            record = self._case(record)
        elif record["type"] == "end":
            self._end(record)
        yield record, host

    def _case(self, record: CaseRecord) -> CaseRecord:
        name = record["id"]
        taken = self.cases if record["type"] == "case" else {*self.cases, *self.firsts}
        if name not in self.asked or name in taken:
            how = "twice" if name in taken else "unasked"
            raise Damaged(f"the guest judged {name[:80]} {how}")
        case = self.asked[name]
        if record["verdict"] in (Verdict.XFAIL, Verdict.XPASS) and not self.excuses:
            raise Damaged(f"the guest excuses {name}, and no failure was known")
        if case.observes and record["verdict"] is Verdict.PASS and "observation" not in record:
            raise Damaged(f"the guest passed {name}, which observes, and saw nothing")
        believed: CaseRecord = {
            **without(record, OURS),
            "sentence": case.sentence,
            "requirements": list(case.requirements),
        }
        if record["type"] == "first":
            self.firsts.add(name)
        else:
            self._require_repeats(record)
            self.cases[name] = believed
        return believed

    def _require_repeats(self, record: CaseRecord) -> None:
        times = sum(record.get("repeats", {}).values()) or 1
        if times != self.repeat:
            name = record["id"]
            raise Damaged(f"the guest judged {name} {times} times, and was to {self.repeat}")
        failed = any(way.is_violation for way in ways(record))
        if failed and not record["verdict"].is_bad:
            raise Damaged(f"the guest calls {record['id']} {record['verdict']}, which failed")

    def _end(self, end: EndRecord) -> None:
        """Take the end if it is what the cases amount to."""
        if end["interrupted"]:
            raise Damaged("the run in the guest was interrupted")
        agree(self.summed(end["status"] == Status.TROUBLE, end), end)
        missing = [name for name in self.asked if name not in self.cases]
        if missing and end["status"] != Status.TROUBLE:
            raise Damaged(
                f"{len(missing)} of {len(self.asked)} cases have no record, the first is"
                f" {missing[0]}"
            )
        self.end = end

    def summed(self, trouble: bool, end: EndRecord) -> EndRecord:
        """Return the end that the cases amount to."""
        return summed(list(self.cases.values()), end, trouble=trouble)

    @property
    def is_troubled(self) -> bool:
        """Whether the guest could not go on, which its cases do not tell."""
        if not self.end or self.end["status"] != Status.TROUBLE:
            return False
        return self.summed(False, self.end)["status"] != Status.TROUBLE

    def doubt(self, result: LabResult) -> str:
        """Return why what came of the boot is no verdict, or ""."""
        some = f" after {len(self.cases)} of {len(self.asked)} cases" if self.cases else ""
        return doubt(result, self.end, some)


def summed(
    cases: Sequence[CaseRecord], told: Ending, *, interrupted: bool = False, trouble: bool = False
) -> EndRecord:
    """Return the end that cases amount to, with what of it the guest has ``told``."""
    return end_record(
        cases,
        told["seconds"],
        splats=told["splats"],
        foreign=told.get("foreign", ()),
        lost=told["lost"],
        interrupted=interrupted,
        trouble=trouble,
    )


def agree(ours: EndRecord, end: EndRecord) -> None:
    """Raise Damaged where an ``end`` is not what its cases amount to, which is ``ours``."""
    sides = (
        ("counts", end["counts"], ours["counts"]),
        ("status", int(end["status"]), int(ours["status"])),
        ("fingerprint", end["fingerprint"], ours["fingerprint"]),
    )
    for field, theirs, those in sides:
        if theirs != those:
            said = f"the guest says {field} {theirs!r}, and its records {those!r}"
            raise Damaged(said if len(said) < 400 else f"{said[:400]}...")


def doubt(result: LabResult, end: EndRecord | None, some: str = "") -> str:
    """Return why a boot that left the record ``end`` is no verdict, or ""; it did ``some``."""
    last = next((line for line in reversed(result.console_tail) if line.strip()), "silence")
    if result.outcome is not Outcome.DONE:
        return f"{result.reason}{some}; the console ended with: {last}"
    if not end:
        return f"the run in the guest ended with status {result.status}: {last}"
    if result.status != end["status"]:
        ended = f"ended with status {result.status}, and its records with {end['status']}"
        return f"the run in the guest {ended:s}"
    return ""
