"""Mutants of the kernel: one-mistake changes of KVM's source, and a private tree to make them in.

The mutants are data (kernel_mutants.toml): exact replacements against a named source package.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from vmm.lab.errors import LabError

_PRISTINE = ".msrward-pristine"


class DoesNotApply(LabError):
    """The source is another one than the mutant was written for."""


@dataclass(frozen=True, slots=True)
class Change:
    """One replacement: `old` occurs exactly once in `file`, a path below the tree."""

    file: str
    old: str
    new: str

    def apply(self, text: str) -> str:
        """Return the text of the file with the replacement made."""
        if (found := text.count(self.old)) != 1:
            raise DoesNotApply(f"{self.file} has the text to replace {found} times, not once")
        return text.replace(self.old, self.new)


@dataclass(frozen=True, slots=True)
class Mutant:
    """A mistake, the requirements it violates, and the vendor's machine that shows it.

    `package` has the source that it is a mistake in, "" where that is all others'; `cpu` is the
    emulator's CPU model, "" for the vendor's own.

    `cases` are globs of the cases to run where the usual themes are not the right ones; `churn`
    says that `msrward churn` is to judge instead, which measures what is lost;
    `explained` says why surviving is right, or what would have to be said to see the mistake.
    """

    name: str
    summary: str
    violates: tuple[str, ...]
    changes: tuple[Change, ...]
    vendor: str = "svm"
    cases: tuple[str, ...] = ()
    explained: str = ""
    churn: bool = False
    package: str = ""
    cpu: str = ""

    @property
    def release(self) -> str:
        """What its source is of, as upstream counts: "6.1"."""
        return (self.package or package()).rpartition("-")[2]

    @property
    def digest(self) -> str:
        """What its changes are, in a few hex digits: a changed mutant is another one."""
        return hashlib.sha256(repr(self.changes).encode()).hexdigest()[:16]


def load() -> tuple[Mutant, ...]:
    """Return all mutants, in the order of the file."""
    return tuple(_mutant(table) for table in _document()["mutant"])


def package() -> str:
    """Return the name of the source package of the mutants that name no other."""
    return str(_document()["package"])


def _document() -> dict[str, Any]:
    text = resources.files("vmm.lab.mutants").joinpath("kernel_mutants.toml").read_text()
    return tomllib.loads(text)


def _mutant(table: dict[str, Any]) -> Mutant:
    fields: dict[str, Any] = dict(table)
    fields["changes"] = tuple(Change(**change) for change in table["changes"])
    for key in ("violates", "cases"):
        fields[key] = tuple(table.get(key, ()))
    return Mutant(**fields)


class Tree:
    """A private copy of the source, in which one mutant at a time is made.

    The files that mutants touch are kept as they were, so that a run that was killed leaves
    nothing behind that the next one does not put right.
    """

    def __init__(self, root: Path, mutants: Sequence[Mutant]) -> None:
        self.root = root
        self._files = sorted({change.file for mutant in mutants for change in mutant.changes})
        for name in self._files:
            self._keep(name)

    def _keep(self, name: str) -> None:
        kept = self.root / _PRISTINE / name
        if not kept.exists():
            if not (self.root / name).is_file():
                raise DoesNotApply(f"{self.root} has no {name}")
            kept.parent.mkdir(parents=True, exist_ok=True)
            _write(kept, (self.root / name).read_text())

    def restore(self) -> None:
        """Put every file right. One that is right keeps its time, and is not built again."""
        for name in self._files:
            self._set(name, (self.root / _PRISTINE / name).read_text())

    @contextmanager
    def mutated(self, mutant: Mutant) -> Iterator[None]:
        """Make the mutant, and undo it whatever happens."""
        try:
            for name, text in self._texts(mutant).items():
                self._set(name, text)
            yield
        finally:
            self.restore()

    def _texts(self, mutant: Mutant) -> dict[str, str]:
        texts: dict[str, str] = {}
        for change in mutant.changes:
            before = texts.get(change.file)
            kept = self.root / _PRISTINE / change.file
            texts[change.file] = change.apply(before if before is not None else kept.read_text())
        return texts

    def _set(self, name: str, text: str) -> None:
        if (self.root / name).read_text() != text:
            _write(self.root / name, text)


def _write(path: Path, text: str) -> None:
    # By renaming: no half a file, and a tree made of hard links keeps its other name unchanged.
    scratch = path.with_name(f".{path.name}.new")
    scratch.write_text(text)
    scratch.replace(path)
