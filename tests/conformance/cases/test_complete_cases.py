"""The catalogue is complete: each requirement, boundary, reason and pass-through MSR has a case."""

import itertools
import re
from collections import Counter

import pytest
from catalogue import ONLY_READ, PASSED_THROUGH, accesses, checking, installs

from vmm.conformance.cases import CASES, bitmaps, rollback
from vmm.conformance.contract.requirements import REQUIREMENTS
from vmm.conformance.language import script
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import (
    CreateIrqchip,
    Install,
    Rdmsr,
    SetCpuid,
    Wrmsr,
    rejected,
    steps,
)
from vmm.exits import RdmsrExit, WrmsrExit
from vmm.filter import EMPTY_SLOT
from vmm.msr import FILTER, INVAL, MAX_NMSRS, UNKNOWN, Msr

# What the catalogue promises to check. R10, R13, R25 and R67 are quirks in whole or in part, and
# of R74 what is left to kernels before v6.3. Of R76 the catalogue sees only what goes on.
LISTED = (
    *range(1, 35),
    *range(36, 40),
    *range(43, 48),
    *range(50, 58),
    *range(60, 66),
    68,
    *range(70, 78),
    81,
)
OBSERVED = ("R10", "R13", "R25", "R67", "R74", "R76")


@pytest.mark.parametrize("requirement", [f"R{number:02}" for number in LISTED])
def test_every_listed_requirement_has_a_case_that_can_fail(requirement):
    found = [case for case in checking(requirement) if not case.observes]
    assert found, f"no must-case checks {requirement}: {REQUIREMENTS[requirement].sentence}"


@pytest.mark.parametrize("requirement", OBSERVED)
def test_every_listed_quirk_is_observed(requirement):
    assert [case for case in checking(requirement) if case.observes], requirement


def test_only_quirks_are_observed():
    for case in CASES:
        assert case.observes <= (set(case.requirements) <= set(OBSERVED)), case.id


def test_undefined_flags_and_mask_bits_are_all_tried():
    refused = [a.filter for a, e in installs(checking("R06")) if e == rejected(22)]
    assert {f.flags for f in refused} >= {1 << bit for bit in range(1, 32)}
    flags = {
        r.flags
        for action, event in installs(checking("R07"))
        if event == rejected(22)
        for r in action.filter.ranges
    }
    assert flags >= {1 << bit for bit in range(2, 32)} | {3 | 1 << bit for bit in range(2, 32)}
    masks = {
        action.args[0]
        for case in checking("R43")
        for action, step in zip(case.actions, steps(case.actions, case.expected), strict=True)
        if step == (rejected(22),)
    }
    assert masks >= {1 << bit for bit in range(3, 64)}


@pytest.mark.parametrize("nmsrs", (1, 7, 8, 9, 63, 64, 65, 0x2FFF, 0x3000, 0x3001, 0xFFFFFFFF))
def test_range_lengths_at_the_boundaries(nmsrs):
    seen = {
        event
        for action, event in installs(checking("R09"))
        if any(r.nmsrs == nmsrs for r in action.filter.ranges)
    }
    assert seen == {script.done if nmsrs <= MAX_NMSRS else rejected(22)}


def test_slots_at_the_boundaries():
    used = [
        tuple(i for i, r in enumerate(action.filter.ranges) if r != EMPTY_SLOT)
        for action, event in installs(checking("R15"))
        if event == script.done
    ]
    assert {(slot,) for slot in range(16)} <= set(used)  # slot 0, slot 15, holes before the others
    assert tuple(range(16)) in used
    assert any(slots != tuple(range(len(slots))) and len(slots) > 1 for slots in used)


def test_every_bit_of_a_long_bitmap_is_tried():
    chunks = [case for case in CASES if case.id.startswith("bitmaps.bits_0x")]
    (sent,) = {a.filter.ranges for case in chunks for a in case.actions if isinstance(a, Install)}
    tried = {a.index - sent[0].base for case in chunks for a, _ in accesses(case)}
    assert tried == set(range(bitmaps.SWEEP))
    bits = Counter(sent[0].bitmap[bit >> 3] >> (bit & 7) & 1 for bit in range(MAX_NMSRS))
    assert min(bits.values()) > MAX_NMSRS * 0.48, "the bitmap hardly mixes its bits"


def test_every_mask_meets_every_reason_in_reads_and_writes():
    seen = set()
    for case in CASES:
        if re.fullmatch(r"masks\.\w+\.\w+\.\w+", case.id):
            mask = next(a.args[0] for a in case.actions if isinstance(a, script.EnableCap))
            ((action, step),) = accesses(case)
            invalid = action.index in (Msr.EFER, Msr.APIC_ID)
            denied = any(isinstance(a, Install) for a in case.actions)
            reason = INVAL if invalid else FILTER if denied else UNKNOWN
            assert [event.reason for event in step[:-1]] == [reason] * bool(mask & reason), case.id
            assert (step[-1] == script.gp) == (not mask & reason), case.id
            seen.add((mask, reason, type(action)))
    assert seen == set(itertools.product(range(8), (INVAL, UNKNOWN, FILTER), (Rdmsr, Wrmsr)))


@pytest.mark.parametrize("mode", ("on", "off"))
@pytest.mark.parametrize("index", (0x7FF, 0x800, 0x8FF, 0x900))
def test_the_edges_of_the_x2apic_window(mode, index):
    steps_of = [
        step
        for case in checking("R30")
        if case.id.startswith(f"x2apic.{mode}_under")
        for action, step in accesses(case)
        if action.index == index
    ]
    assert steps_of
    inside = 0x800 <= index <= 0x8FF
    assert all((step == (script.unfiltered,)) == inside for step in steps_of)


@pytest.mark.parametrize("bad", rollback.BAD_RANGES)
def test_failed_installs_fail_for_every_reason_in_every_slot(bad):
    errno, range_ = rollback.BAD_RANGES[bad]
    slots = {
        slot
        for action, event in installs(checking("R14"))
        if event == rejected(errno) and len(action.filter.ranges) == 16
        for slot, each in enumerate(action.filter.ranges)
        if each == range_
    }
    assert slots == set(range(16))


@pytest.mark.parametrize("msr", PASSED_THROUGH, ids=lambda msr: msr.name)
def test_every_pass_through_msr_is_denied_and_allowed_both_ways(msr):
    for access in (Rdmsr,) if msr in ONLY_READ else (Rdmsr, Wrmsr):
        turns = [
            [
                isinstance(step[0], RdmsrExit | WrmsrExit)
                for a, step in accesses(case)
                if a.index == msr
            ]
            for case in checking("R72")
            if {type(a) for a, _ in accesses(case) if a.index == msr} == {access}
        ]
        assert any({(True, False), (False, True)} <= {*itertools.pairwise(t)} for t in turns)


def paths(checked: list[Case]) -> dict[tuple[int, type, bool, bool], set[bool]]:
    """Return whether accesses exit, by MSR, kind, in-kernel APIC and CPUID's TSC_DEADLINE."""
    seen: dict[tuple[int, type, bool, bool], set[bool]] = {}
    for case in checked:
        has_apic = any(isinstance(each, CreateIrqchip) for each in case.actions)
        cpuid = {each.vcpu: each.on for each in case.actions if isinstance(each, SetCpuid)}
        for action, step in accesses(case):
            if action.vcpu in cpuid:
                key = (action.index, type(action), has_apic, cpuid[action.vcpu])
                seen.setdefault(key, set()).add(isinstance(step[0], RdmsrExit | WrmsrExit))
    return seen


R33 = paths([case for case in checking("R33") if not case.observes])


@pytest.mark.parametrize("cpuid", (True, False), ids=("cpuid", "no_cpuid"))
@pytest.mark.parametrize("has_apic", (True, False), ids=("apic", "no_apic"))
@pytest.mark.parametrize("msr", (Msr.IA32_TSC_DEADLINE, *PASSED_THROUGH), ids=lambda msr: msr.name)
def test_every_short_way_is_denied_with_and_without_apic_and_cpuid(msr, has_apic, cpuid):
    for kind in (Rdmsr,) if msr in ONLY_READ else (Rdmsr, Wrmsr):
        both_ways = msr in PASSED_THROUGH or cpuid
        assert R33[msr, kind, has_apic, cpuid] >= ({True, False} if both_ways else {True})
