"""The catalogue: well formed, complete against the requirements, and each case able to fail."""

import itertools
import re
import string
from collections import Counter
from pathlib import Path

import pytest

from vmm.conformance import cases
from vmm.conformance.cases import CASES, bitmaps, rollback
from vmm.conformance.cases.words import DATA
from vmm.conformance.contract.requirements import REQUIREMENTS
from vmm.conformance.language import script
from vmm.conformance.language.case import Case
from vmm.conformance.language.needs import OF_FORM, OF_INSTRUCTION
from vmm.conformance.language.script import (
    AwaitInstall,
    AwaitMeanwhile,
    Begin,
    BeginInstall,
    CreateIrqchip,
    CreateVcpu,
    Done,
    Execute,
    Fault,
    Install,
    Lost,
    Meanwhile,
    Park,
    Rdmsr,
    ResumeInstall,
    Returned,
    SetCpuid,
    Spin,
    Sweep,
    Swept,
    Unfiltered,
    Whatever,
    Wrmsr,
    Wrote,
    rejected,
    steps,
)
from vmm.conformance.oracle.state import STORABLE
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

NESTED_STATE = script.SaveNested | script.RestoreNested | script.LeaveNested
MUST = [case for case in CASES if not case.observes]
NEEDS = {
    "irqchip",
    "nested_state",
    "vcpus",
    "userfaultfd",
    "compat",
    "force_emulation_prefix",
    "smm",
    "put_off_debug",
    "clean_bitmap",
    "memory_cgroup",
    "emulated_shadow",
    *("wrmsrns", "msr_imm"),
    *("guest_tsc", "rdtscp", "rdpid", "pmu", "sep", "fsgsbase", "xsaves"),
    "single_step",
    "ignore_msrs",
    "task_syscall",
    *(f"disable_exits_{name}" for name in script.DISABLE_EXITS),
    *("one_reg", "shstk", "mediated_pmu", "spec_ctrl", "xfd", "lbr", "pt"),
    "nested",
    "nested_svm",
    "nested_vmx",
}

# CONTRACT R72: the pass-through MSRs of both vendors. The host decides which of them it passes.
PASSED_THROUGH = (
    Msr.IA32_TSC,
    Msr.IA32_SPEC_CTRL,
    Msr.IA32_PRED_CMD,
    Msr.IA32_FLUSH_CMD,
    Msr.IA32_SYSENTER_CS,
    Msr.IA32_SYSENTER_ESP,
    Msr.IA32_SYSENTER_EIP,
    Msr.IA32_XFD,
    Msr.IA32_XFD_ERR,
    Msr.IA32_LASTBRANCHFROMIP,
    Msr.IA32_LASTBRANCHTOIP,
    Msr.IA32_LASTINTFROMIP,
    Msr.IA32_LASTINTTOIP,
    Msr.CORE_C1_RES,
    Msr.CORE_C3_RESIDENCY,
    Msr.CORE_C6_RESIDENCY,
    Msr.CORE_C7_RESIDENCY,
    Msr.IA32_RTIT_CTL,
    Msr.IA32_RTIT_STATUS,
    Msr.IA32_RTIT_CR3_MATCH,
    Msr.IA32_RTIT_OUTPUT_BASE,
    Msr.IA32_RTIT_OUTPUT_MASK,
    Msr.STAR,
    Msr.LSTAR,
    Msr.CSTAR,
    Msr.SYSCALL_MASK,
    Msr.FS_BASE,
    Msr.GS_BASE,
    Msr.KERNEL_GS_BASE,
    Msr.AMD64_SEV_ES_GHCB,
)
ONLY_READ = (Msr.IA32_TSC,)


def checking(requirement: str) -> list[Case]:
    return [case for case in CASES if requirement in case.requirements]


def installs(checked: list[Case]) -> list[tuple[Install, script.Event]]:
    """Every install of these must-cases with the event it must leave."""
    return [
        (action, step[0])
        for case in checked
        if not case.observes
        for action, step in zip(case.actions, steps(case.actions, case.expected), strict=True)
        if isinstance(action, Install)
    ]


def accesses(case: Case) -> list[tuple[Rdmsr | Wrmsr, script.Step]]:
    cut = zip(case.actions, steps(case.actions, case.expected), strict=True)
    return [(action, step) for action, step in cut if isinstance(action, Rdmsr | Wrmsr)]


# --- values -----------------------------------------------------------------------------------


def _writes() -> set[tuple[int, int]]:
    done = (script.innermost(each) for case in CASES for each in case.actions)
    inner = (each.access if isinstance(each, script.Spin) else each for each in done)
    return {(w.index, w.value) for w in inner if isinstance(w, Wrmsr | script.SetMsr)}


def test_a_case_writes_to_storing_msrs_what_all_of_them_hold():
    kept = [(msr, value) for msr, value in _writes() if msr in STORABLE]
    assert {msr for msr, _ in kept} == set(STORABLE)
    # A write of DATA is stopped by a filter in each of these cases.
    odd = {msr for msr, value in kept if not STORABLE[msr](value) and value != DATA}
    assert not odd


# --- form -------------------------------------------------------------------------------------


def test_ids_are_unique():
    twice = [name for name, count in Counter(case.id for case in CASES).items() if count > 1]
    assert not twice


@pytest.mark.parametrize("theme", cases.THEMES, ids=lambda theme: theme.__name__)
def test_ids_are_theme_dot_name(theme):
    name = theme.__name__.rpartition(".")[2]
    assert theme.CASES
    for case in theme.CASES:
        assert re.fullmatch(rf"{name}(\.[a-z0-9_]+)+", case.id), case.id


def test_every_module_of_cases_is_in_the_catalogue():
    there = {path.stem for path in Path(cases.__file__).parent.glob("*.py")}
    named = {theme.__name__.rpartition(".")[2] for theme in cases.THEMES}
    assert there - named == {"__init__", "words"}


def test_sentences_are_sentences():
    for case in CASES:
        assert case.sentence.endswith("."), case.id
        assert case.sentence[0] in string.ascii_uppercase + string.digits, case.id
        assert "\n" not in case.sentence and "  " not in case.sentence, case.id
        assert len(case.sentence) <= 160, case.id


def test_few_cases_share_a_sentence():
    shared = Counter(case.sentence for case in CASES)
    assert max(shared.values()) <= 3, shared.most_common(1)


def test_cases_name_requirements_that_exist():
    for case in CASES:
        assert case.requirements, case.id
        assert len(set(case.requirements)) == len(case.requirements), case.id
        assert set(case.requirements) <= set(REQUIREMENTS), case.id


def bare(case: Case) -> list[object]:
    """Each action, with the access of a begin or spin and the action of a meanwhile instead."""
    inner = {Begin: "access", Spin: "access", Meanwhile: "action"}
    return [getattr(each, inner.get(type(each), ""), each) for each in case.actions]


def test_needs_are_what_the_script_uses():
    for case in CASES:
        used = bare(case)
        has = {
            "irqchip": any(isinstance(each, CreateIrqchip) for each in used),
            "vcpus": len({getattr(each, "vcpu", 0) for each in used}) > 1,
            "compat": any(getattr(each, "caller", "self") == "compat" for each in used),
            "single_step": any(getattr(each, "single_step", False) for each in used),
            "force_emulation_prefix": any(getattr(each, "emulated", False) for each in used),
            "one_reg": any(getattr(each, "by", "") == "one_reg" for each in used),
            "put_off_debug": any(
                getattr(each, "after", "") == "mov_ss" and each.single_step for each in used
            ),
            "smm": any(getattr(each, "mode", "long") == "smm" for each in used),
            "userfaultfd": any(
                isinstance(each, Park) or getattr(each, "stall_at", None) is not None
                for each in used
            ),
        }
        has["emulated_shadow"] = any(
            isinstance(look, script.GetVcpuEvents)
            and getattr(at, "emulated", False)
            and at.after in {"sti", "mov_ss"}
            for at, look in itertools.pairwise(used)
        )
        entries = [each for each in case.actions if isinstance(each, script.EnterL2)]
        bare_bitmaps = {each.passes for each in entries if not each.bitmap}
        lists = [each.entry_load + each.exit_store + each.exit_load for each in entries]
        has["nested"] = any(isinstance(each, script.LevelAction) for each in case.actions)
        has["nested_state"] = any(isinstance(each, NESTED_STATE) for each in case.actions)
        has["nested_svm"] = "all" in bare_bitmaps
        has["memory_cgroup"] = any(isinstance(each, script.WeighBitmaps) for each in used)
        has["clean_bitmap"] = any(each.clean for each in entries)
        has["nested_vmx"] = "none" in bare_bitmaps or any(lists)
        has["task_syscall"] = any(
            isinstance(each, Meanwhile | BeginInstall | AwaitInstall | AwaitMeanwhile)
            for each in case.actions
        )
        disabled = [each for each in used if getattr(each, "cap", 0) == 143]
        for name, bit in script.DISABLE_EXITS.items():
            has[f"disable_exits_{name}"] = any(each.args[0] & bit for each in disabled)
        needs = {need for need, there in has.items() if there}
        for each in used:
            if isinstance(each, Execute):
                needs |= {*OF_INSTRUCTION.get(each.instruction, ())}
            needs |= {*OF_FORM.get(getattr(each, "form", ""), ())}
        assert set(case.all_needs) == needs | set(case.needs) <= NEEDS, case.id
        assert len(set(case.all_needs)) == len(case.all_needs), case.id


def test_the_irqchip_comes_before_any_vcpu():
    uses_vcpu = (
        *(Rdmsr, Wrmsr, Park, CreateVcpu, SetCpuid, script.GetMsr, script.SetMsr),
        *(script.EnterL2, script.LeaveL2),
    )
    for case in CASES:
        kinds = [type(action) for action in bare(case)]
        if CreateIrqchip in kinds:
            first = next(i for i, kind in enumerate(kinds) if issubclass(kind, uses_vcpu))
            assert kinds.index(CreateIrqchip) < first, case.id


# --- every case can fail -----------------------------------------------------------------------


ENDS_AN_ACCESS = (
    Returned | Wrote | Fault | Unfiltered | script.Either | script.L1Exit | script.Shutdown
)


def test_each_action_has_its_events_and_no_event_is_left_over():
    for case in MUST:
        assert len(steps(case.actions, case.expected)) == len(case.actions), case.id
        for _, step in accesses(case):
            assert isinstance(step[-1], ENDS_AN_ACCESS), case.id
        assert not any(isinstance(event, Lost | Whatever) for event in case.expected), case.id


def test_a_trace_says_something_that_can_be_wrong():
    vague = (Done, Unfiltered, Whatever)
    for case in MUST:
        said = [e for e in case.expected if not isinstance(e, vague) and "ANY" not in repr(e)]
        assert not all(map(says_nothing, said)), case.id


def says_nothing(event: script.Event) -> bool:
    """Say whether an access, or each of a sweep, may have ended in any way but one."""
    if isinstance(event, Swept):
        return all(each.ended == "UNFILTERED" for each in event.runs)
    return event == script.unfiltered


def test_every_install_is_followed_by_an_access_that_shows_what_is_in_force():
    ends = Install | BeginInstall | ResumeInstall | AwaitInstall
    for case in MUST:
        cut = list(zip(case.actions, steps(case.actions, case.expected), strict=True))
        last = max((i for i, a in enumerate(bare(case)) if isinstance(a, ends)), default=-1)
        shown = [
            step
            for action, step in cut[last + 1 :]
            if isinstance(action, Rdmsr | Wrmsr | Begin | Sweep) and not says_nothing(step[0])
        ]
        assert last < 0 or shown, case.id


def test_no_write_asks_for_a_fault_that_hardware_would_raise():
    """Non-canonical addresses fault natively where the MSR is passed through: no exit (R50)."""
    canonical = {Msr.LSTAR, Msr.CSTAR, Msr.FS_BASE, Msr.GS_BASE, Msr.KERNEL_GS_BASE}
    for case in MUST:
        for action, _ in accesses(case):
            if isinstance(action, Wrmsr) and action.index in canonical:
                assert action.value >> 47 in (0, 0x1FFFF), case.id


# --- completeness -------------------------------------------------------------------------------


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


def test_no_deadline_is_near():
    """An allowed WRMSR of TSC_DEADLINE must not interrupt a guest that has no handler."""
    for case in CASES:
        for action in bare(case):
            if isinstance(action, Wrmsr) and action.index == Msr.IA32_TSC_DEADLINE:
                assert not action.value or action.value / 6e9 > 1000, f"{case.id}: seconds"
                assert action.value * 10**6 < 1 << 64, f"{case.id}: KVM multiplies so, and it wraps"
