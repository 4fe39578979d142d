"""Mistakes in validating and copying a filter: kvm_add_msr_filter() and its caller."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from errno import EFAULT, EINVAL
from typing import Any

from mutant import mutant
from mutants_matching import lenient_bit, signed

from vmm.conformance.oracle.filters import NO_ERRORS, FilterRules, Held, Installed
from vmm.conformance.oracle.msrs import U32
from vmm.filter import READ_WRITE, AtEdge, Pointer, bitmap_size
from vmm.msr import MAX_NMSRS


def _size_limit(is_invalid: Callable[[int], bool]) -> dict[str, Any]:
    def held(self: FilterRules, range_: Any) -> Held:
        small = replace(range_, nmsrs=min(range_.nmsrs, MAX_NMSRS + 64))
        end = range_.base + range_.nmsrs
        return FilterRules.held(self, small)._replace(end=end)

    return {
        "size_is_invalid": lambda self, nmsrs: is_invalid(nmsrs),
        "held": held,
        "bit": lenient_bit,
    }


def _copy(change: Callable[[int, Any], Any]) -> Any:
    def copy_errors(self: FilterRules, nmsrs: int, bitmap: Any) -> Any:
        changed = change(nmsrs, bitmap)
        return FilterRules.copy_errors(self, nmsrs, bitmap) if changed is None else changed

    return copy_errors


def _reads_a_long_too_far(nmsrs: int, bitmap: Any) -> Any:
    too_far = isinstance(bitmap, AtEdge) and len(bitmap.bits) < bitmap_size(nmsrs) + 8
    return frozenset({EFAULT}) if too_far else None


def _zero_msrs_are_checked(self: FilterRules, range_: Any) -> Any:
    if range_.nmsrs:
        return FilterRules.range_errors(self, range_)
    return FilterRules.range_errors(self, replace(range_, nmsrs=1))


def _zero_msrs_flags_are_checked(self: FilterRules, range_: Any) -> Any:
    if range_.nmsrs == 0 and range_.flags & ~READ_WRITE:
        return frozenset({EINVAL})
    return FilterRules.range_errors(self, range_)


def _until_hole(self: FilterRules, old: Any, new: Any) -> Installed:
    sizes = [range_.nmsrs for range_ in new.ranges]
    used = sizes.index(0) if 0 in sizes else len(sizes)
    return FilterRules.installed(self, old, replace(new, ranges=new.ranges[:used]))


VALIDATION = (
    mutant(
        FilterRules,
        "filter_flags_unchecked",
        "Undefined bits of filter.flags are accepted (before cf5029d5dd7c).",
        filter_flags_are_invalid=lambda self, flags: False,
    ),
    mutant(
        FilterRules,
        "filter_flags_checked_low",
        "Only the low half of filter.flags is checked.",
        filter_flags_are_invalid=lambda self, flags: flags & 0xFFFE != 0,
    ),
    mutant(
        FilterRules,
        "filter_flag_2_accepted",
        "Bit 1 of filter.flags is accepted.",
        filter_flags_are_invalid=lambda self, flags: flags & ~3 != 0,
    ),
    mutant(
        FilterRules,
        "filter_flags_unchecked_with_deny",
        "Undefined bits of filter.flags are accepted beside DEFAULT_DENY.",
        filter_flags_are_invalid=lambda self, flags: flags & 1 == 0 and flags != 0,
    ),
    mutant(
        FilterRules,
        "range_flags_unchecked",
        "Undefined bits of a range's flags are accepted.",
        range_flags_are_invalid=lambda self, flags: flags == 0,
    ),
    mutant(
        FilterRules,
        "range_flags_checked_low",
        "Only the low half of a range's flags is checked.",
        range_flags_are_invalid=lambda self, flags: flags == 0 or flags & 0xFFFC != 0,
    ),
    mutant(
        FilterRules,
        "range_flag_4_accepted",
        "Bit 2 of a range's flags is accepted.",
        range_flags_are_invalid=lambda self, flags: flags == 0 or flags & ~7 != 0,
    ),
    mutant(
        FilterRules,
        "range_without_flags",
        "A range that governs nothing is accepted.",
        range_flags_are_invalid=lambda self, flags: flags & ~READ_WRITE != 0,
    ),
    mutant(
        FilterRules,
        "largest_range_refused",
        "0x3000 MSRs are one too many.",
        **_size_limit(lambda nmsrs: nmsrs >= MAX_NMSRS),
    ),
    mutant(
        FilterRules,
        "size_limit_in_bits",
        "The bitmap's limit of 0x600 bytes is taken for MSRs.",
        **_size_limit(lambda nmsrs: nmsrs > 0x600),
    ),
    mutant(
        FilterRules,
        "size_rounded_down",
        "The bitmap's size is rounded down to longs, so 0x3001 MSRs fit.",
        **_size_limit(lambda nmsrs: nmsrs // 64 * 8 > 0x600),
    ),
    mutant(
        FilterRules,
        "size_limit_not_included",
        "One long more than 0x600 bytes is accepted.",
        **_size_limit(lambda nmsrs: bitmap_size(nmsrs) > 0x608),
    ),
    mutant(
        FilterRules,
        "size_wraps",
        "The bitmap's size is computed in 32 bits, so 0xffffffff MSRs need none.",
        **_size_limit(lambda nmsrs: (nmsrs + 63 & U32) // 64 * 8 > 0x600),
    ),
    mutant(
        FilterRules,
        "size_signed",
        "nmsrs is compared as a signed number.",
        **_size_limit(lambda nmsrs: signed(nmsrs) > MAX_NMSRS),
    ),
    mutant(
        FilterRules,
        "empty_deny_accepted",
        "DEFAULT_DENY without ranges is accepted (before 043248b3280c).",
        denies_all=lambda self, new: False,
    ),
    mutant(
        FilterRules,
        "empty_allow_refused",
        "DEFAULT_ALLOW without ranges is refused too.",
        denies_all=lambda self, new: self.is_empty(new),
    ),
    mutant(
        FilterRules,
        "skipped_ranges_count",
        "A range of 0 MSRs makes a filter that is not empty.",
        is_empty=lambda self, new: not any(r.flags for r in new.ranges),
    ),
    mutant(
        FilterRules,
        "first_slot_decides_emptiness",
        "A filter is empty when its slot 0 is.",
        is_empty=lambda self, new: not new.ranges or new.ranges[0].nmsrs == 0,
    ),
    mutant(
        FilterRules,
        "last_slot_decides_emptiness",
        "A filter is empty when its last slot is.",
        is_empty=lambda self, new: len(new.ranges) < 16 or new.ranges[15].nmsrs == 0,
    ),
    mutant(
        FilterRules,
        "zero_msrs_checked",
        "A range of 0 MSRs is validated, bitmap and all.",
        range_errors=_zero_msrs_are_checked,
    ),
    mutant(
        FilterRules,
        "zero_msrs_flags_checked",
        "The flags of a range of 0 MSRs are validated.",
        range_errors=_zero_msrs_flags_are_checked,
    ),
    mutant(
        FilterRules,
        "hole_ends_the_list",
        "The ranges behind an empty slot are not looked at.",
        installed=_until_hole,
    ),
    mutant(
        FilterRules,
        "last_slot_lost",
        "Slot 15 is validated and left out.",
        installed=lambda self, old, new: FilterRules.installed(
            self, old, replace(new, ranges=new.ranges[:15])
        ),
    ),
    mutant(
        FilterRules,
        "last_slot_unchecked",
        "Slot 15 is not validated.",
        errors=lambda self, new: FilterRules.errors(self, replace(new, ranges=new.ranges[:15])),
        held=_size_limit(bool)["held"],
        bit=lenient_bit,
    ),
    mutant(
        FilterRules,
        "first_bad_range_only",
        "Only slot 0 is validated.",
        errors=lambda self, new: (
            self.filter_errors(new)
            | (self.range_errors(new.ranges[0]) if new.ranges else NO_ERRORS)
        ),
        held=_size_limit(bool)["held"],
        bit=lenient_bit,
    ),
    mutant(
        FilterRules,
        "null_bitmap_denies",
        "A NULL bitmap is accepted and denies the whole range.",
        copy_errors=_copy(lambda nmsrs, bitmap: NO_ERRORS if bitmap is Pointer.NULL else None),
    ),
    mutant(
        FilterRules,
        "unmapped_bitmap_denies",
        "An unmapped bitmap is accepted and denies the whole range.",
        copy_errors=_copy(lambda nmsrs, bitmap: NO_ERRORS if bitmap is Pointer.UNMAPPED else None),
    ),
    mutant(
        FilterRules,
        "kernel_bitmap_read",
        "A bitmap at a kernel address is read.",
        copy_errors=_copy(lambda nmsrs, bitmap: NO_ERRORS if bitmap is Pointer.KERNEL else None),
    ),
    mutant(
        FilterRules,
        "unreadable_bitmap_einval",
        "An unreadable bitmap is EINVAL.",
        copy_errors=_copy(
            lambda nmsrs, bitmap: frozenset({EINVAL}) if isinstance(bitmap, Pointer) else None
        ),
    ),
    mutant(
        FilterRules,
        "half_a_bitmap_is_enough",
        "A bitmap that can be read only in part is accepted.",
        copy_errors=_copy(lambda nmsrs, bitmap: NO_ERRORS if isinstance(bitmap, AtEdge) else None),
    ),
    mutant(
        FilterRules,
        "a_long_too_far",
        "One long more than the bitmap is read.",
        copy_errors=_copy(_reads_a_long_too_far),
    ),
)
