"""Fuzz, stress and churn in a guest of the lab: what they find there, as far as it is believed.

The guest has the Python msrward and sends its records. What it says of a finding is a script and
what was seen: what should have been is the Model's, and it is asked here.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from shlex import quote
from types import MappingProxyType
from typing import Any

from vmm.conformance.judge.check import Trouble
from vmm.conformance.language import codec
from vmm.conformance.language.script import Script
from vmm.conformance.random.corpus import SCRIPTS, Corpus, document
from vmm.conformance.random.finding import Finding, as_case, drawn_of, finding_of
from vmm.conformance.records.jsonl import decode_live
from vmm.conformance.records.schema import CaseRecord, EndRecord, Record, RunRecord, without
from vmm.conformance.records.status import Status
from vmm.conformance.records.verdict import Verdict
from vmm.conformance.report.progress import Progress
from vmm.conformance.report.rerun import in_the_lab
from vmm.lab import append
from vmm.lab.kernels.kernels import Kernel
from vmm.lab.machines import machine
from vmm.lab.machines.emulation import Listener
from vmm.lab.machines.machine import LabResult
from vmm.lab.runs.account import account
from vmm.lab.runs.claims import OURS, Damaged, agree, doubt, summed
from vmm.lab.runs.order import told

COMMANDS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "fuzz": frozenset(),
        "stress": frozenset(("R14", "R70", "R71", "R72", "R77")),
        "churn": frozenset(("R76",)),
    }
)
"""What can be run so, and the requirements that its cases can be about."""
MOST = 64
"""Cases that one of them leaves, at most."""
SENT = 40
"""Scripts of the corpus that a guest starts from, at most: emulated, it does some two a second."""
_CORPUS = "/corpus"
_VERDICTS = (Verdict.PASS, Verdict.FAIL, Verdict.SKIP)


@dataclass(frozen=True, slots=True)
class Sampling:
    """What is to be run where: a command of ``COMMANDS``, its words, the seed that they go with.

    ``timeout`` is seconds of wall time, ``append`` is added to the kernel's command line, ``cpu``
    is the emulator's CPU model ("" for the vendor's own).
    """

    kernel: Kernel
    vendor: str
    command: str
    words: Sequence[str]
    seed: int
    timeout: float
    append: str = ""
    cpu: str = ""
    corpus: Corpus | None = None
    """What fuzz starts from; it is to know the kinds of what it has."""

    @property
    def argv(self) -> tuple[str, ...]:
        """The command in the guest."""
        command = ("python3", "-m", "vmm", self.command, "--json", *self.words)
        if self.command == "fuzz":
            command += (f"--corpus={_CORPUS}",) if self.corpus else ("--no-corpus",)
        return (*told(self.vendor), *command, f"--seed={self.seed}")

    @property
    def files(self) -> dict[str, bytes]:
        """What the guest needs besides msrward, by path: scripts of the corpus, by the seed."""
        scripts = self.corpus.scripts if self.corpus else []
        some = Random(self.seed).sample(scripts, min(len(scripts), SENT))
        return {f"{_CORPUS}/{n:03}.json": document(each).encode() for n, each in enumerate(some)}

    @property
    def again(self) -> str:
        """The command that does the same again, but for its words and seed."""
        where = (self.kernel.name, self.vendor, self.append, self.cpu)
        start = f" --corpus {quote(str(self.corpus.directory))}" if self.corpus else ""
        return in_the_lab(*where, what=self.command) + start


@dataclass
class Samples:
    """The records of one guest, as they come: ``said`` is what it said last."""

    command: str
    said: str = ""
    host: Mapping[str, Any] = field(default_factory=dict)
    run: RunRecord | None = None
    cases: dict[str, CaseRecord] = field(default_factory=dict)
    end: EndRecord | None = None
    kept: list[Script] = field(default_factory=list)
    """The scripts that the guest added to its corpus."""

    def take(self, line: str) -> None:
        """Take a line; Damaged if it cannot be of a run of the command."""
        try:
            record = decode_live(line)
        except ValueError as error:
            raise Damaged(f"the guest sent what is no record: {error}") from None
        if isinstance(record, str):
            self.said = record
            return
        host = record.pop("host")
        if self.end or bool(self.run) is (record["type"] == "run") or record["type"] == "first":
            raise Damaged(f"the guest sent a record of type {record['type']} out of turn")
        if record["type"] == "run":
            self.run, self.host = record, host
        elif record["type"] == "end":
            self._end(record)
        else:
            self._case(record)

    def _case(self, record: CaseRecord) -> None:
        name = record["id"]
        if not name.startswith(f"{self.command}.") or name in self.cases or len(self.cases) >= MOST:
            raise Damaged(f"the guest judged {name[:80]}, which {self.command} does not, or twice")
        if record["verdict"] not in _VERDICTS:
            raise Damaged(f"the guest calls {name[:80]} {record['verdict']}")
        about = [each for each in record["requirements"] if each in COMMANDS[self.command]]
        self._keep(record.pop("kept", []))
        self.cases[name] = {**without(record, OURS), "requirements": about}

    def _keep(self, documents: Sequence[str]) -> None:
        try:
            self.kept += [codec.load(each).actions for each in documents[:SCRIPTS]]
        except ValueError as error:
            raise Damaged(f"the guest keeps what is no script: {error}") from None

    def _end(self, end: EndRecord) -> None:
        if end["interrupted"] or not self.cases:
            raise Damaged("the run in the guest was interrupted")
        agree(summed(list(self.cases.values()), end), end)
        self.end = end

    def finding(self, command: str) -> Finding | None:
        """Return what was found, held against the Model; ``command`` draws it again."""
        record = self.cases.get("fuzz.found")
        if record is None or record["verdict"] is not Verdict.FAIL:
            return None
        if "found" not in record:
            raise Damaged("the guest found something, and does not say what")
        try:
            found = finding_of(record["found"], command)
        except ValueError as error:
            raise Damaged(f"what the guest found is no case: {error}") from None
        if found is None:
            raise Damaged("what the guest calls a finding is what the Model predicts")
        return found


@dataclass(frozen=True, slots=True)
class Sampled:
    """What came of it: the facts of the guest, its records, and of fuzz what was found."""

    host: Mapping[str, Any]
    run: RunRecord
    cases: list[CaseRecord]
    end: EndRecord
    finding: Finding | None = None

    @property
    def status(self) -> Status:
        """The exit status that the records amount to."""
        return self.end["status"]

    @property
    def records(self) -> list[Record]:
        """The records, as a run on a host leaves them."""
        return [self.run, *self.cases, self.end]


def run(order: Sampling) -> Sampled:
    """Boot the guest, run the command there, and return what came of it.

    What it does is shown on stderr meanwhile. Trouble says why there is no verdict, LabError why
    nothing could be booted.
    """
    samples, began = Samples(order.command), time.monotonic()
    progress = Progress(sys.stderr, 0)
    emulator = machine.emulator_of(order.vendor).title
    where = f"{order.kernel.release} ({order.vendor}, {emulator})"

    def tick() -> None:
        doing = samples.said or f"booting {where}: {time.monotonic() - began:.0f} s"
        progress.note(doing)

    listener = Listener(line=samples.take, tick=tick)
    try:
        result = machine.boot(
            *(order.kernel, order.vendor, order.argv),
            timeout=order.timeout,
            append=order.append,
            cpu=order.cpu,
            files=order.files,
            listener=listener,
        )
        found = samples.finding(order.again)
    except Damaged as error:
        raise Trouble(_last(str(error), samples)) from None
    finally:
        progress.clear()
    if trouble := doubt(result, samples.end):
        raise Trouble(_last(trouble, samples))
    if order.corpus:
        for each in samples.kept:
            order.corpus.take(each)
    if unknown := append.unknown(order.append, samples.host.get("parameters") or {}):
        raise Trouble(f"{order.kernel.name} has no parameter {', '.join(unknown)}")
    return _outcome(order, samples, result, found, emulator)


def _outcome(
    order: Sampling, samples: Samples, result: LabResult, found: Finding | None, emulator: str
) -> Sampled:
    lab = {
        **{"kernel": order.kernel.name, "vendor": order.vendor, "emulator": emulator},
        **{"append": order.append, "executor": "python", "cpu": order.cpu},
        "boot_seconds": account(result, whole=True)["boot_seconds"],
    }
    assert samples.run and samples.end  # else there was a doubt
    end: EndRecord = {**samples.end, "lab": account(result, whole=True)}
    host = {**samples.host, "lab": lab}
    cases = list(samples.cases.values())
    if found:  # what differs is what our Model says
        cases = [{**each, **as_case(found, 0, drawn=drawn_of(each["found"]))} for each in cases]
    return Sampled(host, samples.run, cases, end, found)


def _last(trouble: str, samples: Samples) -> str:
    return f"{trouble}; the last that it said: {samples.said}" if samples.said else trouble
