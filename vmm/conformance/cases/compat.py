"""The 32-bit caller's ioctl does what the native one does: the same tables once more: R05.

Every case of validation and matching, and those of the other themes that read a bitmap or refuse a
slot, are played again with each install made as a 32-bit caller makes it (1739c7017fb1, B09).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from vmm.conformance.cases import bitmaps, matching, rollback, slots, validation
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import Action, Install, install_compat
from vmm.filter import MsrFilter, Pointer

THEMES = (validation, matching, slots, bitmaps)
_OF_ROLLBACK = ("rollback.every_slot", "rollback.deny_stays")

_LEFT_OUT = ("kernel_bitmap", "bitmap_kernel", "bitmaps.bits_0x")
"""A kernel address does not fit a 32-bit pointer; of the long bitmap, the edges are enough."""


def _fitting(msr_filter: MsrFilter) -> MsrFilter:
    """Return the filter without an address that takes more than 32 bits."""
    return replace(
        msr_filter,
        ranges=tuple(
            replace(each, bitmap=Pointer.UNMAPPED) if each.bitmap is Pointer.KERNEL else each
            for each in msr_filter.ranges
        ),
    )


def _as_32_bit(action: Action) -> Action:
    return install_compat(_fitting(action.filter)) if isinstance(action, Install) else action


def _tables() -> Iterator[Case]:
    for theme in THEMES:
        yield from theme.CASES
    yield from (case for case in rollback.CASES if case.id.startswith(_OF_ROLLBACK))


CASES = tuple(
    Case(
        f"compat.{case.id}",
        f"32-bit caller: {case.sentence}",
        f"R05 {case.checks}",
        [_as_32_bit(action) for action in case.script],
        case.trace,
    )
    for case in _tables()
    if not any(part in case.id for part in _LEFT_OUT)
)
