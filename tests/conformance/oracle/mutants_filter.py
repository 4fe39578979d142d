"""Mistakes in validating, copying and matching a filter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from errno import EFAULT, EINVAL
from typing import Any

from mutant import mutant

from vmm.conformance.oracle.filters import NO_ERRORS, FilterRules, Held, Installed
from vmm.conformance.oracle.state import U32
from vmm.filter import READ, READ_WRITE, WRITE, AtEdge, Pointer, bitmap_size
from vmm.msr import MAX_NMSRS

# --- matching: kvm_msr_allowed() -----------------------------------------------------------------


def _covers(rule: Callable[[Held, int, int], bool]) -> Any:
    return lambda self, held, index, kind: rule(held, index, kind)


def _lenient_bit(self: FilterRules, bits: bytes, offset: int) -> bool:
    """What test_bit() finds beyond the bitmap is not there to be read here."""
    return 0 <= offset < 8 * len(bits) and FilterRules.bit(self, bits, offset)


def _ranges(filter_: Installed | None) -> tuple[Held, ...]:
    return filter_.ranges if filter_ else ()


def _differs_from_default(self: FilterRules, filter_: Any, index: int, kind: int) -> Any:
    for held in _ranges(filter_):
        if self.covers(held, index, kind) and not self.is_exempt(index):
            return self.bit(held.bits, index - held.base) != filter_.default_allows
    return FilterRules.allows(self, filter_, index, kind)


def _any_denial_wins(self: FilterRules, filter_: Any, index: int, kind: int) -> Any:
    held = [each for each in _ranges(filter_) if self.covers(each, index, kind)]
    if not held or self.is_exempt(index):
        return FilterRules.allows(self, filter_, index, kind)
    return all(self.bit(each.bits, index - each.base) for each in held)


def _any_permission_wins(self: FilterRules, filter_: Any, index: int, kind: int) -> Any:
    held = [each for each in _ranges(filter_) if self.covers(each, index, kind)]
    if not held or self.is_exempt(index):
        return FilterRules.allows(self, filter_, index, kind)
    return any(self.bit(each.bits, index - each.base) for each in held)


def _opaque(result: Callable[[Installed], bool]) -> Any:
    def allows(self: FilterRules, filter_: Any, index: int, kind: int) -> Any:
        for held in _ranges(filter_):
            if held.base <= index < held.end and not self.is_exempt(index):
                fits = held.flags & kind
                return self.bit(held.bits, index - held.base) if fits else result(filter_)
        return FilterRules.allows(self, filter_, index, kind)

    return allows


def _default_only_outside(self: FilterRules, filter_: Any, index: int, kind: int) -> Any:
    if 0x800 <= index <= 0x8FF and not any(self.covers(h, index, kind) for h in _ranges(filter_)):
        return True
    inside = type(self).__mro__[1]
    ranges_rule = type("NoWindow", (inside,), {"is_exempt": lambda self, index: False})()
    return ranges_rule.allows(filter_, index, kind)


def _ranges_only_outside(self: FilterRules, filter_: Any, index: int, kind: int) -> Any:
    if 0x800 <= index <= 0x8FF:
        return filter_ is None or filter_.default_allows
    return FilterRules.allows(self, filter_, index, kind)


def _window_for(kinds: int) -> Any:
    def allows(self: FilterRules, filter_: Any, index: int, kind: int) -> Any:
        if kind & kinds or not FilterRules.is_exempt(self, index):
            return FilterRules.allows(self, filter_, index, kind)
        rules = type("NoWindow", (FilterRules,), {"is_exempt": lambda self, index: False})()
        return rules.allows(filter_, index, kind)

    return allows


def _window(first: int, last: int) -> Any:
    return lambda self, index: first <= index <= last


def _signed(number: int) -> int:
    return number - (1 << 32) if number & 1 << 31 else number


MATCHING = (
    mutant(
        FilterRules,
        "base_excluded",
        "A range starts one MSR after its base.",
        covers=_covers(lambda h, i, k: h.base < i < h.end and h.flags & k != 0),
    ),
    mutant(
        FilterRules,
        "base_before",
        "A range starts one MSR before its base.",
        covers=_covers(lambda h, i, k: h.base - 1 <= i < h.end and h.flags & k != 0),
    ),
    mutant(
        FilterRules,
        "end_included",
        "A range holds base + nmsrs too, as the old documentation said.",
        covers=_covers(lambda h, i, k: h.base <= i <= h.end and h.flags & k != 0),
        bit=_lenient_bit,
    ),
    mutant(
        FilterRules,
        "last_msr_missed",
        "A range ends one MSR too early.",
        covers=_covers(lambda h, i, k: h.base <= i < h.end - 1 and h.flags & k != 0),
    ),
    mutant(
        FilterRules,
        "whole_longs_count",
        "A range holds all the bits of the longs that were copied.",
        covers=_covers(lambda h, i, k: 0 <= i - h.base < len(h.bits) * 8 and h.flags & k != 0),
    ),
    mutant(
        FilterRules,
        "base_rounded_down",
        "The base is taken as a multiple of 8.",
        held=lambda self, r: FilterRules.held(self, replace(r, base=r.base & ~7)),
    ),
    mutant(
        FilterRules,
        "base_of_16_bits",
        "Only the low half of index and base is compared.",
        covers=_covers(
            lambda h, i, k: 0 <= (i - h.base) & 0xFFFF < h.end - h.base and h.flags & k != 0
        ),
        bit=_lenient_bit,
    ),
    mutant(
        FilterRules,
        "signed_compare",
        "Index, base and end are compared as signed 32-bit numbers.",
        covers=_covers(
            lambda h, i, k: (
                _signed(h.base) <= _signed(i) < _signed(h.end & U32) and h.flags & k != 0
            )
        ),
    ),
    mutant(
        FilterRules,
        "most_significant_bit_first",
        "Bits are numbered from the most significant one of each byte.",
        bit=lambda self, bits, offset: bits[offset >> 3] >> (7 - offset & 7) & 1 == 1,
    ),
    mutant(
        FilterRules,
        "big_endian_longs",
        "The bytes of each long are taken in the opposite order.",
        bit=lambda self, bits, offset: bits[offset >> 3 ^ 7] >> (offset & 7) & 1 == 1,
    ),
    mutant(
        FilterRules,
        "first_long_only",
        "The bit number counts within one long.",
        bit=lambda self, bits, offset: FilterRules.bit(self, bits, offset & 63),
    ),
    mutant(
        FilterRules,
        "bits_of_32",
        "The bit number counts within 32 bits of each long.",
        bit=lambda self, bits, offset: FilterRules.bit(self, bits, offset & ~32),
    ),
    mutant(
        FilterRules,
        "next_bit",
        "The bit of the MSR after this one decides.",
        bit=lambda self, bits, offset: _lenient_bit(self, bits, offset + 1),
    ),
    mutant(
        FilterRules,
        "bit_of_the_index",
        "The bitmap is indexed with the MSR instead of its distance from the base.",
        allows=lambda self, f, index, kind: FilterRules.allows(
            type(
                "Absolute",
                (FilterRules,),
                {"bit": lambda rules, bits, offset: _lenient_bit(rules, bits, index & 63)},
            )(),
            f,
            index,
            kind,
        ),
    ),
    mutant(
        FilterRules,
        "bit_inverted",
        "A set bit denies.",
        bit=lambda self, bits, offset: not FilterRules.bit(self, bits, offset),
    ),
    mutant(
        FilterRules,
        "bit_against_the_default",
        "A set bit means the opposite of the default action.",
        allows=_differs_from_default,
    ),
    mutant(
        FilterRules,
        "last_range_wins",
        "Of overlapping ranges the highest slot decides.",
        in_order=lambda self, ranges: reversed(ranges),
    ),
    mutant(
        FilterRules,
        "lowest_base_wins",
        "Of overlapping ranges the one with the lowest base decides.",
        in_order=lambda self, ranges: sorted(ranges, key=lambda held: held.base),
    ),
    mutant(
        FilterRules,
        "smallest_range_wins",
        "Of overlapping ranges the one of the fewest MSRs decides.",
        in_order=lambda self, ranges: sorted(ranges, key=lambda held: held.end - held.base),
    ),
    mutant(
        FilterRules,
        "any_denial_wins",
        "Of overlapping ranges all must allow.",
        allows=_any_denial_wins,
    ),
    mutant(
        FilterRules,
        "any_permission_wins",
        "Of overlapping ranges one must allow.",
        allows=_any_permission_wins,
    ),
    mutant(
        FilterRules,
        "first_range_only",
        "The search ends after the first range.",
        in_order=lambda self, ranges: ranges[:1],
    ),
    mutant(
        FilterRules,
        "type_ignored",
        "A range governs reads and writes whatever its flags.",
        covers=_covers(lambda h, i, k: h.base <= i < h.end),
    ),
    mutant(
        FilterRules,
        "types_swapped",
        "READ ranges govern WRMSR and WRITE ranges RDMSR.",
        covers=_covers(lambda h, i, k: h.base <= i < h.end and h.flags & (k ^ 3) != 0),
    ),
    mutant(
        FilterRules,
        "type_equal",
        "A range of both flags governs neither kind.",
        covers=_covers(lambda h, i, k: h.base <= i < h.end and h.flags == k),
    ),
    mutant(
        FilterRules,
        "other_type_is_opaque",
        "A range of the other kind ends the search and the default decides.",
        allows=_opaque(lambda filter_: filter_.default_allows),
    ),
    mutant(
        FilterRules,
        "other_type_allows",
        "A range of the other kind ends the search and allows.",
        allows=_opaque(lambda filter_: True),
    ),
    mutant(
        FilterRules,
        "other_type_denies",
        "A range of the other kind ends the search and denies.",
        allows=_opaque(lambda filter_: False),
    ),
    mutant(
        FilterRules,
        "default_inverted",
        "The default action is the other one.",
        installed=lambda self, old, new: FilterRules.installed(
            self, old, replace(new, flags=new.flags ^ 1)
        ),
    ),
    mutant(
        FilterRules,
        "default_always_allows",
        "DEFAULT_DENY is accepted and ignored.",
        installed=lambda self, old, new: FilterRules.installed(self, old, replace(new, flags=0)),
    ),
    mutant(
        FilterRules,
        "default_always_denies",
        "An MSR outside the ranges is denied as soon as there are ranges.",
        installed=lambda self, old, new: FilterRules.installed(
            self, old, replace(new, flags=0 if self.is_empty(new) else 1)
        ),
    ),
    mutant(
        FilterRules,
        "x2apic_window_starts_early",
        "0x7ff is exempt from filtering.",
        is_exempt=_window(0x7FF, 0x8FF),
    ),
    mutant(
        FilterRules,
        "x2apic_window_starts_late",
        "0x800 can be denied.",
        is_exempt=_window(0x801, 0x8FF),
    ),
    mutant(
        FilterRules,
        "x2apic_window_ends_early",
        "0x8ff can be denied.",
        is_exempt=_window(0x800, 0x8FE),
    ),
    mutant(
        FilterRules,
        "x2apic_window_ends_late",
        "0x900 is exempt from filtering.",
        is_exempt=_window(0x800, 0x900),
    ),
    mutant(
        FilterRules,
        "x2apic_window_of_xapic_size",
        "0x800..0xbff is exempt, the window that the SDM reserves.",
        is_exempt=_window(0x800, 0xBFF),
    ),
    mutant(
        FilterRules,
        "x2apic_filtered",
        "x2APIC MSRs are filtered like any other (before 9389b9d5d356).",
        is_exempt=_window(1, 0),
    ),
    mutant(
        FilterRules,
        "x2apic_exempt_from_default_only",
        "A range can deny an x2APIC MSR; only the default action spares them.",
        allows=_default_only_outside,
    ),
    mutant(
        FilterRules,
        "x2apic_exempt_from_ranges_only",
        "The default action holds for x2APIC MSRs; only ranges spare them.",
        allows=_ranges_only_outside,
    ),
    mutant(
        FilterRules,
        "x2apic_writes_filtered",
        "Only reads of x2APIC MSRs are exempt.",
        allows=_window_for(READ),
    ),
    mutant(
        FilterRules,
        "x2apic_reads_filtered",
        "Only writes of x2APIC MSRs are exempt.",
        allows=_window_for(WRITE),
    ),
)

# --- validation: kvm_vm_ioctl_set_msr_filter(), kvm_add_msr_filter() -----------------------------


def _size_limit(is_invalid: Callable[[int], bool]) -> dict[str, Any]:
    def held(self: FilterRules, range_: Any) -> Held:
        small = replace(range_, nmsrs=min(range_.nmsrs, MAX_NMSRS + 64))
        end = range_.base + range_.nmsrs
        return FilterRules.held(self, small)._replace(end=end)

    return {
        "size_is_invalid": lambda self, nmsrs: is_invalid(nmsrs),
        "held": held,
        "bit": _lenient_bit,
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
        **_size_limit(lambda nmsrs: _signed(nmsrs) > MAX_NMSRS),
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
        bit=_lenient_bit,
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
        bit=_lenient_bit,
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
