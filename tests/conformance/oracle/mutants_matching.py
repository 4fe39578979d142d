"""Mistakes in matching an access against a filter: kvm_msr_allowed()."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from mutant import mutant

from vmm.conformance.oracle.filters import FilterRules, Held, Installed
from vmm.conformance.oracle.msrs import U32
from vmm.filter import READ, WRITE


def _covers(rule: Callable[[Held, int, int], bool]) -> Any:
    return lambda self, held, index, kind: rule(held, index, kind)


def lenient_bit(self: FilterRules, bits: bytes, offset: int) -> bool:
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


def signed(number: int) -> int:
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
        bit=lenient_bit,
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
        bit=lenient_bit,
    ),
    mutant(
        FilterRules,
        "signed_compare",
        "Index, base and end are compared as signed 32-bit numbers.",
        covers=_covers(
            lambda h, i, k: signed(h.base) <= signed(i) < signed(h.end & U32) and h.flags & k != 0
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
        bit=lambda self, bits, offset: lenient_bit(self, bits, offset + 1),
    ),
    mutant(
        FilterRules,
        "bit_of_the_index",
        "The bitmap is indexed with the MSR instead of its distance from the base.",
        allows=lambda self, f, index, kind: FilterRules.allows(
            type(
                "Absolute",
                (FilterRules,),
                {"bit": lambda rules, bits, offset: lenient_bit(rules, bits, index & 63)},
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
