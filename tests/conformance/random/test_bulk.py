"""The bulk path judges what the slow path judges, and notices every kind of wrong prediction."""

from __future__ import annotations

import itertools
import sys

import pytest

from vmm.conformance.kernel import wire as record
from vmm.conformance.language.script import (
    Fault,
    Install,
    Lost,
    Rdmsr,
    Regs,
    Returned,
    Wrmsr,
    done,
    first_difference,
    gp,
    rejected,
    wrote,
)
from vmm.conformance.oracle.accesses import AccessRules
from vmm.conformance.oracle.exits import ExitRules
from vmm.conformance.oracle.filters import FilterRules
from vmm.conformance.oracle.model import Model
from vmm.conformance.random.chunks import Chunks
from vmm.exits import RdmsrExit, WrmsrExit
from vmm.guest import Guest
from vmm.msr import FILTER, UNKNOWN, MsrExitReason

READ, WRITE = Rdmsr(0x474F4F00, 5, 0x1_0000_0002, 7), Wrmsr(0xDEADBEEF, 2**64 - 2, 0x3_0000_0004)
AT = record.instructions(Guest.load("access"))


def drawn(seed: int, accesses: int, cases: int) -> list[object]:
    chunks = Chunks(seed, accesses)
    return [
        (each.filter, [chunks.access(key) for key in each.keys])
        for each in itertools.islice(chunks.chunk(3, 64).cases, cases)
    ]


def test_a_seed_draws_the_same_cases_every_time_and_another_seed_others():
    assert drawn(1, 4, 64) == drawn(1, 4, 64)
    assert drawn(1, 4, 64)[:7] == drawn(1, 4, 7)
    assert drawn(1, 4, 64) != drawn(2, 4, 64)
    filters = [filter_ for filter_, _ in drawn(1, 4, 64)]
    assert len(set(map(repr, filters))) == 64


def test_the_fate_of_every_access_is_certain_and_all_fates_occur():
    model, chunks = Model(), Chunks(5, 8)
    vm = model.new_vm(())
    vm.mask = 7
    fates = set()
    for each in chunks.chunk(0, 256).cases:
        assert model.installs.install(model, vm, Install(each.filter)) == (done,)
        for access in map(chunks.access, each.keys):
            reason = model.accesses.reason(model, vm, vm.vcpu(0), access)
            assert reason is None or isinstance(reason, MsrExitReason)
            fails = reason is not None and access.reply.error != 0
            fates.add((reason, type(access), fails))
    assert fates == {
        (reason, kind, fails)
        for kind in (Rdmsr, Wrmsr)
        for reason, fails in itertools.product((None, FILTER, UNKNOWN), (False, True))
        if reason or not fails
    }


@pytest.mark.parametrize(
    ("access", "event"),
    [
        (READ, Returned(0x1122334455667788)),
        (READ, Returned(0, high=0x99)),
        (READ, gp),
        (READ, Fault(6, 3, skew=2, registers=(1, 2))),
        (WRITE, wrote),
        (WRITE, gp),
    ],
)
def test_an_outcome_is_read_as_it_is_packed(access, event):
    at = AT[access is WRITE]
    assert record.read_outcome(access, record.pack_outcome(access, event, at), AT) == event


@pytest.mark.parametrize(
    ("access", "event"),
    [
        (READ, RdmsrExit(READ.index, FILTER)),
        (READ, RdmsrExit(1, UNKNOWN, 2, 3, 4)),
        (WRITE, WrmsrExit(WRITE.index, FILTER, 2**64 - 2)),
    ],
)
@pytest.mark.parametrize("skew", [0, 2])
def test_an_exit_is_read_as_it_is_packed(access, event, skew):
    rcx, rax, rdx = record.operands(access)
    regs = Regs(skew, rax, rcx, rdx)
    before, after = record.pack_exit(event, regs, AT[access is WRITE])
    log = before + (1).to_bytes(4, "little") + after
    assert record.read_exits(log, [READ, access], AT) == {1: [event, *([regs] if skew else [])]}


def test_a_case_that_went_wrong_is_read_as_far_as_it_came():
    guest = Guest.load("access")
    image = record.STEP.pack(*record.step_words(READ, record.handlers(guest)))
    ends = {
        -4: "KVM_RUN: Interrupted system call",
        8: "exit reason 8",
        29: "more exits than accesses",
        2: "the step was skipped",
    }
    for ended, why in ends.items():
        case = record.SEEN.pack(-22, ended, 0, 0) + image[32:]
        assert record.read_case(case, [READ], guest) == [rejected(22), Lost(why)]


# --- with a kernel ----------------------------------------------------------------------------


@pytest.mark.parametrize("accesses", [1, 4, 16])
def test_the_kernel_does_what_the_model_says(has_kvm, accesses):
    from vmm.conformance.random.bulk import sweep

    result = sweep(accesses, cases=300, accesses=accesses)
    assert result.mismatch is None
    assert result.cases == 300
    assert 300 * accesses / 2 < result.exits < 300 * accesses
    assert len(result.gaps) > 250 and min(result.gaps) > 0
    again = sweep(accesses, cases=300, accesses=accesses)
    assert (again.cases, again.exits) == (result.cases, result.exits)


MISTAKES = {
    "the last range wins": (FilterRules, "in_order", lambda self, ranges: ranges[::-1]),
    "the end is inside": (
        FilterRules,
        "held",
        lambda self, range_: FilterRules.held(self, range_)._replace(
            end=range_.base + range_.nmsrs + 1, bits=FilterRules.held(self, range_).bits + bytes(8)
        ),
    ),
    "bits from the left": (
        FilterRules,
        "bit",
        lambda self, bits, offset: FilterRules.bit(self, bits, offset ^ 7),
    ),
    "deny is the default": (FilterRules, "default_allows", lambda self, flags: False),
    "no install succeeds": (FilterRules, "errors", lambda self, new: frozenset({22})),
    "no reply is an error": (ExitRules, "is_error", lambda self, reply: False),
    "only the low half": (ExitRules, "delivered", lambda self, reply: reply.value & 0xFFFFFFFF),
    "the whole of RCX": (
        ExitRules,
        "index",
        lambda self, access: access.index ^ access.rcx_high,
    ),
    "the next instruction": (
        ExitRules,
        "regs_at_exit",
        lambda self, access: Regs(2, *record_registers(access)),
    ),
    "a filtered MSR is unknown": (AccessRules, "denied", lambda self, model, access: UNKNOWN),
    "a write is forgotten": (
        AccessRules,
        "perform",
        lambda self, model, vcpu, access, reason: (
            wrote
            if isinstance(access, Wrmsr)
            else Returned(vcpu.msrs.get(access.index & 0xFFFFFFFF, 0))
        ),
    ),
}


def record_registers(access):
    rcx, rax, rdx = record.operands(access)
    return rax, rcx, rdx


def mistaken(part: type, rule: str, wrong: object) -> Model:
    model = Model()
    places = {FilterRules: "filters", ExitRules: "exits", AccessRules: "accesses"}
    setattr(model, places[part], type("Mistaken", (part,), {rule: wrong})())
    return model


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_prediction_is_noticed_and_its_script_stands_for_itself(has_kvm, mistake):
    from vmm.conformance.kernel.backend import KvmBackend
    from vmm.conformance.random.bulk import sweep

    result = sweep(9, cases=1000, model=mistaken(*MISTAKES[mistake]))
    found = result.mismatch
    assert found is not None, mistake
    assert 0 < result.cases <= 1000
    with KvmBackend() as backend:
        assert backend.run(found.script) == found.seen
    assert first_difference(found.script, Model().predict(found.script), found.seen) is None
    if mistake != "the next instruction":  # a trace has registers only where they are wrong
        assert first_difference(found.script, found.expected, found.seen) is not None


def test_a_script_of_a_mismatch_can_be_pasted(has_kvm):
    from vmm import filter as filters
    from vmm.conformance.language import script as words
    from vmm.conformance.random.bulk import sweep
    from vmm.msr import Msr

    found = sweep(9, cases=1000, model=mistaken(*MISTAKES["deny is the default"])).mismatch
    names = {**vars(filters), **vars(words), "Msr": Msr}
    names |= {each.name: each for each in MsrExitReason}
    names |= {"RdmsrExit": RdmsrExit, "WrmsrExit": WrmsrExit}
    names |= {"INVAL|UNKNOWN|FILTER": MsrExitReason(7)}
    for side in (found.script, found.expected, found.seen):
        assert tuple(eval(repr(each), names) for each in side) == side


def test_a_sweep_goes_on_ends_in_time_and_leaves_nothing_changed(has_kvm):
    from vmm.conformance.random.bulk import Sweep, sweep
    from vmm.kvm import Kvm

    interval = sys.getswitchinterval()
    with Kvm() as kvm, Sweep(kvm, 3) as going:
        assert [going.run(cases=130).cases for _ in range(3)] == [130] * 3
    assert sweep(4, seconds=0.05).cases > 0
    assert sys.getswitchinterval() == interval


def test_no_one_else_enters_the_vcpus_of_a_sweep(has_kvm, monkeypatch):
    from vmm.conformance.random.bulk import Sweep
    from vmm.errors import Busy
    from vmm.kvm import Kvm

    judge, refused = Sweep._judge, []

    def look(self, *call):
        for vm in self._vms:
            with pytest.raises(Busy):
                vm.program(0).vcpu.run()
            refused.append(vm)
        judge(self, *call)

    monkeypatch.setattr(Sweep, "_judge", look)
    with Kvm() as kvm, Sweep(kvm, 3) as going:
        assert going.run(cases=10).cases == 10
        assert refused == going._vms
        going._vms[0].program(0).vcpu.get_regs()


def test_a_sweep_without_an_end_or_with_impossible_cases_is_refused(has_kvm):
    from vmm.conformance.random.bulk import sweep

    with pytest.raises(ValueError, match="number of cases or seconds"):
        sweep(1)
    for accesses in (0, 1024):
        with pytest.raises(ValueError, match="1 to 1023"):
            sweep(1, cases=1, accesses=accesses)


def test_the_command_says_its_seed_and_what_differs(has_kvm):
    from vmm.conformance.kernel.backend import KvmBackend
    from vmm.conformance.random.bulk import run

    said: list[str] = []
    with KvmBackend() as backend:
        assert run(backend, 9, 300, said.append) == 0
        assert said[0] == "fuzzing with --bulk --seed 9 --examples 300"
        assert said[1].startswith("300 cases, ") and "predicted" in said[1]
        wrong = mistaken(*MISTAKES["deny is the default"])
        assert run(backend, 9, 1000, said.append, wrong) == 1
    assert "rerun:    msrward fuzz --bulk --seed 9 --examples 1000" in said[-1]
    assert "expected: " in said[-1] and "Case(" in said[-1]


@pytest.mark.parametrize(
    ("lacking", "told"),
    [
        ("no_ignore_msrs", "cannot fuzz: why not; load kvm with ignore_msrs=0"),
        ("upper_rcx", "cannot fuzz in bulk: why not; leave out --bulk"),
    ],
)
def test_the_command_tests_nothing_where_all_would_differ(lacking, told):
    from vmm.conformance.random.bulk import run

    class Lacking:
        def lacks(self, need: str) -> str | None:
            return "why not" if need == lacking else None

    said: list[str] = []
    assert run(Lacking(), 1, 1, said.append) == 4
    assert said == [told]
