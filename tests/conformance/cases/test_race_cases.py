"""The race cases: each is a race that ends, and together they are all that issue 3 promises."""

import itertools
from collections.abc import Iterator

import pytest
from catalogue import MUST, ONLY_READ, PASSED_THROUGH, bare, checking

from vmm.conformance.cases import CASES, compat
from vmm.conformance.language import script
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import (
    KVM_X86_SET_MSR_FILTER,
    BeginInstall,
    CloseVcpu,
    CreateIrqchip,
    CreateVcpu,
    EnableCap,
    Install,
    Meanwhile,
    Park,
    Rdmsr,
    Release,
    ResumeInstall,
    Spin,
    StopSpin,
    UntilExits,
    UntilRuns,
    Wrmsr,
    blocked,
    done,
    ran,
    rejected,
    stalled,
    steps,
)
from vmm.exits import RdmsrExit, WrmsrExit
from vmm.filter import Pointer
from vmm.msr import FILTER

RACES = [case for case in CASES if "userfaultfd" in case.needs]


def events(case: Case) -> Iterator[tuple[object, script.Event]]:
    """Each action of a must-case with its last event."""
    for action, step in zip(case.actions, steps(case.actions, case.expected), strict=True):
        yield action, step[-1]


def while_stalled(case: Case) -> Iterator[tuple[object, script.Event]]:
    """What happens between a ``stalled`` and the next resume."""
    is_stalled = False
    for action, event in events(case):
        is_stalled = event == stalled or (is_stalled and not isinstance(action, ResumeInstall))
        if is_stalled and event != stalled:
            yield action, event


# --- form -------------------------------------------------------------------------------------


def test_no_must_case_leaves_anything_in_flight():
    for case in MUST:
        flying: set[tuple[str, object]] = set()
        for action, event in events(case):
            name = getattr(action, "name", None)
            if isinstance(action, ResumeInstall):
                assert ("stalled", name) in flying, case.id
            if isinstance(action, BeginInstall):
                assert not {("stalled", name), ("blocked", name)} & flying, case.id
            flying -= {("stalled", name), ("blocked", name)}
            if event in (stalled, blocked):
                flying.add(("stalled" if event == stalled else "blocked", name))
            if isinstance(action, Park | Spin):
                flying.add(("vcpu", getattr(action, "access", action).vcpu))
            if isinstance(action, Release | StopSpin):
                flying.remove(("vcpu", action.vcpu))
        assert not flying, case.id


def test_no_word_uses_a_vcpu_that_is_away():
    its_own = Release | StopSpin | UntilExits | UntilRuns
    for case in CASES:
        away: set[int] = set()
        for action, plain in zip(case.actions, bare(case), strict=True):
            vcpu = getattr(plain, "vcpu", None)
            if isinstance(action, its_own):
                assert vcpu in away, case.id
            else:
                assert vcpu not in away, case.id
            if isinstance(action, Park | Spin | CloseVcpu):
                away.add(vcpu)
            if isinstance(action, Release | StopSpin):
                away.remove(vcpu)


def test_an_install_stalls_at_a_bitmap_that_the_kernel_reads():
    for case in MUST:
        for action, event in events(case):
            if isinstance(action, BeginInstall) and event == stalled:
                slot = action.filter.ranges[action.stall_at]
                assert 0 < slot.nmsrs <= 0x3000 and slot.flags in (1, 2, 3), case.id
                assert isinstance(slot.bitmap, bytes), case.id


def test_no_32_bit_caller_passes_a_kernel_address():
    for case in CASES:
        for each in bare(case):
            if getattr(each, "caller", "self") == "compat":
                assert getattr(each, "argp", None) is not Pointer.KERNEL, case.id
                bitmaps = {r.bitmap for r in each.filter.ranges if not isinstance(r.bitmap, bytes)}
                assert Pointer.KERNEL not in bitmaps, case.id


def test_races_are_few_enough_to_be_run_always():
    """A race takes a fresh VM (2-3 ms); proving that a thread is asleep takes 20-40 ms."""
    assert len(RACES) <= 300
    asleep = [event for case in RACES if not case.observes for event in case.expected]
    assert asleep.count(blocked) <= 20


# --- completeness -------------------------------------------------------------------------------


@pytest.mark.parametrize("default", (0, 1))
@pytest.mark.parametrize("slot", range(16))
def test_installs_are_stalled_in_every_slot_and_seen_not_to_count(slot, default):
    found = [
        case
        for case in checking("R70")
        for action in case.actions
        if isinstance(action, BeginInstall)
        and (action.stall_at, action.filter.flags) == (slot, default)
        and len(action.filter.ranges) == 16
    ]
    assert any({0, 1} <= _vcpus(case) and _kinds(case) == {Rdmsr, Wrmsr} for case in found)


def _vcpus(case: Case) -> set[int]:
    return {a.vcpu for a, _ in while_stalled(case) if isinstance(a, Rdmsr | Wrmsr)}


def _kinds(case: Case) -> set[type]:
    return {type(a) for a, _ in while_stalled(case) if isinstance(a, Rdmsr | Wrmsr)}


@pytest.mark.parametrize("slot", range(16))
def test_installs_fail_after_a_stall_in_every_slot(slot):
    ends = {
        (type(step[0]), action.fails)
        for case in checking("R14")
        if any(isinstance(a, BeginInstall) and a.stall_at == slot for a in case.actions)
        for action, step in zip(case.actions, steps(case.actions, case.expected), strict=True)
        if isinstance(action, ResumeInstall) and isinstance(step[0], script.Rejected)
    }
    assert ends >= {(script.Rejected, True)} | ({(script.Rejected, False)} if slot < 15 else set())


def test_what_proceeds_while_an_install_is_stalled():
    seen = {
        (type(action.action), event)
        for case in checking("R73")
        for action, event in while_stalled(case)
        if isinstance(action, Meanwhile)
    }
    for action in (CreateVcpu, CreateIrqchip, EnableCap, Install):
        assert (action, done) in seen
    assert {(Install, rejected(errno)) for errno in (14, 22, 25)} <= seen


@pytest.mark.parametrize("names", ("ab", "abc"))
def test_installers_are_resumed_in_every_order(names):
    orders = {
        tuple(a.name for a in case.actions if isinstance(a, ResumeInstall))
        for case in checking("R77")
    }
    assert set(itertools.permutations(names)) <= orders


@pytest.mark.parametrize("requirement", ("R71", "R75"))
def test_vcpus_obey_while_an_install_is_stalled(requirement):
    assert any(
        isinstance(action, Rdmsr) and action.vcpu > 0
        for case in checking(requirement)
        for action, _ in while_stalled(case)
    )


def test_vcpus_are_made_while_an_install_is_stalled():
    made = {
        getattr(action, "action", action)
        for case in checking("R75")
        for action, _ in while_stalled(case)
    }
    assert any(isinstance(each, CreateVcpu) for each in made)


@pytest.mark.parametrize("msr", PASSED_THROUGH, ids=lambda msr: msr.name)
def test_every_pass_through_msr_is_changed_under_a_running_vcpu_both_ways(msr):
    for kind in (Rdmsr,) if msr in ONLY_READ else (Rdmsr, Wrmsr):
        turns = [
            [
                "runs" if event == ran else "exits"
                for _, event in events(case)
                if event == ran
                or (isinstance(event, RdmsrExit | WrmsrExit) and event.reason == FILTER)
            ]
            for case in checking("R72")
            if any(
                isinstance(a, Spin) and (type(a.access), a.access.index) == (kind, msr)
                for a in case.actions
            )
        ]
        assert any(t[:5] == ["runs", "exits", "runs", "exits", "runs"] for t in turns)


@pytest.mark.parametrize(
    "requirement, caller, ends",
    (("R03", "child", {rejected(5)}), ("R04", "compat", {done, rejected(14), rejected(22)})),
)
def test_callers(requirement, caller, ends):
    assert ends == {
        event
        for case in checking(requirement)
        for action, event in events(case)
        if isinstance(action, Install)
        and (action.number, action.caller) == (KVM_X86_SET_MSR_FILTER, caller)
    }


def test_the_32_bit_caller_meets_the_whole_table():
    native = {case.id for theme in compat.THEMES for case in theme.CASES}
    again = {case.id.removeprefix("compat.") for case in compat.CASES}
    left_out = native - again
    assert all("kernel" in each or "bits_0x" in each for each in left_out), left_out
    for case in compat.CASES:
        sent = [a for a in case.actions if isinstance(a, Install)]
        assert all((a.number, a.caller) == (0x4104AEC6, "compat") for a in sent), case.id
