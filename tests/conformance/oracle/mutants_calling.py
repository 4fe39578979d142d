"""Mistakes in who installs: a forked child, and a caller of 32 bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from mutant import mutant

from vmm.conformance.language import script as s
from vmm.conformance.oracle.filters import NO_FILTER
from vmm.conformance.oracle.installs import NATIVE, InstallRules
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.state import VmState
from vmm.filter import MsrFilter, MsrRange, bitmap_size


def _refused_but_clears(self: InstallRules, model: Model, vm: VmState, action: s.Install) -> s.Step:
    if self.is_foreign(action):
        vm.filter = NO_FILTER
    return InstallRules.install(self, model, vm, action)


def _compat(change: Callable[[MsrFilter], MsrFilter]) -> Any:
    """Return the rule by which a 32-bit caller's filter arrives changed."""
    return lambda self, action: change(action.filter) if action.number != NATIVE else action.filter


def _each_range(change: Callable[[MsrRange], MsrRange]) -> Any:
    return _compat(lambda new: replace(new, ranges=tuple(map(change, new.ranges))))


def _half(range_: MsrRange) -> MsrRange:
    if not isinstance(range_.bitmap, bytes):
        return range_
    return replace(range_, bitmap=range_.bitmap[: bitmap_size(range_.nmsrs) // 2])


def _read_anyway(range_: MsrRange) -> MsrRange:
    return replace(range_, bitmap=range_.bitmap if isinstance(range_.bitmap, bytes) else b"")


def _shifted(new: MsrFilter) -> MsrFilter:
    # 16-byte ranges read in steps of 24: every third one is met, and the rest is noise.
    return replace(new, ranges=new.ranges[:1] + new.ranges[3::3])


CALLING = (
    mutant(
        InstallRules,
        "child_installs",
        "A forked child may install.",
        is_foreign=lambda self, action: False,
    ),
    mutant(
        Model,
        "child_clears",
        "The EIO of a forked child ends all filtering.",
        install=_refused_but_clears,
    ),
    mutant(
        InstallRules,
        "compat_enotty",
        "The compat number is ENOTTY for a 32-bit caller.",
        numbers=lambda self, caller: (NATIVE,),
    ),
    mutant(
        InstallRules,
        "compat_number_for_all",
        "The compat number installs for a 64-bit caller.",
        numbers=lambda self, caller: InstallRules.numbers(self, "compat"),
    ),
    mutant(
        InstallRules,
        "compat_native_enotty",
        "The native number is ENOTTY for a 32-bit caller.",
        numbers=lambda self, caller: tuple(
            each
            for each in InstallRules.numbers(self, caller)
            if (each == NATIVE) != (caller == "compat")
        ),
    ),
    mutant(
        InstallRules,
        "compat_range_flags_not_judged",
        "A 32-bit caller's range flags are cut to the two that exist.",
        argument=_each_range(lambda each: replace(each, flags=each.flags & 3 or 3)),
    ),
    mutant(
        InstallRules,
        "compat_filter_flags_not_judged",
        "A 32-bit caller's filter flags are cut to the one that exists.",
        argument=_compat(lambda new: replace(new, flags=new.flags & 1)),
    ),
    mutant(
        InstallRules,
        "compat_size_not_judged",
        "A 32-bit caller's range that is too large is cut to the limit.",
        argument=_each_range(lambda each: replace(each, nmsrs=min(each.nmsrs, 0x3000))),
    ),
    mutant(
        InstallRules,
        "compat_bad_bitmap_denies",
        "A 32-bit caller's bitmap that cannot be read counts as one of zeroes.",
        argument=_each_range(_read_anyway),
    ),
    mutant(
        InstallRules,
        "compat_half_the_bitmap",
        "Of a 32-bit caller's bitmap the first half is copied.",
        argument=_each_range(_half),
    ),
    mutant(
        InstallRules,
        "compat_wrong_layout",
        "A 32-bit caller's ranges are read in steps of 24 bytes instead of 16.",
        argument=_compat(_shifted),
    ),
    mutant(
        InstallRules,
        "compat_first_range_only",
        "Of a 32-bit caller's ranges only the first one counts.",
        argument=_compat(lambda new: replace(new, ranges=new.ranges[:1])),
    ),
    mutant(
        InstallRules,
        "compat_last_slot_lost",
        "A 32-bit caller's slot 15 is left out.",
        argument=_compat(lambda new: replace(new, ranges=new.ranges[:15])),
    ),
    mutant(
        InstallRules,
        "compat_default_lost",
        "A 32-bit caller's filter always allows by default.",
        argument=_compat(lambda new: replace(new, flags=new.flags & ~1)),
    ),
    mutant(
        InstallRules,
        "compat_base_is_signed",
        "A 32-bit caller's base loses its highest bit.",
        argument=_each_range(lambda each: replace(each, base=each.base & 0x7FFF_FFFF)),
    ),
)
