r"""What a player wrote down, judged: the lines of ``native/player.c`` become the ordinary records.

A line comes from a machine whose kernel is on trial and may say anything. So every line is bounded,
nothing is believed that was not asked for, and each case is judged here, by the Model's side, from
its events alone. One line a thing::

    msrward-player VERSION CRC RECORDS   fact PATH TEXT        module NAME     capability NAME N
    text M EVENTS        what a step left, from now on called M: 1, 2, 3 ...
    begin N              done N MS HOW STEPS   HOW: ok, timeout, stuck, died-SIGNAL, exited-STATUS
    lacks N NEED WHY     without N NEED
    log RECORD           lost                  taint N               parameter NAME VALUE
    said N TEXT          beat                  over RECORDS          unwatched WHY

N is the number of a record of the tape, from 0; STEPS are numbers of texts, "4*3" for three in a
row. Texts have what is no printable character as \xNN. A case that asks what an access does alone
has its record when those on the tape have ended: they come first, but workers overtake each other.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vmm.conformance.c.notation import read_events
from vmm.conformance.c.tape import VERSION, Alone, crc_of, entries, tape
from vmm.conformance.host import facts as host_facts
from vmm.conformance.host.klog import find_splats, kernel_message
from vmm.conformance.judge.judging import judge
from vmm.conformance.judge.recording import Options, case_record
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import Script, Step, Trace
from vmm.conformance.oracle.refused import asked_alone
from vmm.conformance.records.schema import Record
from vmm.conformance.records.verdict import Verdict

MOST_LINE, MOST_BYTES = 1 << 18, 1 << 26
MOST_FACT = 1 << 15
ESCAPED = re.compile(r"\\x([0-9a-f]{2})")
FACT = re.compile(r"/(?:proc/(?:sys/)?|sys/)[A-Za-z0-9_./-]{1,200}")
STEPS = re.compile(r"(\d{1,5})(?:\*(\d{1,5}))?")
MOST_TEXTS = 1 << 14
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
PARAMETER = "/sys/module/kvm/parameters/ignore_msrs"


class TraceError(ValueError):
    """It is no trace of the tape that was to be played; the text is one line that says why."""


@dataclass
class _Played:
    """A case that has begun, and what else was said meanwhile."""

    case: Case
    ignoring: bool
    said: list[str] = field(default_factory=list)
    splats: list[list[str]] = field(default_factory=list)


class Reading:
    """Takes a trace line by line, and gives the records of the cases as they end.

    ``host`` has the facts once ``has_host`` says so: before the first case has begun.
    """

    def __init__(self, cases: Sequence[Case], options: Options) -> None:
        """Expect a trace of the tape that has ``cases`` done, and of no other."""
        self.entries, self.options = entries(cases), options
        self.crc = crc_of(tape(cases, timeout=options.timeout))
        self.lacking: dict[str, str] = {}
        self.host: dict[str, Any] = {}
        self.has_host = self.is_over = False
        self.lost, self.bytes = 0, 0
        self.unwatched = ""
        self.seen: dict[str, Trace | str] = {}
        """What the player saw of each case that it did, or why that cannot be told."""
        self.stray: list[list[str]] = []
        self._facts: dict[str, str] = {}
        self._modules: list[str] = []
        self._capabilities: dict[str, int] = {}
        self._texts: list[Step | str] = []
        self._playing: dict[int, _Played | None] = {}
        self._done: set[int] = set()
        self._alone: dict[tuple[Script, bool], Trace | str] = {}
        self._waiting: list[tuple[_Played, str, float, str]] = []
        self._log: list[str] = []
        self._ignoring = False
        self._greeted = False

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
        ] + [played.case.id for played, *_ in self._waiting]

    def line(self, text: str) -> Iterator[Record]:
        """Take one line; yield the records that it completes. TraceError if it cannot be."""
        self.bytes += len(text) + 1
        if len(text) > MOST_LINE or self.bytes > MOST_BYTES:
            raise TraceError(f"the trace is longer than {MOST_BYTES >> 20} MiB, or a line of it is")
        word, _, rest = text.partition(" ")
        if not self._greeted:
            self._greet(word, rest)
        elif word not in TAKES:
            raise TraceError(f"no line of a trace: {_shown(text)}")
        else:
            yield from TAKES[word](self, rest) or ()

    # --- what is said of the machine --------------------------------------------------------

    def _greet(self, word: str, rest: str) -> None:
        if word != "msrward-player" or not rest:
            raise TraceError(f"it does not begin as a trace: {_shown(f'{word} {rest}')}")
        version, crc = (*rest.split(" "), "")[:2]
        if version != f"{VERSION:08x}":
            raise TraceError(
                f"its player is of version {_shown(version)}, and this one of {VERSION:08x}:"
                " take the player from this msrward"
            )
        if crc != f"{self.crc:08x}":
            raise TraceError(
                "it was made of another tape: judge by the msrward, the globs and the timeout"
                " that wrote the tape"
            )
        self._greeted = True

    def _fact(self, rest: str) -> None:
        path, _, content = rest.partition(" ")
        if self.has_host or not FACT.fullmatch(path) or ".." in path or len(content) > MOST_FACT:
            raise TraceError(f"no fact that a player tells: {_shown(path)}")
        self._facts[path] = _unescaped(content)
        if path == PARAMETER:
            self._ignoring = self._facts[path][:1] in ("Y", "1")

    def _module(self, rest: str) -> None:
        if not NAME.fullmatch(rest) or len(self._modules) > 16:
            raise TraceError(f"no module that a player tells: {_shown(rest)}")
        self._modules.append(rest)

    def _capability(self, rest: str) -> None:
        name, _, value = rest.partition(" ")
        if not NAME.fullmatch(name) or not re.fullmatch(r"-?\d{1,9}", value):
            raise TraceError(f"no capability that a player tells: {_shown(rest)}")
        self._capabilities[name] = int(value)

    def _know_host(self) -> None:
        if self.has_host:
            return
        with tempfile.TemporaryDirectory(prefix="msrward-") as root:
            for module in self._modules:
                (Path(root) / "sys/module" / module).mkdir(parents=True, exist_ok=True)
            for path, content in self._facts.items():
                file = Path(root + path)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content.encode("latin-1", "replace"))
            self.host = dict(host_facts.facts(root))
        hostname = self._facts.get("/proc/sys/kernel/hostname", "").strip()
        self.host |= {"hostname": hostname, "capabilities": self._capabilities}
        self.has_host = True

    # --- what is said of the records of the tape ----------------------------------------------

    def _number(self, text: str) -> int:
        """Return the number of a record that has no end yet."""
        number = int(text) if re.fullmatch(r"\d{1,7}", text) else len(self.entries)
        if number >= len(self.entries) or number in self._done:
            raise TraceError(f"a record that was not asked for, or twice: {_shown(text)}")
        return number

    def _text(self, rest: str) -> None:
        number, _, text = rest.partition(" ")
        if number != str(len(self._texts) + 1) or len(self._texts) >= MOST_TEXTS:
            raise TraceError(f"a text out of its turn: {_shown(rest)}")
        try:
            self._texts.append(read_events(_unescaped(text)))
        except ValueError as error:
            self._texts.append(str(error))

    def _begin(self, rest: str) -> None:
        number = self._number(rest)
        self._know_host()
        entry = self.entries[number]
        if number in self._playing or isinstance(entry, tuple):
            raise TraceError(f"what begins twice, or never: {_shown(rest)}")
        played = _Played(entry, self._ignoring) if isinstance(entry, Case) else None
        self._playing[number] = played

    def _lacks(self, rest: str) -> None:
        text, need, why = (*rest.split(" ", 2), "", "")[:3]
        number = self._number(text)
        if number not in self._playing or self.entries[number] != need:
            raise TraceError(f"a need that was not asked for: {_shown(rest)}")
        self.lacking[need] = _unescaped(why) or "it is not there"

    def _without(self, rest: str) -> Iterator[Record]:
        """Take a case that was not played for want of what it needs."""
        text, _, need = rest.partition(" ")
        number = self._number(text)
        entry = self.entries[number]
        case = entry.case if isinstance(entry, Alone) else entry
        self._know_host()
        if not isinstance(case, Case) or need not in self.lacking or need not in case.all_needs:
            raise TraceError(f"a case that lacks nothing: {_shown(rest)}")
        self._done.add(number)
        if isinstance(entry, Alone):
            yield from self._know_alone(entry, f"it was not played for want of {need}")
        else:
            yield self._record(_Played(case, self._ignoring), "ok", 0.0, "")

    def _said(self, rest: str) -> None:
        number, _, text = rest.partition(" ")
        played = self._playing.get(self._number(number))
        if played and len(played.said) < 16:
            played.said.append(_unescaped(text)[:300])

    def _parameter(self, rest: str) -> None:
        name, _, value = rest.partition(" ")
        if name == "ignore_msrs" and value in ("0", "1"):
            self._ignoring = value == "1"

    def _done_line(self, rest: str) -> Iterator[Record]:
        text, ms, how, steps = (*rest.split(" ", 3), "", "", "")[:4]
        number = self._number(text)
        if number not in self._playing or not re.fullmatch(r"\d{1,9}", ms):
            raise TraceError(f"the end of what has not begun: {_shown(rest)}")
        self._attribute()
        played = self._playing.pop(number)
        self._done.add(number)
        entry = self.entries[number]
        if played:
            self._waiting.append((played, how, float(ms), steps))
            yield from self._judged()
        elif isinstance(entry, Alone):
            trace, damage = self._trace(steps, 1)
            bad = damage or ("" if how == "ok" else f"the player's worker {_shown(how)}")
            yield from self._know_alone(entry, bad or trace or "it left nothing")
        elif how != "ok":  # a need that could not be found out
            self.lacking[str(self.entries[number])] = f"the player {_shown(how)} when it tried"

    def _over(self, _: str) -> None:
        self._know_host()
        self._attribute()
        if self._playing or self.missing:
            first = (self.running or self.missing or ["what a case needs"])[0]
            raise TraceError(f"it is over, and {first} has no end")
        self.is_over = True

    # --- the kernel log -----------------------------------------------------------------------

    def _log_line(self, rest: str) -> None:
        said = kernel_message(_unescaped(rest))
        if said and len(self._log) < 10_000:
            self._log.append(said[1])

    def _lost(self, _: str) -> None:
        self.lost += 1

    def _attribute(self) -> None:
        """Give what the kernel said to the cases that ran: one of them, or all, may be why."""
        for splat in find_splats(self._log):
            owners = [played for played in self._playing.values() if played]
            for played in owners:
                played.splats.append(list(splat.lines))
            if not owners:
                self.stray.append(list(splat.lines))
        self._log.clear()

    # --- a case -------------------------------------------------------------------------------

    def _know_alone(self, entry: Alone, seen: Trace | str) -> Iterator[Record]:
        """Take what a lone access left, or why that is not known, and judge who waited for it."""
        self._alone[(entry.access,), self._ignoring] = seen
        yield from self._judged()

    def _judged(self) -> Iterator[Record]:
        """Yield the records of the cases that have ended and ask for nothing that has not."""
        held, self._waiting = self._waiting, []
        for each in held:
            played = each[0]
            asked = (((access,), played.ignoring) for access in asked_alone(played.case))
            if all(key in self._alone for key in asked):
                yield self._record(*each)
            else:
                self._waiting.append(each)

    def _record(self, played: _Played, how: str, ms: float, steps: str) -> Record:
        options = replace(self.options, vendor=str(self.host.get("vendor_module") or ""))
        outcome = self._outcome(played, how, steps) | {"ms": ms}  # the player's, not the judge's
        return case_record(played.case, outcome, ms, played.splats, options)

    def _outcome(self, played: _Played, how: str, steps: str) -> Record:
        name = played.case.id
        if how in ("timeout", "stuck"):
            self.seen[name] = "it was killed at its deadline"
            limit = f"killed at its deadline of {self.options.timeout:g} s"
            note = "; it is stuck in the kernel" * (how == "stuck")
            return {"verdict": Verdict.TIMEOUT, "error": limit + note}
        trace, damage = self._trace(steps, len(played.case.actions))
        if how != "ok" or damage:
            error = damage or f"the player's worker {_shown(how)}"
            said = "; ".join(played.said)
            self.seen[name] = f"{error}: {said}" if said else error
            return {"verdict": Verdict.ERROR, "error": self.seen[name]}
        if steps:
            self.seen[name] = trace
        ignoring = played.ignoring
        alone = {script: seen for (script, when), seen in self._alone.items() if when is ignoring}
        seen = _Seen(played.case.actions, trace, self.lacking, alone)
        return judge(played.case, seen, ignoring=ignoring)

    def _trace(self, steps: str, most: int) -> tuple[Trace, str]:
        """Return the events of the steps, and what is wrong with what should name them."""
        events: list[Any] = []
        for word in steps.split():
            if not (ref := STEPS.fullmatch(word)):
                return (), f"no steps: {_shown(steps)}"
            text, times = int(ref[1]), int(ref[2] or 1)
            if not 0 < text <= len(self._texts) or times > most:
                return (), f"a step that nothing says: {_shown(word)}"
            if isinstance(step := self._texts[text - 1], str):
                return (), f"a step that no word leaves: {step}"
            most -= times
            events += step * times
        return tuple(events), ""


TAKES: dict[str, Any] = {
    "fact": Reading._fact,
    "module": Reading._module,
    "capability": Reading._capability,
    "unwatched": lambda reading, rest: setattr(reading, "unwatched", _unescaped(rest)),
    "begin": Reading._begin,
    "text": Reading._text,
    "lacks": Reading._lacks,
    "without": Reading._without,
    "said": Reading._said,
    "parameter": Reading._parameter,
    "done": Reading._done_line,
    "log": Reading._log_line,
    "lost": Reading._lost,
    "taint": lambda *_: None,
    "beat": lambda *_: None,
    "over": Reading._over,
}
"""What takes a line, by its first word."""


@dataclass(frozen=True)
class _Seen:
    """A backend that has run the case already: elsewhere, by the player."""

    script: Script
    trace: Trace
    lacking: Mapping[str, str]
    alone: Mapping[Script, Trace | str]

    def run(self, script: Script, *, expected: Trace | None = None) -> Trace:
        """Return what the player saw; LookupError where it did not see the end of it."""
        seen = self.trace if script == self.script else self.alone.get(script, "it was not asked")
        if isinstance(seen, str):
            raise LookupError(f"what {script[0]!r} does alone is not known: {seen}")
        return seen

    def lacks(self, need: str) -> str | None:
        """Return why the player's machine does not have ``need``."""
        return self.lacking.get(need)

    def close(self) -> None:
        """Have nothing to give back."""


def _unescaped(text: str) -> str:
    return ESCAPED.sub(lambda match: chr(int(match[1], 16)), text)


def _shown(text: str) -> str:
    return ascii(text)[1:-1][:80]
