"""A run read back from its ``results.jsonl``, of a host or of the lab, and what it says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vmm.conformance.records import places
from vmm.conformance.records.jsonl import decode
from vmm.conformance.records.results import FILE, ResultsError, by_case, to_go_on
from vmm.conformance.records.schema import (
    CaseRecord,
    EndRecord,
    LabRecord,
    MachineRecord,
    Record,
    RunRecord,
)
from vmm.conformance.records.status import Status


def added_in(lab: MachineRecord | None) -> str:
    """Return ", MODEL, WORDS": the CPU and the command line that a machine of the lab was given."""
    told = (lab.get("cpu"), lab.get("append")) if lab else ()
    return "".join(f", {each}" for each in told if each)


@dataclass(frozen=True, slots=True)
class Saved:
    """The records of one run; ``end`` is None where it was cut short.

    ``firsts`` has what cases left that were to be judged once more, and were not; ``run`` opened
    the run last, and is None where the file does not say.
    """

    path: Path
    host: Mapping[str, Any]
    cases: Mapping[str, CaseRecord]
    end: EndRecord | None
    firsts: Mapping[str, CaseRecord] = field(default_factory=dict)
    run: RunRecord | None = None

    @property
    def name(self) -> str:
        """The kernel, the vendor's KVM module or the lab's machine, what its command line adds."""
        lab = self.host.get("lab")
        where = lab["vendor"] if lab else self.host.get("vendor_module") or "kvm"
        return f"{self.host.get('release')} ({where}{added_in(lab)})"

    @property
    def lab(self) -> LabRecord:
        """How it went with the machines of the lab; empty where there were none, or no end."""
        return self.end.get("lab", {}) if self.end else {}

    @property
    def trouble(self) -> str:
        """Why there is no verdict, or ""."""
        if not self.end:
            return "the run did not get to its end"
        if self.end["status"] != Status.TROUBLE:
            return ""
        return self.lab.get("reason") or "the harness had trouble"


class Empty(ResultsError):
    """No run has written to the file."""


def load(place: Path, *, cut: bool = False) -> Saved:
    """Read a results file, or the one in a run's directory; ResultsError says what is wrong.

    With ``cut`` a last line without its end is left out, as a kill leaves it.
    """
    path = place / FILE if place.is_dir() else place
    try:
        data = places.read_regular(path)
        text = (data[: data.rfind(b"\n") + 1] if cut else data).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ResultsError(f"cannot read {path}: {_why(error)}") from None
    records = [_record(path, number, line) for number, line in enumerate(_lines(text), start=1)]
    if not records:
        raise Empty(f"{path} is empty: no run has written to it")
    cases, firsts = by_case(records)
    run = next((each for each in records[::-1] if each["type"] == "run"), None)
    last = next((each for each in records[::-1] if each["type"] in ("run", "end")), None)
    end = last if last and last["type"] == "end" else None  # not that of a run that was continued
    return Saved(path, records[-1]["host"], cases, end, firsts, run)


def to_resume(directory: Path) -> Saved | None:
    """Return the run that is to go on: its cases are those that need not be judged again.

    None where it has judged none, so that its facts may be those of no kernel yet.
    """
    if not (directory / FILE).exists():
        return None
    try:
        run = load(directory, cut=True)
    except Empty:
        return None
    cases, firsts = to_go_on(run.cases, run.firsts)
    return replace(run, cases=cases, firsts=firsts) if run.cases or run.firsts else None


def load_all(places: Iterable[Path]) -> list[Saved]:
    """Read the runs of directories and files; a directory of runs, as a matrix is, stands for all.

    ResultsError says what is wrong with the first that cannot be read.
    """
    return [load(found) for place in places for found in _found(place)]


def must_not_be_of(file: Path, runs: Iterable[Saved]) -> None:
    """Raise ResultsError where ``file``, which is to be written, holds one of the ``runs``."""
    for run in runs:
        if file.exists() and run.path.exists() and file.samefile(run.path):
            raise ResultsError(
                f"{file} holds the records that are read: name another place with -o"
            )


def _found(place: Path) -> Sequence[Path]:
    if not place.is_dir() or (place / FILE).exists():
        return [place]
    inner = sorted(path.parent for path in place.glob(f"*/{FILE}"))
    if not inner:
        raise ResultsError(f"{place} has no records: neither {FILE} nor directories with one")
    return inner


def _lines(text: str) -> list[str]:
    return text.removesuffix("\n").split("\n") if text else []


def _record(path: Path, number: int, line: str) -> Record:
    try:
        return decode(line)
    except ValueError as error:
        raise ResultsError(f"{path} is damaged at line {number} ({error})") from None


def _why(error: OSError | UnicodeDecodeError) -> str:
    return (error.strerror if isinstance(error, OSError) else "it is no text") or str(error)
