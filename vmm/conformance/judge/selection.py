"""Choose cases: from the catalogue by glob, and from files of JSON by name."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from vmm.conformance.language.case import Case


class UnknownCase(Exception):
    """A word names no case; the text is one line, with close matches or what is wrong."""


class Chosen(NamedTuple):
    """The cases that were chosen, of how many they were, and the options that choose the same.

    ``options`` is None where each case has to be named.
    """

    cases: list[Case]
    of: int
    options: tuple[str, ...] | None = None

    @property
    def ids(self) -> list[str]:
        """The ids of the cases."""
        return [case.id for case in self.cases]

    @property
    def saved(self) -> tuple[Case, ...]:
        """Those of the cases that are files."""
        return tuple(case for case in self.cases if case.file)


def choose(
    catalogue: Sequence[Case],
    words: Iterable[str],
    exclude: Iterable[str] = (),
    others: Iterable[str] = (),
    *,
    thorough: bool = False,
    shard: Shard | None = None,
) -> Chosen:
    """Return what ``select`` returns, where a word may be a file of JSON too ("found.json").

    Of these, only the cases of ``shard``, if one is given; UnknownCase if it has none.

    A saved case stands in for the catalogue's of the same id. ``others`` are globs too, that are
    only to match something. UnknownCase says in one line what is wrong with a file.
    """
    wanted = list(words)
    saved = {word: saved_case(Path(word)) for word in wanted if is_file(word)}
    pool = {case.id: case for case in catalogue}
    for case in saved.values():
        if (known := pool.get(case.id)) and known.file:
            raise UnknownCase(f"{known.file} and {case.file} have the same id: {case.id}")
        pool[case.id] = case
    cases = list(pool.values())
    check_globs(cases, others)
    globs = [saved[word].id if word in saved else word for word in wanted]
    chosen = select(cases, globs, exclude, thorough=thorough)
    if shard:
        return Chosen(shard.of(chosen), len(cases), None)
    short = [case for case in cases if not case.thorough]
    wholes = ((short, ()), (cases, ("--thorough",)))
    return Chosen(chosen, len(cases), next((o for all_, o in wholes if chosen == all_), None))


class Shard(NamedTuple):
    """One of ``total`` parts of a run, from 1: which a case is in, its name alone decides."""

    number: int
    total: int

    def has(self, name: str) -> bool:
        """Say whether what is called ``name`` belongs to this part."""
        return zlib.crc32(name.encode()) % self.total == self.number - 1

    def of(self, cases: Sequence[Case]) -> list[Case]:
        """Return the cases of this part; UnknownCase if there are none."""
        mine = [case for case in cases if self.has(case.id)]
        if not mine:
            raise UnknownCase(f"none of the {len(cases)} chosen cases is in shard {self}")
        return mine

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"


def is_file(word: str) -> bool:
    """Say whether a word in the place of a case names a file: no id or glob looks like it."""
    return "/" in word or word.endswith(".json")


def saved_case(file: Path) -> Case:
    """Return the case that ``file`` holds; UnknownCase if it holds none."""
    from vmm.conformance.language import codec
    from vmm.conformance.records import places

    try:
        return replace(codec.load(places.read_regular(file)), file=str(file))
    except OSError as error:
        raise UnknownCase(f"cannot read {file}: {error.strerror}") from None
    except ValueError as error:
        raise UnknownCase(f"{file}: {error}") from None


def select(
    cases: Sequence[Case],
    globs: Iterable[str],
    exclude: Iterable[str] = (),
    *,
    thorough: bool = False,
) -> list[Case]:
    """Return the cases that any of ``globs`` matches and no ``exclude`` does.

    Without ``globs`` those are all but the long ones, and with ``thorough`` these too. A glob
    matches a case's id ("matching.*") or one of its requirements ("R14"). One that matches nothing
    raises UnknownCase, so that a slip of the pen never tests less than was meant.
    """
    wanted = _matched(cases, globs)
    every = {case.id for case in cases if thorough or not case.thorough}
    chosen = (set().union(*wanted) if wanted else every).difference(*_matched(cases, exclude))
    left = [case for case in cases if case.id in chosen]
    if not left:
        raise UnknownCase("no case is left: every chosen one is excluded with -x")
    return left


def check_globs(cases: Sequence[Case], globs: Iterable[str]) -> None:
    """Raise UnknownCase for the first glob that matches no case."""
    _matched(cases, globs)


def _matched(cases: Sequence[Case], globs: Iterable[str]) -> list[set[str]]:
    """Return the ids that each glob matches; UnknownCase for the first that matches none."""
    ids: dict[str, set[str]] = {}
    for case in cases:
        for name in (case.id, *case.requirements):
            ids.setdefault(name, set()).add(case.id)
    found = [(glob, _ids_like(ids, glob)) for glob in globs]
    for glob, matched in found:
        if not matched:
            raise UnknownCase(f"no case matches {glob!r}; {_suggestion(cases, glob)}")
    return [matched for _, matched in found]


def _ids_like(ids: dict[str, set[str]], glob: str) -> set[str]:
    # Most words are whole names, of which there may be thousands: those are looked up.
    if glob in ids:
        return ids[glob]
    return set().union(*(ids[name] for name in ids if fnmatchcase(name, glob)))


def _suggestion(cases: Sequence[Case], glob: str) -> str:
    import difflib

    ids = [case.id for case in cases]
    close = [name for name in ids if glob.strip("*?.") and glob.strip("*?.") in name][:3]
    close = close or difflib.get_close_matches(glob, ids, 3, 0.5)
    return f"did you mean {' or '.join(close)}?" if close else "see 'msrward list'"
