r"""What a player wrote down, judged: the lines of ``native/player.c`` become the ordinary records.

A line comes from a machine whose kernel is on trial and may say anything. So every line is bounded,
nothing is believed that was not asked for, and each case is judged here, by the Model's side, from
its events alone. One line a thing::

    msrward-player VERSION CRC RECORDS   fact PATH TEXT        module NAME     capability NAME N
    text M EVENTS        what a step left, from now on called M: 1, 2, 3 ...
    begin N PID          done N MS HOW STEPS   HOW: ok, timeout, stuck, died-SIGNAL, exited-STATUS
    lacks N NEED WHY     without N NEED
    log RECORD           lost                  taint N               parameter NAME VALUE
    said N TEXT          beat                  over RECORDS          unwatched WHY

N is the number of a record of the tape, from 0; PID is who plays it as the kernel's log calls him,
or left out; STEPS are numbers of texts, "4*3" for three in a row. Texts have what is no printable
character as \xNN. A case that asks what an access does alone has its record when those on the tape
have ended: they come first, but workers overtake each other.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from vmm.conformance.c.tape import Alone, crc_of, entries, tape
from vmm.conformance.host.klog import kernel_message, unescaped
from vmm.conformance.host.limits import LIMITS
from vmm.conformance.host.splats import find_splats
from vmm.conformance.judge.lines import (
    MOST_BYTES,
    MOST_LINE,
    Texts,
    TraceError,
    greet,
    shown,
)
from vmm.conformance.judge.machine import Machine
from vmm.conformance.judge.recording import Options, case_record
from vmm.conformance.judge.replay import Played, outcome
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import Script, Trace
from vmm.conformance.oracle.refused import asked_alone
from vmm.conformance.records.schema import CaseRecord
from vmm.conformance.records.status import Status
from vmm.conformance.records.verdict import Verdict


class Reading:
    """Takes a trace line by line, and gives the records of the cases as they end.

    ``host`` has the facts once ``has_host`` says so: before the first case has begun.
    """

    def __init__(self, cases: Sequence[Case], options: Options) -> None:
        """Expect a trace of the tape that has ``cases`` done, and of no other."""
        self.entries, self.options = entries(cases), options
        self.crc = crc_of(tape(cases, timeout=options.timeout))
        self.lacking: dict[str, str] = {}
        self.machine, self._texts = Machine(), Texts()
        self.is_over = False
        self.lost, self.bytes = 0, 0
        self.unwatched = ""
        self.seen: dict[str, Trace | str] = {}
        """What the player saw of each case that it did, or why that cannot be told."""
        self.stray: list[list[str]] = []
        self._playing: dict[int, Played | None] = {}
        self._trials: dict[int, list[str]] = {}
        """What was said of each need while it was tried."""
        self._undecided: dict[str, str] = {}
        """Needs that may be there or not, and why that is not known."""
        self._done: set[int] = set()
        self._alone: dict[tuple[Script, bool], Trace | str] = {}
        self._waiting: list[Played] = []
        self._log: list[str] = []
        self._greeted = False

    @property
    def host(self) -> dict[str, Any]:
        """The facts of the machine."""
        return self.machine.host

    @property
    def has_host(self) -> bool:
        """Whether they are known."""
        return self.machine.is_known

    @property
    def running(self) -> list[str]:
        """The ids of the cases that have begun and not ended."""
        return [played.case.id for played in self._playing.values() if played]

    @property
    def missing(self) -> list[str]:
        """The ids of the cases that have no record yet."""
        return [
            entry.id
            for number, entry in enumerate(self.entries)
            if isinstance(entry, Case) and number not in self._done
        ] + [played.case.id for played in self._waiting]

    def line(self, text: str) -> Iterator[CaseRecord]:
        """Take one line; yield the records that it completes. TraceError if it cannot be."""
        self.bytes += len(text) + 1
        if len(text) > MOST_LINE or self.bytes > MOST_BYTES:
            raise TraceError(f"the trace is longer than {MOST_BYTES >> 20} MiB, or a line of it is")
        word, _, rest = text.partition(" ")
        if not self._greeted:
            greet(word, rest, self.crc)
            self._greeted = True
        elif word not in TAKES:
            raise TraceError(f"no line of a trace: {shown(text)}")
        else:
            yield from TAKES[word](self, rest) or ()

    # --- what is said of the records of the tape ----------------------------------------------

    def _number(self, text: str) -> int:
        """Return the number of a record that has no end yet."""
        number = int(text) if re.fullmatch(r"\d{1,7}", text) else len(self.entries)
        if number >= len(self.entries) or number in self._done:
            raise TraceError(f"a record that was not asked for, or twice: {shown(text)}")
        return number

    def _begin(self, rest: str) -> None:
        text, _, pid = rest.partition(" ")
        number = self._number(text)
        self.machine.know()
        entry = self.entries[number]
        if number in self._playing or isinstance(entry, tuple):
            raise TraceError(f"what begins twice, or never: {shown(rest)}")
        if pid and not re.fullmatch(r"\d{1,9}", pid):
            raise TraceError(f"a worker that is no process: {shown(rest)}")
        played = Played(entry, self.machine.ignoring) if isinstance(entry, Case) else None
        if played and pid:
            played.pid = int(pid)
        self._playing[number] = played

    def _lacks(self, rest: str) -> None:
        text, need, why = (*rest.split(" ", 2), "", "")[:3]
        number = self._number(text)
        if number not in self._playing or self.entries[number] != need:
            raise TraceError(f"a need that was not asked for: {shown(rest)}")
        self.lacking[need] = unescaped(why) or "it is not there"

    def _without(self, rest: str) -> Iterator[CaseRecord]:
        """Take a case that was not played for want of what it needs."""
        text, _, need = rest.partition(" ")
        number = self._number(text)
        entry = self.entries[number]
        case = entry.case if isinstance(entry, Alone) else entry
        self.machine.know()
        if not isinstance(case, Case) or need not in self.lacking or need not in case.all_needs:
            raise TraceError(f"a case that lacks nothing: {shown(rest)}")
        self._done.add(number)
        if isinstance(entry, Alone):
            yield from self._know_alone(entry, f"it was not played for want of {need}")
        else:
            yield self._record(Played(case, self.machine.ignoring))

    def _said(self, rest: str) -> None:
        number, _, text = rest.partition(" ")
        if (at := self._number(number)) not in self._playing:
            return
        played = self._playing[at]
        said = played.said if played else self._trials.setdefault(at, [])
        if len(said) < 16:
            said.append(unescaped(text)[:300])

    def _done_line(self, rest: str) -> Iterator[CaseRecord]:
        text, ms, how, steps = (*rest.split(" ", 3), "", "", "")[:4]
        number = self._number(text)
        if number not in self._playing or not re.fullmatch(r"\d{1,9}", ms):
            raise TraceError(f"the end of what has not begun: {shown(rest)}")
        self._attribute()
        played = self._playing.pop(number)
        self._done.add(number)
        entry = self.entries[number]
        if played:
            self._waiting.append(replace(played, how=how, ms=float(ms), steps=steps))
            yield from self._judged()
        elif isinstance(entry, Alone):
            trace, damage = self._texts.trace(steps, 1)
            bad = damage or ("" if how == "ok" else f"the player's worker {shown(how)}")
            yield from self._know_alone(entry, bad or trace or "it left nothing")
        elif how != "ok":
            self._not_found_out(str(self.entries[number]), how, self._trials.get(number, []))

    def _not_found_out(self, need: str, how: str, said: Sequence[str]) -> None:
        """Take a need whose trial had no end: what the kernel refused a step of is not there.

        What a limit of the host or a signal ended says nothing.
        """
        text = ": ".join((f"the player {shown(how)} when it tried", *said))
        if how == f"exited-{Status.TROUBLE:d}" and not any(map(_is_limit, said)):
            self.lacking[need] = text
        else:
            self._undecided[need] = f"whether there is {need} was not found out: {text}"

    def _over(self, _: str) -> None:
        self.machine.know()
        self._attribute()
        if self._playing or self.missing:
            first = (self.running or self.missing or ["what a case needs"])[0]
            raise TraceError(f"it is over, and {first} has no end")
        self.is_over = True

    # --- the kernel log -----------------------------------------------------------------------

    def _log_line(self, rest: str) -> None:
        said = kernel_message(unescaped(rest))
        if said and len(self._log) < 10_000:
            self._log.append(said[1])

    def _lost(self, _: str) -> None:
        self.lost += 1

    def _attribute(self) -> None:
        """Give what the kernel said to the case whose worker it names, or to all that ran."""
        running = [played for played in self._playing.values() if played]
        for splat in find_splats(self._log):
            owners = [played for played in running if played.pid in splat.pids] or running
            for played in owners:
                played.splats.append(list(splat.lines))
            if not owners:
                self.stray.append(list(splat.lines))
        self._log.clear()

    # --- a case -------------------------------------------------------------------------------

    def _know_alone(self, entry: Alone, seen: Trace | str) -> Iterator[CaseRecord]:
        """Take what a lone access left, or why that is not known, and judge who waited for it."""
        self._alone[(entry.access,), self.machine.ignoring] = seen
        yield from self._judged()

    def _judged(self) -> Iterator[CaseRecord]:
        """Yield the records of the cases that have ended and ask for nothing that has not."""
        held, self._waiting = self._waiting, []
        for played in held:
            asked = (((access,), played.ignoring) for access in asked_alone(played.case))
            if all(key in self._alone for key in asked):
                yield self._record(played)
            else:
                self._waiting.append(played)

    def _record(self, played: Played) -> CaseRecord:
        ignoring = played.ignoring
        alone = {script: seen for (script, when), seen in self._alone.items() if when is ignoring}
        seen, ended = outcome(played, self._texts, self.lacking, alone, self.options.timeout)
        if seen or played.steps:
            self.seen[played.case.id] = seen
        options = replace(self.options, vendor=str(self.host.get("vendor_module") or ""))
        unknown = [each for each in played.case.all_needs if each in self._undecided]
        if unknown and ended["verdict"] is not Verdict.SKIP:
            ended = {"verdict": Verdict.ERROR, "error": self._undecided[unknown[0]]}
        ended["ms"] = played.ms  # the player's, not the judge's
        return case_record(played.case, ended, played.ms, played.splats, options)


def _is_limit(said: str) -> bool:
    return said.endswith(tuple(f": {os.strerror(number)}" for number in LIMITS))


TAKES: dict[str, Any] = {
    "fact": lambda reading, rest: reading.machine.fact(rest),
    "module": lambda reading, rest: reading.machine.module(rest),
    "capability": lambda reading, rest: reading.machine.capability(rest),
    "unwatched": lambda reading, rest: setattr(reading, "unwatched", unescaped(rest)),
    "begin": Reading._begin,
    "text": lambda reading, rest: reading._texts.add(rest),
    "lacks": Reading._lacks,
    "without": Reading._without,
    "said": Reading._said,
    "parameter": lambda reading, rest: reading.machine.parameter(rest),
    "done": Reading._done_line,
    "log": Reading._log_line,
    "lost": Reading._lost,
    "taint": lambda *_: None,
    "beat": lambda *_: None,
    "over": Reading._over,
}
"""What takes a line, by its first word."""
