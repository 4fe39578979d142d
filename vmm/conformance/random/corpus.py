"""The corpus of fuzz: scripts that reached a new kind of trace, kept between runs as files.

A directory holds one JSON document (``language.codec``) a script, named by its content. What lies
there may be of anybody: what is no script that fuzz may run is left out, and said.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

from vmm.conformance.language import codec
from vmm.conformance.language import script as s
from vmm.conformance.language.case import OBSERVE, Case
from vmm.conformance.language.vocabulary import word_of
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.msrs import STORABLE, is_unknown_to_kvm
from vmm.conformance.records import places
from vmm.conformance.records.results import default_directory
from vmm.msr import X2APIC_FIRST, X2APIC_LAST

SCRIPTS = 512
"""Scripts of a corpus, at most."""
BYTES = 64 << 10
"""Bytes of a script's file, at most."""
NAMES = 8 * SCRIPTS
"""Names that are looked at in a directory, at most."""

SAYS_HOW = ("reason", "vector", "errno", "ended", "shadow", "error")
"""Fields of an event that tell one way to end from another."""


class CorpusError(Exception):
    """The directory cannot be used; the text is one line."""


def kinds(script: s.Script, trace: s.Trace) -> frozenset[str]:
    """Return the kinds of trace that a script left; a script with one that is new is kept.

    A kind is a step, or two that follow each other. A step is an action's word and how it ended:
    the words of its events, with the reason of an exit, the vector of a fault, the errno of a
    refusal. Alone, it counts as well what takes an access another way through the kernel: what
    sort of MSR it is (nobody's, one that stores, the x2APIC's, another), its mode, what it comes
    after, and whether it is stopped at its exit. Indices, values and filters are no kind: so there
    are some thousands, and each is a way that KVM went.
    """
    cut = [
        (_word(action), _how(action), "+".join(map(_ending, events)))
        for action, events in zip(script, s.steps(script, trace), strict=False)
    ]
    alone = {f"{word}{how}={ended}" for word, how, ended in cut}
    plain = [f"{word}={ended}" for word, _, ended in cut]
    return frozenset(alone | {f"{one} {other}" for one, other in pairwise(plain)})


def _word(action: s.Action) -> str:
    inner = f".{word_of(type(action.access))}" if isinstance(action, s.Begin) else ""
    return word_of(type(action)) + inner


def _how(action: s.Action) -> str:
    access = action.access if isinstance(action, s.Begin) else action
    if isinstance(access, s.Rdmsr | s.Wrmsr):
        return f"[{_sort(access.index)} {access.mode} {access.after}]"
    return f"[{access.instruction}]" if isinstance(access, s.Execute) else ""


def _sort(index: int) -> str:
    if X2APIC_FIRST <= index <= X2APIC_LAST:
        return "x2apic"
    stores = "stores" if index in STORABLE else "another"
    return "nobody's" if is_unknown_to_kvm(index) else stores


def _ending(event: s.Event) -> str:
    fields = ((name, getattr(event, name, None)) for name in SAYS_HOW)
    if isinstance(event, s.Swept):
        return "swept " + ",".join(dict.fromkeys(each.ended for each in event.runs))
    told = ",".join(str(value) for _, value in fields if value is not None)
    return f"{word_of(type(event))}({told})"


class Corpus:
    """Scripts, and the kinds of trace that were seen; what reaches a new one is kept as a file.

    ``left_out`` says in one line what in the directory was no script, or is ""; ``trouble`` why
    no more is kept. ``waiting`` has what was there before, and has not run in this run.
    """

    def __init__(self, directory: Path, lets: Callable[[s.Script], bool]) -> None:
        """Read the directory, made if need be; CorpusError says why that cannot be.

        ``lets`` says which scripts may be run here.
        """
        self.directory = directory
        self.scripts: list[s.Script] = []
        self.seen: set[str] = set()
        self.left_out = ""
        self.lets = lets
        self.trouble = ""
        try:
            with places.directory(directory) as held:
                self._read(held)
        except OSError as error:
            raise CorpusError(f"no corpus in {directory}: {error.strerror}") from None
        self.waiting = [*self.scripts]
        self.began_with = len(self.scripts)

    def note(self, script: s.Script, trace: s.Trace) -> bool:
        """Take over what a script left; say whether it was kept for a new kind of trace."""
        new = kinds(script, trace) - self.seen
        self.seen |= new
        if not new or script in self.scripts or len(self.scripts) >= SCRIPTS:
            return False
        text = document(script)
        if len(text) > BYTES or not self.lets(script):
            return False
        self.scripts.append(script)
        try:
            if not self.trouble:
                with places.directory(self.directory) as held:
                    _write(held, text)
        except OSError as error:
            self.trouble = f"cannot write to the corpus in {self.directory}: {error.strerror}"
        return not self.trouble

    @property
    def summary(self) -> str:
        """What the corpus has now, in one line."""
        kept = len(self.scripts) - self.began_with
        line = f"corpus: {len(self.scripts)} scripts, {kept} of them new, {len(self.seen)} kinds"
        return f"{line} of trace; {self.trouble or f'in {self.directory}'}"

    @property
    def new(self) -> list[str]:
        """What was kept in this run: documents of one line each."""
        return [json.dumps(json.loads(document(each))) for each in self.scripts[self.began_with :]]

    def foretell(self) -> None:
        """Learn from the Model which kinds of trace are here, where none of it is run."""
        for each in self.scripts:
            self.take(each)

    def take(self, script: s.Script) -> bool:
        """Keep a script that ran elsewhere, if the Model says that its kind is new and it may."""
        return self.lets(script) and self.note(script, Model().predict(script))

    def _read(self, held: int) -> None:
        bad: list[str] = []
        for name in _names(held):
            if len(self.scripts) == SCRIPTS:
                bad.append(f"{name}: there are {SCRIPTS} already")
                break
            try:
                script = _load(name, held)
            except (OSError, ValueError) as error:
                bad.append(f"{name}: {getattr(error, 'strerror', None) or error}")
                continue
            if self.lets(script):
                self.scripts.append(script)
            else:
                bad.append(f"{name}: fuzz draws no such script for this host")
        if bad:
            number = f"{len(bad)} files of" if len(bad) > 1 else "a file of"
            self.left_out = f"left out {number} the corpus in {self.directory}: {bad[0]}"


def default() -> Path:
    """Return the directory of this user's corpus, beside where records are kept."""
    return default_directory().with_name("corpus")


def document(script: s.Script) -> str:
    """Return a script of the corpus as its file has it."""
    return codec.dump(Case("fuzz.corpus", "It reached a new kind of trace.", "", script, OBSERVE))


def _names(held: int) -> list[str]:
    with os.scandir(held) as entries:
        names = [entry.name for entry, _ in zip(entries, range(NAMES), strict=False)]
    return sorted(name for name in names if name.endswith(".json"))


def _load(name: str, held: int) -> s.Script:
    descriptor = places.open_regular(name, directory=held)
    try:
        return codec.load(places.read(descriptor, BYTES)).actions
    finally:
        os.close(descriptor)


def _write(held: int, text: str) -> None:
    name, whole = f".{os.getpid()}.new", sha256(text.encode()).hexdigest()[:16]
    with os.fdopen(places.create(name, held), "w", encoding="utf-8") as file:
        file.write(text)
    places.keep(name, f"{whole}.json", held)
