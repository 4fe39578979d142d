"""New scripts out of old ones: cut, joined, repeated, under another's filter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from vmm.conformance.language import script as s

TRIES = 8
"""How many are made before a script is drawn instead."""

Below = Callable[[int], int]
"""Draws a number from 0 to n - 1."""


def mutated(
    below: Below, corpus: Sequence[s.Script], lets: Callable[[s.Script], bool]
) -> s.Script | None:
    """Return a script made of one or two of the corpus that ``lets`` lets through, or None."""
    for _ in range(TRIES):
        one, other = (corpus[below(len(corpus))] for _ in range(2))
        candidate = _WAYS[below(len(_WAYS))](below, one, other)
        if candidate != one and lets(candidate):
            return candidate
    return None


def _join(below: Below, one: s.Script, other: s.Script) -> s.Script:
    return one[: below(len(one) + 1)] + other[below(len(other) + 1) :]


def _cut(below: Below, one: s.Script, _: s.Script) -> s.Script:
    at = below(len(one))
    return one[:at] + one[at + 1 + below(3) :]


def _repeat(below: Below, one: s.Script, _: s.Script) -> s.Script:
    at, to = below(len(one)), below(len(one) + 1)
    return one[:to] + one[at : at + 1 + below(3)] + one[to:]


def _put_in(below: Below, one: s.Script, other: s.Script) -> s.Script:
    at, to = below(len(other)), below(len(one) + 1)
    return one[:to] + other[at : at + 1 + below(3)] + one[to:]


def _under_its_filters(below: Below, one: s.Script, other: s.Script) -> s.Script:
    filters = [each.filter for each in other if isinstance(each, s.Install)]
    return tuple(
        replace(each, filter=filters[below(len(filters))])
        if filters and isinstance(each, s.Install)
        else each
        for each in one
    )


_WAYS: tuple[Callable[[Below, s.Script, s.Script], s.Script], ...] = (
    *(_join, _cut, _repeat, _put_in, _under_its_filters),
)
