"""Which commits to ask next, where history is a graph: the best split for several at once.

A commit is bad if the first bad commit is it or one of its ancestors. So a commit that is bad
leaves itself and its ancestors as candidates, one that is good takes those away, and several
answers leave one of the groups of candidates that no answer tells apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

TRIED = 1000
"""Commits of many that a better split is looked for among."""


class Candidates:
    """The commits that may be the first bad one, and which of them are ancestors of which."""

    def __init__(self, parents: Mapping[str, Sequence[str]]) -> None:
        """Take the candidates with their parents, every one after its parents."""
        self.names = list(parents)
        self._bit = {name: 1 << number for number, name in enumerate(self.names)}
        self._below: dict[str, int] = {}
        for name, above in parents.items():
            known = (self._below[each] for each in above if each in self._below)
            self._below[name] = self._bit[name]
            for each in known:
                self._below[name] |= each

    def left(self, bad: str, good: Iterable[str]) -> list[str]:
        """Return what may be the first bad commit, parents first, by one bad and all good ones."""
        mask = self._left(bad, good)
        return [name for name in self.names if self._bit[name] & mask]

    def _left(self, bad: str, good: Iterable[str]) -> int:
        mask = self._below[bad]
        for each in good:
            mask &= ~self._below[each]
        return mask

    def narrowest(self, bad: Iterable[str], good: Sequence[str]) -> str:
        """Return the bad commit that leaves the fewest; the oldest of those."""
        return min(bad, key=lambda name: self._left(name, good).bit_count())

    def split(self, left: Sequence[str], askable: Sequence[str], number: int) -> list[str]:
        """Return up to `number` of the askable commits that split what is left the best.

        They begin as those with 1/(n+1), 2/(n+1)... of it among their ancestors, which is best
        where history is a line; then each is moved as long as that makes the groups more even.
        """
        whole = sum(self._bit[name] for name in left)
        by_size = sorted(askable, key=lambda name: (self._below[name] & whole).bit_count())
        if len(by_size) <= number:
            return by_size
        sizes = [(self._below[name] & whole).bit_count() for name in by_size]
        chosen = _nearest(sizes, len(left), number)
        tried = range(0, len(by_size), max(1, len(by_size) // TRIED))
        masks = [self._below[name] for name in by_size]
        return [by_size[each] for each in _settled(chosen, tried, masks, whole)]


def _nearest(sizes: Sequence[int], whole: int, number: int) -> list[int]:
    """Return different positions whose sizes are nearest to even parts of the whole."""
    chosen: list[int] = []
    for part in range(1, number + 1):
        free = (position for position in range(len(sizes)) if position not in chosen)
        chosen.append(min(free, key=lambda at: abs(sizes[at] * (number + 1) - whole * part)))
    return chosen


def _settled(
    chosen: list[int], tried: Iterable[int], masks: Sequence[int], whole: int
) -> list[int]:
    """Move one after the other to where it makes the groups most even, until none gets better."""
    best = _unevenness((masks[each] for each in chosen), whole)
    for _ in range(3):
        before = best
        for place in range(len(chosen)):
            rest = chosen[:place] + chosen[place + 1 :]
            groups = _groups((masks[each] for each in rest), whole)
            for other in tried:
                value = sum(_squares(group, masks[other]) for group in groups)
                if value < best and other not in rest:
                    chosen[place], best = other, value
        if best == before:
            break
    return sorted(chosen)


def _groups(masks: Iterable[int], whole: int) -> list[int]:
    groups = [whole]
    for mask in masks:
        groups = [part for group in groups for part in (group & mask, group & ~mask) if part]
    return groups


def _squares(group: int, mask: int) -> int:
    inside, all_ = (group & mask).bit_count(), group.bit_count()
    return int(inside**2 + (all_ - inside) ** 2)


def _unevenness(masks: Iterable[int], whole: int) -> int:
    """Return a number that is least where a candidate's group is, on average, smallest."""
    return sum(int(group.bit_count() ** 2) for group in _groups(masks, whole))
