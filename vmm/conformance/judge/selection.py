"""Choose cases from the catalogue by glob."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from vmm.conformance.language.case import Case


class UnknownCase(Exception):
    """A glob matches no case; the text is one line, with close matches."""


def select(cases: Sequence[Case], globs: Iterable[str], exclude: Iterable[str] = ()) -> list[Case]:
    """Return the cases that any of ``globs`` matches (none given: all) and no ``exclude`` does.

    A glob matches a case's id ("match.*") or one of its requirements ("R14"). One that matches
    nothing raises UnknownCase, so that a slip of the pen never tests less than was meant.
    """
    wanted, refused = list(globs), list(exclude)
    check_globs(cases, [*wanted, *refused])
    chosen = [case for case in cases if not wanted or any(_match(case, glob) for glob in wanted)]
    left = [case for case in chosen if not any(_match(case, glob) for glob in refused)]
    if not left:
        raise UnknownCase("no case is left: every chosen one is excluded with -x")
    return left


def check_globs(cases: Sequence[Case], globs: Iterable[str]) -> None:
    """Raise UnknownCase for the first glob that matches no case."""
    for glob in globs:
        if not any(_match(case, glob) for case in cases):
            raise UnknownCase(f"no case matches {glob!r}; {_suggestion(cases, glob)}")


def _match(case: Case, glob: str) -> bool:
    return any(fnmatchcase(name, glob) for name in (case.id, *case.requirements))


def _suggestion(cases: Sequence[Case], glob: str) -> str:
    import difflib

    ids = [case.id for case in cases]
    close = [name for name in ids if glob.strip("*?.") and glob.strip("*?.") in name][:3]
    close = close or difflib.get_close_matches(glob, ids, 3, 0.5)
    return f"did you mean {' or '.join(close)}?" if close else "see 'msrward list'"
