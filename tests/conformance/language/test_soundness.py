"""A script that goes on with what it never began is told before anything runs it."""

import pytest

from vmm.conformance.cases import CASES
from vmm.conformance.language import script as s
from vmm.conformance.language.soundness import first_unsound
from vmm.filter import default_allow

A, OFF = 0x474F4F00, default_allow()
STALL, BEGIN = s.begin_install(OFF.deny(A), 0), s.begin(s.rdmsr(A))

SOUND = [
    (s.rdmsr(A, mode="real"), s.enter_l2(), s.rdmsr(A), s.leave_l2(), s.rdmsr(A)),
    (s.enter_l2(), s.rdmsr(A, mode="real", vcpu=1)),
    (s.enter_l2(), s.save_nested(), s.fresh_vm(), s.restore_nested(), s.rdmsr(A)),
    (s.send_init(1), s.fresh_vm(), s.rdmsr(A, vcpu=1)),
    (s.install(OFF), s.fresh_vm(), s.scribble_bitmaps()),
    (s.leave_nested(), s.save_nested(), s.restore_nested(), s.restore_nested()),
    (s.enter_l2(), BEGIN, s.save_nested(), s.finish(), s.fresh_vm(), s.rdmsr(A, mode="real")),
    (BEGIN, s.get_regs(), s.complete(), s.finish(), s.rdmsr(A)),
    (BEGIN, s.rdmsr(A, vcpu=1)),
    (s.rewrite("sregs"), BEGIN, s.rewrite("sregs"), s.finish(), s.park(1), s.rewrite("fpu")),
    (s.park(1), s.rdmsr(A), s.release(1), s.rdmsr(A, vcpu=1)),
    (s.spin(s.rdmsr(A)), s.until_runs(0), s.until_exits(0), s.stop_spin(0), s.park(0)),
    (STALL, s.scribble_bitmaps(), s.resume_install(), s.await_install(), s.await_install()),
    (s.meanwhile(s.install(OFF)), s.scribble_bitmaps(), s.await_meanwhile()),
]
UNSOUND = [
    (s.enter_l2(), s.rdmsr(A, mode="real")),
    (s.enter_l2(), s.leave_l2(), s.rdmsr(A, mode="real")),
    (s.leave_l2(), s.rdmsr(A, mode="real")),
    (s.enter_l2(), s.begin(s.rdmsr(A, mode="user"))),
    (s.enter_l2(), s.execute("rsm", 1)),
    (BEGIN, s.leave_l2()),
    (s.restore_nested(),),
    (s.save_nested(), s.restore_nested(1)),
    (s.save_nested(), s.rdmsr(A, mode="real")),
    (s.leave_nested(), s.rdmsr(A, mode="real")),
    (s.begin(s.rdmsr(A, mode="real")), s.save_nested()),
    (s.park(0), s.save_nested()),
    *((busy, s.fresh_vm()) for busy in (BEGIN, STALL, s.park(1), s.spin(s.rdmsr(A)))),
    (s.meanwhile(s.install(OFF)), s.fresh_vm()),
    (BEGIN, s.rdmsr(A)),
    (BEGIN, s.finish(), s.finish()),
    (BEGIN, s.get_regs(1)),
    *((away, s.rewrite("fpu")) for away in (s.park(0), s.spin(s.rdmsr(A)), s.send_init(0))),
    (s.set_regs(),),
    (s.complete(),),
    (s.scribble_bitmaps(),),
    (s.park(1), s.rdmsr(A, vcpu=1)),
    (s.park(1), s.park(1)),
    (s.park(1), s.release(1), s.release(1)),
    (s.spin(s.rdmsr(A)), BEGIN),
    (s.spin(s.rdmsr(A)), s.until_runs(1)),
    (s.until_exits(0),),
    (s.stop_spin(0),),
    (s.resume_install(),),
    (STALL, s.resume_install("b")),
    (STALL, s.resume_install(), s.resume_install()),
    (s.begin_install(OFF), s.resume_install()),
    (s.await_install(),),
    (s.meanwhile(s.install(OFF)), s.await_meanwhile("x")),
]


@pytest.mark.parametrize("script", SOUND)
def test_what_was_begun_can_go_on(script):
    assert first_unsound(script) is None


@pytest.mark.parametrize("script", UNSOUND)
def test_the_action_that_has_nothing_to_go_on_with_is_named(script):
    assert first_unsound(script) == len(script) - 1


def test_every_case_is_sound():
    assert not [case.id for case in CASES if first_unsound(case.actions) is not None]


def test_a_loop_in_another_mode_is_refused_when_it_is_written():
    with pytest.raises(ValueError, match="no loop in mode 'real'"):
        s.spin(s.rdmsr(A, mode="real"))


@pytest.mark.parametrize(
    "access", [s.rdmsr(A), s.rdmsr(A, mode="user"), s.rdmsr(A, mode="smm", after="sti")]
)
def test_nothing_is_injected_where_no_handler_only_returns(access):
    assert first_unsound((s.begin(access), s.inject("nmi"))) == 1


def test_what_is_injected_goes_to_an_access_that_is_under_way():
    begin = s.begin(s.rdmsr(A, after="sti_nop"))
    assert first_unsound((begin, s.inject("nmi"), s.finish(), s.get_taken())) is None
    assert first_unsound((begin, s.finish(), s.inject("nmi"))) == 2
