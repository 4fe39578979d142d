"""The catalogue is well formed, and each case is able to fail."""

import itertools
import re
import string
from collections import Counter
from pathlib import Path

import pytest
from catalogue import MUST, accesses, bare

from vmm.conformance import cases
from vmm.conformance.cases import CASES
from vmm.conformance.cases.words import DATA
from vmm.conformance.contract.requirements import REQUIREMENTS
from vmm.conformance.language import script
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
    Sweep,
    Swept,
    Unfiltered,
    Whatever,
    Wrmsr,
    Wrote,
    steps,
)
from vmm.conformance.oracle.msrs import STORABLE
from vmm.msr import Msr

NESTED_STATE = script.SaveNested | script.RestoreNested | script.LeaveNested
NEEDS = {
    "irqchip",
    "nested_state",
    "vcpus",
    "userfaultfd",
    "compat",
    "force_emulation_prefix",
    "smm",
    *("xen_hvm", "xen_intercept"),
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
            "smm": any(
                getattr(each, "mode", "long") == "smm" or getattr(each, "kind", "") == "smi"
                for each in used
            ),
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
        xen = [each.flags & 2 for each in used if isinstance(each, script.XenHvmConfig)]
        has["xen_intercept"], has["xen_hvm"] = any(xen), not all(xen)
        entries = [each for each in case.actions if isinstance(each, script.EnterL2)]
        bare_bitmaps = {each.passes for each in entries if not each.bitmap}
        lists = [each.entry_load + each.exit_store + each.exit_load for each in entries]
        has["nested"] = any(isinstance(each, script.LevelAction) for each in case.actions)
        has["nested_state"] = any(isinstance(each, NESTED_STATE) for each in case.actions)
        has["nested_svm"] = "all" in bare_bitmaps
        has["memory_cgroup"] = any(isinstance(each, script.WeighBitmaps) for each in used)
        has["clean_bitmap"] = any(each.clean for each in entries)
        has["nested_vmx"] = "none" in bare_bitmaps or any(lists)
        sleeps = script.Sleep | script.AwaitSipi
        has["task_syscall"] = any(
            isinstance(each, Meanwhile | BeginInstall | AwaitInstall | AwaitMeanwhile | sleeps)
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


def test_no_deadline_is_near():
    """An allowed WRMSR of TSC_DEADLINE must not interrupt a guest that has no handler."""
    for case in CASES:
        for action in bare(case):
            if isinstance(action, Wrmsr) and action.index == Msr.IA32_TSC_DEADLINE:
                assert not action.value or action.value / 6e9 > 1000, f"{case.id}: seconds"
                assert action.value * 10**6 < 1 << 64, f"{case.id}: KVM multiplies so, and it wraps"
