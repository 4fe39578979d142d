"""Pictures on the page: inline SVG, written from records, with words for who does not see them."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import accumulate
from math import ceil

from vmm.conformance.report.history import ABSENT, SHOWN, UNKNOWN, Line, told

STEP, HIGH = 12, 14
"""Pixels from one kernel of a strip to the next, and its height."""
WIDE, TALL = 480, 80
TICK = 34
"""Pixels that the words under a bar take, at most."""
_CLASS = {SHOWN: "shown", ABSENT: "absent", UNKNOWN: "unknown"}


def curve(name: str, points: Sequence[Sequence[float]]) -> str:
    """Return values over seconds as one line from 0 up, with the lowest and highest in words."""
    if len(points) < 2:
        return ""
    top, last = max(value for _, value in points) or 1.0, points[-1][0] or 1.0
    places = " ".join(f"{WIDE * at / last:.1f},{TALL - TALL * v / top:.1f}" for at, v in points)
    low = min(value for _, value in points)
    label = escape(f"{name} over {last:.0f} s: {low:,.0f} to {top:,.0f}")
    box = f'viewBox="-1 -1 {WIDE + 2} {TALL + 2}" width="{WIDE}" height="{TALL}"'
    return _figure(box, label, f'<polyline class="curve" points="{places}"/>')


def histogram(name: str, counts: Sequence[int]) -> str:
    """Return counts by powers of two as bars, whose height is the square root: few show too.

    The words have the total, and between which powers the middle and the last lie.
    """
    total = sum(counts)
    if not total:
        return ""
    first = next(n for n, count in enumerate(counts) if count)
    step, top = WIDE / max(len(counts) - first, 12), max(counts)
    every = ceil(TICK / step)
    bars = "".join(
        _bar(first + number, count, number * step, step, top, ticked=number % every == 0)
        for number, count in enumerate(counts[first:])
    )
    middle, late = (_bucket_at(counts, total * part) for part in (0.5, 0.99))
    told = f"{total:,}; the middle one {_between(middle)}, 99% below {_short(2 << late)}"
    told += " (a bar four times as many is twice as high)"
    label = escape(f"{name}: {told}")
    size = f'viewBox="-1 -1 {WIDE + 2} {TALL + 18}" width="{WIDE}" height="{TALL + 16}"'
    return _figure(size, label, bars)


def _figure(size: str, label: str, inside: str) -> str:
    """Return a picture on a base line, with words under it that are read out once."""
    axis = f'<line class="axis" x1="0" y1="{TALL}" x2="{WIDE}" y2="{TALL}"/>'
    picture = f'<svg {size} role="img" aria-label="{label}">{axis}{inside}</svg>'
    return f'<figure>{picture}<figcaption aria-hidden="true">{label}</figcaption></figure>'


def _bar(bucket: int, count: int, at: float, step: float, top: int, *, ticked: bool) -> str:
    high = max(TALL * (count / top) ** 0.5, 1.0) if count else 0.0
    place = f'x="{at + 1:.1f}" y="{TALL - high:.1f}" width="{step - 2:.1f}" height="{high:.1f}"'
    title = escape(f"{_between(bucket)}: {count:,}")
    tick = (
        f'<text class="tick" x="{at + step / 2:.1f}" y="{TALL + 12}">{_short(1 << bucket)}</text>'
    )
    return f'<rect class="bar" {place}><title>{title}</title></rect>{tick if ticked else ""}'


def _bucket_at(counts: Sequence[int], part: float) -> int:
    """Return the bucket in which the counts, added up, come to ``part``."""
    sums = accumulate(counts)
    return next(number for number, so_far in enumerate(sums) if so_far >= part)


def _between(bucket: int) -> str:
    return f"{_short(1 << bucket)} to {_short(2 << bucket)}"


def _short(power: int) -> str:
    """Return a power of two as people write it: 512, 64k, 4M."""
    thousands = (power.bit_length() - 1) // 10
    return f"{power >> 10 * thousands}{('', 'k', 'M', 'G', 'T', 'P', 'E')[thousands]}"


def strip(line: Line, kernels: Sequence[str]) -> str:
    """Return one box a kernel, from old to new; what it says is in each box's title."""
    starts = {each.kernel for each in line.events[1:]}
    boxes = []
    for number, (kernel, word) in enumerate(zip(kernels, line.words, strict=True)):
        look = _CLASS.get(word) or ("changed" if kernel in starts else "seen")
        where = f'x="{number * STEP}" width="{STEP - 2}" height="{HIGH}" class="{look}"'
        title = escape(f"{kernel}: {word or 'not judged'}")
        boxes.append(f"<rect {where}><title>{title}</title></rect>")
    label = escape(f"{line.name}: {told(line)}")
    inside = "".join(boxes)
    size = f'width="{len(boxes) * STEP}" height="{HIGH}"'
    return f'<svg {size} role="img" aria-label="{label}">{inside}</svg>'
