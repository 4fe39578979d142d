"""Pictures on the page: inline SVG, written from records, with words for who does not see them."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from vmm.conformance.report.history import ABSENT, SHOWN, UNKNOWN, Line, told

STEP, HIGH = 12, 14
"""Pixels from one kernel of a strip to the next, and its height."""
WIDE, TALL = 480, 80
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
    inside = f'<polyline class="curve" points="{places}"/>'
    picture = f'<svg {box} role="img" aria-label="{label}">{inside}</svg>'
    return f"<figure>{picture}<figcaption>{label}</figcaption></figure>"


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
