"""What the contract says of filters: which are installed, and what they say to an access.

One rule is one small method, named by the requirements it states; ``model`` asks them in the
kernel's place. ``FilterRules`` holds no state.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from errno import EFAULT, EINVAL
from typing import NamedTuple

from vmm.filter import READ_WRITE, AtEdge, Bitmap, MsrFilter, MsrRange, Pointer, bitmap_size
from vmm.msr import (
    KVM_MSR_FILTER_DEFAULT_DENY,
    KVM_MSR_FILTER_MAX_BITMAP_SIZE,
    X2APIC_FIRST,
    X2APIC_LAST,
)

QUIRK = -1
"""Among the errors of an install: R10's, which a kernel may or may not report."""

Errors = frozenset[int]
NO_ERRORS: Errors = frozenset()
_EINVAL, _EFAULT, _QUIRK = frozenset({EINVAL}), frozenset({EFAULT}), frozenset({QUIRK})


class Held(NamedTuple):
    """A range as the kernel holds it, its bitmap copied."""

    flags: int
    base: int
    end: int
    bits: bytes


class Installed(NamedTuple):
    """A filter as the kernel holds it, without the slots that say nothing."""

    default_allows: bool
    ranges: tuple[Held, ...]


NO_FILTER = Installed(True, ())
"""R26: what a VM has before any install."""


class FilterRules:
    """Validation (R06-R13), copying (R16, R29) and matching (R17-R25, R30, R31)."""

    # --- validation ----------------------------------------------------------------------------

    def errors(self, new: MsrFilter) -> Errors:
        """R13: every errno an install of ``new`` could report; none means that it succeeds."""
        errors = self.filter_errors(new)
        for range_ in new.ranges:
            errors |= self.range_errors(range_)
        return errors

    def filter_errors(self, new: MsrFilter) -> Errors:
        """R06, R12."""
        invalid = self.filter_flags_are_invalid(new.flags) or self.denies_all(new)
        return _EINVAL if invalid else NO_ERRORS

    def filter_flags_are_invalid(self, flags: int) -> bool:
        """R06."""
        return flags & ~KVM_MSR_FILTER_DEFAULT_DENY != 0

    def denies_all(self, new: MsrFilter) -> bool:
        """R12: default deny, and no range that could allow anything."""
        return not self.default_allows(new.flags) and self.is_empty(new)

    def is_empty(self, new: MsrFilter) -> bool:
        """R12."""
        return all(self.is_skipped(range_) for range_ in new.ranges)

    def range_errors(self, range_: MsrRange) -> Errors:
        """R07-R11: flags, size, bitmap; a bitmap of the wrong size is never copied."""
        if self.is_skipped(range_):
            return NO_ERRORS
        if self.size_is_invalid(range_.nmsrs):
            return _EINVAL
        errors = self.copy_errors(range_.nmsrs, range_.bitmap)
        return errors | _EINVAL if self.range_flags_are_invalid(range_.flags) else errors

    def is_skipped(self, range_: MsrRange) -> bool:
        """R11."""
        return range_.nmsrs == 0

    def range_flags_are_invalid(self, flags: int) -> bool:
        """R07, R08."""
        return flags == 0 or flags & ~READ_WRITE != 0

    def size_is_invalid(self, nmsrs: int) -> bool:
        """R09: the limit is in bytes, of whole longs."""
        return bitmap_size(nmsrs) > KVM_MSR_FILTER_MAX_BITMAP_SIZE

    def copy_errors(self, nmsrs: int, bitmap: Bitmap) -> Errors:
        """R10: bits that cannot be read; a quirk where only the rest of the last long cannot."""
        if isinstance(bitmap, bytes):
            return NO_ERRORS
        if isinstance(bitmap, Pointer) or len(bitmap.bits) < (nmsrs + 7) // 8:
            return _EFAULT
        return _QUIRK if len(bitmap.bits) < bitmap_size(nmsrs) else NO_ERRORS

    # --- copying -------------------------------------------------------------------------------

    def installed(self, old: Installed | None, new: MsrFilter) -> Installed:
        """R16: the whole of ``new``, and nothing of the ``old`` filter."""
        ranges = [self.held(range_) for range_ in new.ranges if not self.is_skipped(range_)]
        return Installed(self.default_allows(new.flags), tuple(ranges))

    def held(self, range_: MsrRange) -> Held:
        """R29: the bitmap as it is now, a short one filled up with zeroes."""
        base, nmsrs, bits = range_.base, range_.nmsrs, _readable(range_.bitmap)
        size = bitmap_size(nmsrs)
        return Held(range_.flags, base, base + nmsrs, bits[:size].ljust(size, b"\0"))

    def default_allows(self, flags: int) -> bool:
        """R17, R18."""
        return flags & KVM_MSR_FILTER_DEFAULT_DENY == 0

    # --- matching ------------------------------------------------------------------------------

    def allows(self, filter_: Installed | None, index: int, kind: int) -> bool | None:
        """R17-R25, R30: what a filter says to a READ or WRITE of ``index``; None: a quirk."""
        if self.is_exempt(index):
            return True
        if filter_ is None:
            return None
        for held in self.in_order(filter_.ranges):
            if self.covers(held, index, kind):
                return None if self.wraps(held) else self.bit(held.bits, index - held.base)
        return filter_.default_allows

    def is_exempt(self, index: int) -> bool:
        """R30, R31."""
        return X2APIC_FIRST <= index <= X2APIC_LAST

    def in_order(self, ranges: Sequence[Held]) -> Iterable[Held]:
        """R23: the lowest slot first."""
        return ranges

    def covers(self, held: Held, index: int, kind: int) -> bool:
        """R20-R22, R24: ``[base, end)``, for the kinds of access in its flags."""
        return held.base <= index < held.end and held.flags & kind != 0

    def wraps(self, held: Held) -> bool:
        """R25: the range reaches 2^32, where 32 bits hold its end no more."""
        return held.end >= 1 << 32

    def bit(self, bits: bytes, offset: int) -> bool:
        """R19: least significant bit first, 1 allows."""
        return bits[offset >> 3] >> (offset & 7) & 1 == 1


def _readable(bitmap: Bitmap) -> bytes:
    if isinstance(bitmap, bytes):
        return bitmap
    return bitmap.bits if isinstance(bitmap, AtEdge) else b""
