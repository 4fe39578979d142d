"""What the values of a record's fields may be: one check a kind that has no type of its own."""

from __future__ import annotations

from typing import Any

from vmm.conformance.records.verdict import Verdict

BUCKETS = 64
"""Counts of a histogram, at most."""
MOST = float(1 << 53)
"""What no number of a record reaches: further, JSON's numbers are not exact."""


def text(value: Any) -> bool:
    """Say whether the value is a text."""
    return isinstance(value, str)


def name(value: Any) -> bool:
    """Say whether the value is a text, and not an empty one."""
    return text(value) and value != ""


def count(value: Any) -> bool:
    """Say whether the value is a whole number from 0 up."""
    return type(value) is int and 0 <= value < MOST


def number(value: Any) -> bool:
    """Say whether the value is a number from 0 up."""
    return type(value) in (int, float) and 0 <= value < MOST


def flag(value: Any) -> bool:
    """Say whether the value is true or false."""
    return isinstance(value, bool)


def series(value: Any) -> bool:
    """Say whether the value is what was measured, over time."""
    return isinstance(value, dict) and all(
        isinstance(points, list)
        and all(
            isinstance(each, list) and len(each) == 2 and all(map(number, each)) for each in points
        )
        for points in value.values()
    )


def histograms(value: Any) -> bool:
    """Say whether the value is counts by how large a measure was."""
    return isinstance(value, dict) and all(
        isinstance(counts, list) and len(counts) <= BUCKETS and all(map(count, counts))
        for counts in value.values()
    )


def whole(value: Any) -> bool:
    """Say whether the value is a whole number."""
    return type(value) is int and -MOST < value < MOST


def counts(value: Any) -> bool:
    """Say whether the value is how many cases had each verdict."""
    columns = {*Verdict, "observed", "refused"}
    return isinstance(value, dict) and value.keys() <= columns and all(map(count, value.values()))


def repeats(value: Any) -> bool:
    """Say whether the value is how often a case had each verdict."""
    return counts(value) and value.keys() <= set(Verdict)


def parameters(value: Any) -> bool:
    """Say whether the value is the parameters of modules."""
    return value is None or (
        isinstance(value, dict) and all(isinstance(each, dict) for each in value.values())
    )
