"""The sampled race and its judge: what is possible passes, what is impossible is caught."""

import signal

import pytest

from vmm.conformance.host import parameters
from vmm.conformance.language.script import (
    Rdmsr,
    Wrmsr,
    enable_exits,
    gp,
    rdmsr,
    returned,
    unfiltered,
    whatever,
    wrote,
)
from vmm.conformance.oracle.filters import FilterRules
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.msrs import STORABLE
from vmm.conformance.stress import stress as racing
from vmm.conformance.stress.plan import (
    COMPLETED,
    FAULTED,
    FILTERED,
    REPLY,
    STORED,
    STRANGE,
    UNFILTERED,
    groups,
    plan,
    possible,
)
from vmm.exits import RdmsrExit
from vmm.msr import FILTER, UNKNOWN, Msr

A = 0x474F4F00


@pytest.fixture
def stress(has_kvm):
    from vmm.conformance.stress import stress

    return stress


# --- the plan ---------------------------------------------------------------------------------


def test_a_plan_follows_from_its_seed():
    assert plan(7) == plan(7)
    assert plan(7).filters != plan(8).filters


@pytest.mark.parametrize("seed", range(20))
def test_every_plan_has_alike_and_different_msrs_and_filters_that_fail(seed):
    drawn = plan(seed)
    alike = [drawn.is_alike(each) for each in drawn.accesses]
    assert 0.1 < sum(alike) / len(alike) < 0.9
    assert {each.flags for each in drawn.filters} == {0, 1}
    assert {errno for _, errno in drawn.refused} == {14, 22}
    assert not any(Model().filters.errors(each) for each in drawn.filters)
    assert set(drawn.schedule) == set(range(len(drawn.filters) + len(drawn.refused)))
    assert max(groups(drawn.accesses).values()) < 32
    outcomes = {frozenset(some) for each in drawn.table.values() for some in each}
    assert frozenset({FILTERED}) in outcomes and frozenset({COMPLETED}) in outcomes


def test_what_events_mean():
    assert possible((RdmsrExit(A, FILTER), returned(1))) == {FILTERED}
    assert possible((gp,)) == {FAULTED}
    assert possible((returned(5),)) == possible((wrote,)) == {COMPLETED}
    assert possible((unfiltered,)) == UNFILTERED
    assert possible((whatever,)) == set(range(STRANGE))


def test_only_what_no_hardware_bitmap_answers_shares_an_order():
    accesses = Rdmsr(A), Wrmsr(A + 1, 0), Rdmsr(Msr.STAR), Wrmsr(Msr.STAR, 0), Rdmsr(Msr.LSTAR)
    found = groups(accesses)
    assert [found[each] for each in accesses] == [0, 0, 1, 2, 3]


# --- the judge, fed with synthetic logs -------------------------------------------------------

DENIES, ALLOWS, ALIKE = 0, 1, 2
KNOWN = 3
"""Steps: 0 and 1 tell filter 0 from 1; 2 is alike in both; 3 tells them apart in group 1."""


class Log:
    """One vCPU of a VM with two installers, and a history that a test writes tick by tick."""

    def __init__(self):
        from vmm._native import ffi, lib

        self.lib = lib
        self.rings = ffi.new("struct mw_ring[]", 2)
        self.vm = ffi.new("struct mw_race_vm *", {"rings": self.rings, "n_rings": 2})
        self.steps = ffi.new("struct mw_step[]", 4)
        for step, exit_, done, group in (
            (0, 0b01, 0b10, 0),
            (1, 0b10, 0b01, 0),
            (ALIKE, 0b11, 0, 0),
            (KNOWN, 0b01, 0b10, 1),
        ):
            self.steps[step].group = group
            self.steps[step].permits[lib.MW_FILTER] = exit_
            self.steps[step].permits[lib.MW_DONE] = done
        self.racers = [self.racer() for _ in range(2)]

    def racer(self):
        from vmm._native import ffi

        return ffi.new("struct mw_racer *", {"vm": self.vm, "steps": self.steps, "n_steps": 4})

    def begin(self, filter_, ring=0):
        self.vm.clock += 1
        slot = self.rings[ring].installs[self.rings[ring].begun % self.lib.MW_RING]
        slot.started, slot.returned, slot.filter = self.vm.clock, 0, filter_
        self.rings[ring].begun += 1
        return slot

    def end(self, slot):
        self.vm.clock += 1
        slot.returned = self.vm.clock
        self.vm.replaced = max(self.vm.replaced, slot.started)

    def install(self, filter_, ring=0):
        self.end(self.begin(filter_, ring))

    def enter(self, racer=0):
        self.lib.mw_open_window(self.racers[racer])

    def leave(self, racer=0):
        self.lib.mw_close_window(self.racers[racer])
        self.vm.seen = max(self.vm.seen, self.racers[racer].cutoffs[0])

    def saw(self, step, filter_, racer=0):
        """Judge ``step`` as if it had ended as under ``filter_``; True when that is possible."""
        exits = self.steps[step].permits[self.lib.MW_FILTER] >> filter_ & 1
        outcome = self.lib.MW_FILTER if exits else self.lib.MW_DONE
        possible = not self.lib.mw_judge(self.racers[racer], step, outcome)
        self.vm.seen = max(self.vm.seen, self.racers[racer].cutoffs[0])
        return possible


@pytest.fixture
def log():
    log = Log()
    log.install(0)
    return log


def test_the_filter_in_force_is_the_only_one_possible(log):
    log.enter()
    log.leave()
    assert log.saw(0, 0) and log.saw(KNOWN, 0) and not log.saw(0, 1)
    assert log.racers[0].is_impossible and log.racers[0].step == 0


def test_while_an_install_runs_both_are_possible_but_not_back_again(log):
    slot = log.begin(1)
    log.enter()
    log.leave()
    assert log.saw(0, 0) and log.saw(1, 0) and log.saw(0, 1) and log.saw(1, 1)
    assert not log.saw(0, 0), "the new filter and then the old one"
    log.end(slot)


def test_an_install_that_returns_or_starts_during_the_entry_is_possible(log):
    slot = log.begin(1)
    log.enter()
    log.end(slot)
    log.leave()
    assert log.saw(0, 0) and log.saw(0, 1)
    log.enter()
    log.begin(0)
    log.leave()
    assert log.saw(0, 1) and log.saw(0, 0)


def test_once_an_install_returned_the_next_entry_obeys_it(log):
    log.install(1)
    log.enter()
    log.leave()
    assert not log.saw(0, 0)
    assert not log.saw(KNOWN, 0), "nor in a hardware bitmap (R72)"


def test_an_install_started_after_the_entry_is_not_possible(log):
    log.enter()
    log.leave()
    log.begin(1)
    assert not log.saw(0, 1)


def in_the_future(log, count):
    """Begin installs that start only once the vCPU has left, but before the judge looks."""
    for _ in range(count):
        log.begin(1).started += 1000


def test_an_install_that_starts_while_the_judge_looks_is_not_possible(log):
    log.enter()
    in_the_future(log, 1)
    log.leave()
    assert log.saw(0, 0) and not log.saw(0, 1)


def test_a_log_overwritten_while_the_judge_looks_is_too_long(log):
    log.enter()
    in_the_future(log, 300)
    log.leave()
    assert log.racers[0].window.loose and log.saw(0, 0)


def test_two_installers_may_be_published_in_either_order(log):
    first, second = log.begin(1, 0), log.begin(0, 1)
    log.end(first)
    log.end(second)
    for seen in (0, 1):
        log.enter(seen)
        log.leave(seen)
    assert log.saw(KNOWN, 1, racer=0) and log.saw(KNOWN, 0, racer=1)


def test_installers_one_after_the_other_are_in_that_order(log):
    log.install(1, 0)
    log.install(0, 1)
    log.enter()
    log.leave()
    assert not log.saw(0, 1)


def test_what_one_vcpu_saw_no_other_sees_undone(log):
    log.begin(1)
    log.enter(0)
    log.leave(0)
    assert log.saw(0, 1, racer=0)
    log.enter(1)
    log.leave(1)
    assert log.saw(KNOWN, 0, racer=1), "a hardware bitmap may be older"
    assert not log.saw(0, 0, racer=1)


def test_alike_in_all_filters_never_changes_even_where_no_window_is_known(log):
    for _ in range(300):
        log.install(1)
    slot = log.begin(0)
    log.enter()
    for _ in range(300):
        log.end(slot)
        slot = log.begin(0)
    log.leave()
    assert log.racers[0].window.loose
    assert log.saw(0, 0) and log.saw(0, 1), "too long to judge closely"
    assert not log.lib.mw_judge(log.racers[0], ALIKE, log.lib.MW_FILTER)
    assert log.lib.mw_judge(log.racers[0], ALIKE, log.lib.MW_DONE)


# --- on this kernel ---------------------------------------------------------------------------


@pytest.mark.parametrize(("vcpus", "installers", "seed"), [(2, 2, 1), (1, 1, 2), (3, 3, 3)])
def test_this_kernel_holds(stress, nothing_left, vcpus, installers, seed):
    told = []
    result = stress.run(0.6, vcpus, installers, seed, told.append)
    assert result.conforms, stress.render(result)
    assert result.progress.swaps > 5 and result.progress.refused > 0
    assert result.progress.observations > 500 and told[0].observations > 0
    assert result.loose < result.entries / 10
    again = ["--seed", seed, "--vcpus", vcpus, "--installers", installers]
    assert stress.words_of(result) == [*map(str, again)] and "swaps/s" in told[0].line()


class BlindToSlotTwo(FilterRules):
    """A mutant: sees only the first range of a filter."""

    def in_order(self, ranges):
        return ranges[:1]


class Mutant(Model):
    filters = BlindToSlotTwo()


def test_an_outcome_that_no_filter_permits_stops_the_run_and_is_shown(stress, nothing_left):
    result = stress.run(20, 2, 2, seed=5, model=Mutant())
    assert not result.conforms and result.progress.seconds < 5
    text = stress.render(result)
    found = result.violation
    assert f"vCPU {found.vcpu} of VM {found.vm}" in text and "installer" in text
    assert found.outcome not in found.permitted[found.in_flight[-1].filter]
    assert stress.words_of(result)[:2] == ["--seed", "5"]


def planted(change):
    """Return ``Arena`` with one more thing wrong in it."""
    from vmm.conformance.stress.arena import Arena

    class Planted(Arena):
        def start(self):
            change(self)
            return super().start()

    return Planted


def test_a_filter_that_is_not_the_submitted_one_is_seen(stress, monkeypatch, nothing_left):
    def swap_two_filters(arena):
        first, second = arena._choices[0], arena._choices[1]
        first.address, second.address = second.address, first.address

    monkeypatch.setattr(stress, "Arena", planted(swap_two_filters))
    result = stress.run(20, 1, 1, seed=6)
    assert not result.conforms and result.progress.seconds < 5


def test_a_refusal_that_does_not_come_is_seen(stress, monkeypatch, nothing_left):
    def expect_another(arena):
        for each in arena._choices:
            each.expected = -1 if each.expected else 0

    monkeypatch.setattr(stress, "Arena", planted(expect_another))
    result = stress.run(20, 1, 1, seed=6)
    assert "expected EPERM" in result.violation.text


def test_a_stale_filter_after_an_install_returned_is_seen(stress, monkeypatch, nothing_left):
    """The kernel is not at fault here, the log is: it says of a swap that never was that it was."""
    from vmm._native import lib

    def forget_to_install(arena):
        race = arena._races[0]
        ring, race.clock = race.rings[0], race.clock + 2
        slot = ring.installs[ring.begun % lib.MW_RING]
        slot.started, slot.returned, slot.filter = race.clock - 1, race.clock, 1
        ring.begun += 1
        race.replaced = slot.started
        for each in arena._installers:
            each.limit = 0

    monkeypatch.setattr(stress, "Arena", planted(forget_to_install))
    assert not stress.run(20, 1, 1, seed=6).conforms


def test_a_guest_that_dies_is_a_mishap(stress, monkeypatch, nothing_left):
    def take_the_idt(arena):
        vcpu = arena.vms[0].vcpus[0]
        sregs = vcpu.get_sregs()
        sregs.idt.limit = 0
        vcpu.set_sregs(sregs)

    monkeypatch.setattr(stress, "Arena", planted(take_the_idt))
    seed = next(each for each in range(99) if plan(each).mask == FILTER)
    result = stress.run(20, 1, 1, seed=seed)
    assert "in the middle of a batch" in result.violation.text


def test_ctrl_c_leaves_nothing(stress, nothing_left):
    def interrupt(_):
        signal.raise_signal(signal.SIGINT)

    result = stress.run(1000, 2, 2, 1, interrupt)
    assert result.interrupted and result.violation is None
    assert "interrupted: " in stress.render(result)


def test_a_thread_that_hangs_in_the_kernel_is_kicked_out(stress, monkeypatch, nothing_left):
    """The guest loops for good: only a kick ends KVM_RUN."""
    from vmm.conformance.stress import arena as stress_arena

    def loop(arena):
        memory = arena.vms[0].memories[0]
        from vmm.guest import Guest

        memory.write(Guest.load("stress").symbols["op_done"], b"\xeb\xfe")

    monkeypatch.setattr(stress, "Arena", planted(loop))
    monkeypatch.setattr(stress_arena, "GRACE", 0.3)
    result = stress.run(0.2, 1, 1, seed=6)
    assert "had to be kicked" in result.violation.text


@pytest.mark.parametrize(
    "wrong", [{"seconds": 0}, {"seconds": -1}, {"vcpus": 99}, {"vcpus": -1}, {"installers": 0}]
)
def test_counts_that_cannot_be(stress, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        stress.run(**{"seconds": 1, **wrong})


def test_every_msr_that_the_host_fills_holds_the_reply_on_every_cpu():
    assert set(STORED) == set(STORABLE)
    assert all(fits(REPLY) for fits in STORABLE.values())


@pytest.mark.parametrize(("told", "unknown_read"), [("N", {"UNKNOWN"}), ("Y", {"completed"})])
def test_a_stress_is_told_what_the_host_does_with_unknown_msrs(
    told, unknown_read, tmp_path, monkeypatch
):
    (tmp_path / "ignore_msrs").write_text(f"{told}\n")
    monkeypatch.setattr(parameters, "IGNORE_MSRS", tmp_path / "ignore_msrs")

    class Drawn(Exception):
        pass

    def drawn(seed, *, model):
        (_, seen, *_) = model.predict((enable_exits(UNKNOWN), rdmsr(0x474F4F00)))
        raise Drawn("UNKNOWN" if isinstance(seen, RdmsrExit) else "completed")

    monkeypatch.setattr(racing, "plan", drawn)
    with pytest.raises(Drawn) as found:
        racing.run(1.0, 1, 1, 7)
    assert {str(found.value)} == unknown_read
