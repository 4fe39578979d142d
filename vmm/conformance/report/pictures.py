"""Pictures on the page: inline SVG, written from records, with words for who does not see them."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from vmm.conformance.report.history import ABSENT, SHOWN, UNKNOWN, Line, told

STEP, HIGH = 12, 14
"""Pixels from one kernel of a strip to the next, and its height."""
_CLASS = {SHOWN: "shown", ABSENT: "absent", UNKNOWN: "unknown"}


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
