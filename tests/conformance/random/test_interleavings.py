"""Random races: what they are, what they find, and whether Model and kernel agree on them."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from random import Random
from typing import Any, get_args

import pytest
from interleaving import (
    CALLERS,
    A,
    has_a_meaning,
    interleavings,
    search,
    shrunk,
)
from mutant import Mutant
from mutants_calling import CALLING
from mutants_race import RACES
from mutants_resuming import RESUMING
from mutants_stalling import STALLING
from mutants_waiting import WAITING

from vmm import filter as filters
from vmm import msr
from vmm.conformance.language import script as s
from vmm.conformance.oracle.model import Model
from vmm.conformance.random.scripts import random_script

SEED = int(os.environ.get("MSRWARD_SEED", random.SystemRandom().randrange(1 << 32)))
EXAMPLES = int(os.environ.get("MSRWARD_EXAMPLES", 60))
EVERYBODY = (*CALLERS, "compat")
OFF = filters.default_allow()


def paste(script):
    """Return the script as Python that needs the names of ``script``, ``filter`` and ``msr``."""
    return "\n".join(["script = (", *[f"    {word!r}," for word in script], ")"])


ELSEWHERE = {
    "stall_in_the_last_slot_shows_what_is_built": "no filter here has 16 slots",
    "create_irqchip_waits_for_a_stall": "an irqchip would need a VM without vCPUs",
    "compat_number_for_all": "nobody here sends another's number",
    "compat_native_enotty": "nobody here sends another's number",
    "compat_filter_flags_not_judged": "the flags of filters here are good",
    "compat_last_slot_lost": "no filter here has 16 slots",
}
"""Mistakes that no interleaving can show, by the reason."""

SELDOM = {"installs_in_flight_merge", "overtaken_install_merges", "last_started_wins"} | {
    "first_reader_frees",
    "late_ranges_lost",
    "late_ranges_not_judged",
    "compat_size_not_judged",
}
"""Mistakes that need more scripts than a test has time for (``MSRWARD_LONG=1``)."""

LONG = os.environ.get("MSRWARD_LONG", "0") != "0"
SOUGHT = [
    each
    for each in (*STALLING, *RESUMING, *WAITING, *CALLING)
    if each.name not in ELSEWHERE and (LONG or each.name not in SELDOM)
]


def differs(script: s.Script, other: Callable[[s.Script], s.Trace]) -> bool:
    return s.first_difference(script, Model().predict(script), other(script)) is not None


@cache
def scripts() -> tuple[s.Script, ...]:
    """Return the same random scripts to every test of a session."""
    from hypothesis import HealthCheck, Phase, given, seed, settings

    drawn: list[s.Script] = []

    @seed(20210318)
    @settings(
        max_examples=4000 if LONG else 250,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(interleavings(EVERYBODY))
    def draw(script: s.Script) -> None:
        drawn.append(script)

    draw()
    return tuple(drawn)


# --- what is drawn --------------------------------------------------------------------------------


def test_every_word_of_a_script_has_a_meaning() -> None:
    for script in scripts():
        assert has_a_meaning(script), paste(script)


@pytest.mark.parametrize(
    "words",
    [
        (s.resume_install(),),
        (s.await_install(),),
        (s.release(1),),
        (s.park(1), s.park(1)),
        (s.park(1), s.rdmsr(A, vcpu=1)),
        (s.park(1), s.install(OFF)),
        (s.park(1), s.meanwhile(s.install(OFF)), s.create_vcpu(3)),
        (s.park(1), s.meanwhile(s.install(OFF)), s.meanwhile(s.install(OFF))),
        (s.park(1), s.begin_install(OFF), s.begin_install(OFF)),
        (s.begin_install(OFF.deny(A), 0), s.begin_install(OFF)),
    ],
)
def test_words_without_a_meaning_are_told(words: s.Script) -> None:
    assert has_a_meaning(words[:-1]) and not has_a_meaning(words)


def test_most_of_what_can_happen_happens() -> None:
    seen = Counter(type(event) for script in scripts() for event in Model().predict(script))
    words = Counter(type(word) for script in scripts() for word in script)
    events = (s.Stalled, s.Blocked, s.Parked, s.Released, s.Rejected, s.RdmsrExit, s.WrmsrExit)
    assert all(seen[event] > len(scripts()) / 10 for event in events), seen
    actions = (s.Install, s.BeginInstall, s.ResumeInstall, s.AwaitInstall, s.Meanwhile)
    assert all(words[word] > len(scripts()) / 10 for word in actions), words
    names = {word.name for script in scripts() for word in script if type(word) is s.BeginInstall}
    assert names == {"a", "b", "c"}


NEVER_DRAWN = {
    s.CheckExtension: "it says nothing of a filter",
    s.CreateIrqchip: "not every host has one",
    s.SetCpuid: "it makes no other difference to a filter than cases show",
    s.EnterL2: "not every host has nested virtualization",
    s.LeaveL2: "as EnterL2",
    s.SaveNested: "as EnterL2",
    s.RestoreNested: "as EnterL2",
    s.LeaveNested: "as EnterL2",
    s.FreshVm: "as EnterL2: what is saved goes on there",
    s.SetCpuidBits: "as SetCpuid",
    s.WeighBitmaps: "it says nothing of a filter, and has VMs of its own",
    s.SendInit: "not every host has an APIC in the kernel, and the vCPU is of no use afterwards",
    s.GetMpState: "as SendInit",
    s.SetMpState: "as SendInit",
    s.SendSipi: "as SendInit",
    s.Sleep: "as SendInit",
    s.Wake: "as SendInit",
    s.AwaitSipi: "as SendInit",
    s.XenHvmConfig: "not every host has CONFIG_KVM_XEN",
    s.GetHypercallPage: "as XenHvmConfig",
    s.SetRegs: "what a guest goes on with is then nobody's promise (R67)",
    s.Spin: "it obeys soon, not at once, and takes seconds to say never",
    s.UntilExits: "as Spin",
    s.UntilRuns: "as Spin",
    s.StopSpin: "as Spin",
    s.CloseVm: "it ends a script",
    s.CloseVcpu: "it ends a vCPU",
}
"""The words that are in no random script, and why."""


def test_every_action_is_drawn_or_is_said_not_to_be() -> None:
    below = Random(7).randrange
    drawn = {type(action) for _ in range(400) for action in random_script(below)}
    drawn |= {type(s.innermost(action)) for script in scripts() for action in script}
    drawn |= {type(action) for script in scripts() for action in script}
    assert drawn | NEVER_DRAWN.keys() == {*get_args(s.Action)}
    assert not drawn & NEVER_DRAWN.keys()


def test_the_filter_in_force_is_mostly_known() -> None:
    accesses = unsure = 0
    for script in scripts():
        for word, step in zip(script, s.steps(script, Model().predict(script)), strict=True):
            if isinstance(word, s.Rdmsr | s.Wrmsr):
                accesses += 1
                unsure += step == (s.whatever,)
    assert 0 < unsure < accesses / 5


def test_no_kernel_is_asked_for_a_caller_that_it_lacks() -> None:
    callers = {getattr(word, "caller", "self") for script in scripts() for word in script}
    assert callers == {"self", "child", "compat"}
    found = search(lambda script: "compat" in paste(script), seed=1, examples=60)
    assert found is None


# --- what is found --------------------------------------------------------------------------------


@pytest.mark.parametrize("mutant", SOUGHT, ids=lambda mutant: mutant.name)
def test_some_interleaving_shows_the_mistake(mutant: Mutant) -> None:
    model = mutant.model()
    assert any(differs(script, model.predict) for script in scripts()), mutant.mistake


def test_every_mistake_is_sought_or_said_to_be_elsewhere() -> None:
    names = {mutant.name for mutant in RACES}
    assert ELSEWHERE.keys() | SELDOM <= names
    assert not SELDOM & ELSEWHERE.keys()


def test_what_is_found_shrinks_to_what_shows_it() -> None:
    [mutant] = [each for each in STALLING if each.name == "stall_denies_all"]
    model = mutant.model()
    found = search(lambda script: differs(script, model.predict), seed=7)
    assert found is not None and differs(found, model.predict)
    *_, begin, access = found
    for at in range(len(found)):  # each word is needed
        fewer = found[:at] + found[at + 1 :]
        assert not (has_a_meaning(fewer) and differs(fewer, model.predict)), paste(fewer)
    assert isinstance(begin, s.BeginInstall) and len(begin.filter.ranges) == 1, paste(found)
    assert isinstance(access, s.Rdmsr | s.Wrmsr)


def test_a_shrunk_script_still_has_a_meaning() -> None:
    for mutant in (*RESUMING, *WAITING):
        disagrees = partial(differs, other=mutant.model().predict)
        for script in filter(disagrees, scripts()[:20]):
            found = shrunk(script, disagrees)
            assert has_a_meaning(found) and disagrees(found)
            assert len(found) < len(script) / 2, paste(found)


def test_the_same_seed_finds_the_same() -> None:
    def has_two_stalls(script: s.Script) -> bool:
        return Model().predict(script).count(s.stalled) > 1

    assert search(has_two_stalls, seed=3) == search(has_two_stalls, seed=3)


def test_what_disagrees_only_once_is_returned_as_it_was() -> None:
    told: list[s.Script] = []

    def moody(script: s.Script) -> bool:
        if told or s.parked not in Model().predict(script):
            return False
        told.append(script)
        return True

    assert search(moody, seed=5) == told[0]


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    assert search(lambda script: differs(script, Model().predict), seed=11, examples=30) is None


def test_a_script_that_is_printed_can_be_pasted() -> None:
    names = {**vars(s), **vars(filters), **vars(msr)}
    for script in scripts():
        scope: dict[str, Any] = dict(names)
        exec(paste(script), scope)
        assert scope["script"] == script


# --- the kernel -----------------------------------------------------------------------------------


@pytest.fixture
def backend(backend: Any) -> Any:
    for need in ("userfaultfd", "vcpus", "no_ignore_msrs"):
        if reason := backend.lacks(need):
            pytest.skip(reason)
    return backend


def test_the_model_and_the_kernel_agree(backend: Any) -> None:
    print(f"MSRWARD_SEED={SEED} MSRWARD_EXAMPLES={EXAMPLES}")
    callers = CALLERS if backend.lacks("compat") else EVERYBODY

    def kernel(script: s.Script) -> s.Trace:
        trace: s.Trace = backend.run(script, expected=Model().predict(script))
        return trace

    found = search(lambda script: differs(script, kernel), SEED, EXAMPLES, callers)
    if found:
        seen = backend.run(found)
        expected = Model().predict(found)
        number = s.first_difference(found, expected, seen)
        where = "not in this run" if number is None else f"at {found[number : number + 1]}"
        pytest.fail(
            f"Model and kernel disagree {where} (MSRWARD_SEED={SEED}):\n{paste(found)}\n"
            f"expected = {expected}\nseen = {seen}"
        )
