"""What the host saves of a vCPU that nobody knows the level of is nothing that anybody knows."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm.conformance.language import script as s
from vmm.conformance.language.soundness import is_sound
from vmm.conformance.oracle.model import Model
from vmm.conformance.random.levels import Standing
from vmm.msr import Msr

# Nobody promises that IA32_TSC holds what a list loads into it: the entry may go either way.
LOST = s.enter_l2(entry_load=(s.listed(Msr.IA32_TSC, 1),))
ENTER, LEAVE, FRESH = s.enter_l2(), s.leave_l2(), s.fresh_vm()
SAVE, BACK, OUT = s.save_nested(), s.restore_nested(), s.leave_nested()
UNKNOWN = (s.whatever,)


@pytest.mark.parametrize(
    ("script", "trace"),
    [
        ((LOST, SAVE, FRESH, BACK, LEAVE), (*UNKNOWN * 2, s.done, *UNKNOWN * 2)),
        ((SAVE, LOST, SAVE, FRESH, BACK, LEAVE), (s.got(0), *UNKNOWN * 2, s.done, *UNKNOWN * 2)),
        (
            (LOST, SAVE, FRESH, ENTER, SAVE, BACK, LEAVE),
            (*UNKNOWN * 2, s.done, s.entered, s.got(1), s.done, s.l1_exit("hypercall")),
        ),
        (
            (ENTER, SAVE, LOST, FRESH, BACK),
            (s.entered, s.got(1), s.l1_exit("entry"), s.done, s.done),
        ),
    ],
)
def test_what_was_saved_where_nobody_knew_the_level_is_not_known(
    script: s.Script, trace: s.Trace
) -> None:
    assert is_sound(script)
    assert Model().predict(script) == trace


def test_nothing_drawn_restores_what_nobody_knows() -> None:
    standing = Standing("svm")
    for action in (SAVE, LOST, SAVE, FRESH):
        standing.note(action)
    assert not standing.is_saved(0)


_MOVES = st.sampled_from(
    (
        *(LOST, ENTER, LEAVE, FRESH, SAVE, BACK, OUT),
        *(s.save_nested(1), s.restore_nested(1), s.enter_l2(vcpu=1), s.close_vcpu(1)),
        *(s.rdmsr(Msr.STAR), s.begin(s.rdmsr(1)), s.complete(s.Reply(1)), s.finish(), s.park(1)),
        *(s.release(1), s.enable_exits(7), s.rdmsr(1, mode="real"), s.rdmsr(Msr.IA32_TSC)),
    )
)


@settings(max_examples=500, deadline=None)
@given(st.lists(_MOVES, max_size=14).map(tuple))
def test_every_way_between_the_levels_has_a_prediction(script: s.Script) -> None:
    assert len(s.steps(script, Model().predict(script))) == len(script)


def test_where_the_host_plays_xen_a_call_of_l1_is_its_own() -> None:
    """A VMCALL or VMMCALL is KVM_EXIT_XEN then; that of L2 is L1's all the same."""
    plays, is_not = s.xen_hvm_config(0x474F4F00, flags=s.XEN_INTERCEPT), s.xen_hvm_config(0)
    assert Model().predict([is_not, LEAVE]) == (s.done, s.done)
    assert Model().predict([plays, LEAVE]) == (s.done, s.whatever)
    calls = Model().predict([plays, ENTER, LEAVE])
    assert calls[-1] == s.l1_exit("hypercall")
