"""A saved case that expects what the contract does not: told to who wrote it, not to the kernel."""

from dataclasses import replace
from errno import EINVAL

import pytest

from vmm.conformance.judge.judging import judge
from vmm.conformance.language.case import OBSERVE, Case
from vmm.conformance.language.script import (
    Lost,
    RdmsrExit,
    done,
    enable_exits,
    gp,
    install,
    rdmsr,
    rejected,
    returned,
    whatever,
)
from vmm.conformance.oracle.model import Model
from vmm.conformance.records.verdict import Verdict
from vmm.filter import READ, WRITE, MsrFilter, MsrRange, default_allow, default_deny
from vmm.msr import FILTER, Msr

A = Msr.KERNEL_GS_BASE
DENIED = (RdmsrExit(A, FILTER), returned(0xC0FFEE))
ALLOWED = (returned(0),)


class Kernel:
    """Stands for one that answers with a trace."""

    def __init__(self, trace):
        self.trace = trace

    def run(self, script, *, expected=None):
        return self.trace

    def lacks(self, need):
        return None

    def close(self):
        pass


def good(script):
    """What a kernel that keeps the contract leaves, where the contract says it exactly."""
    return Model().predict(tuple(script))


def case(script, trace, file="x.json"):
    return Case("my.case", "", "", tuple(script), trace, file=file)


def filtered(filter_, access, *, mask=True):
    return [*([enable_exits(FILTER)] if mask else []), install(filter_), access]


INVERTED = default_allow().range(A, 8, b"\x01")
X2APIC = default_allow().deny(0x808)


@pytest.mark.parametrize(
    ("script", "wrong", "names"),
    [
        (filtered(INVERTED, rdmsr(A + 1)), [done, done, returned(0)], "R19"),
        (filtered(X2APIC, rdmsr(0x808)), [done, done, *DENIED], "R30"),
        (filtered(default_deny(), rdmsr(A)), [done, done, *DENIED], "R12"),
        (filtered(default_allow().slot(MsrRange(0, A, 1, b"\0")), rdmsr(A)), [done, done], "R08"),
        (filtered(default_allow().slot(MsrRange(4, A, 1, b"\0")), rdmsr(A)), [done, done], "R07"),
        (filtered(default_allow().range(A, 0x3001, bytes(0x601)), rdmsr(A)), [done, done], "R09"),
        (filtered(MsrFilter(2), rdmsr(A)), [done, done], "R06"),
        (filtered(default_allow().deny(A), rdmsr(A), mask=False), [done, *DENIED], "R50"),
        (filtered(default_deny().allow(A + 1), rdmsr(A)), [done, done, *ALLOWED], "R18"),
        (filtered(default_allow().deny(A, access=WRITE), rdmsr(A)), [done, done, *DENIED], "R17"),
        ([enable_exits(1 << 30)], [done], "R43"),
        (filtered(default_allow(), rdmsr(A)), [done, rejected(EINVAL), *ALLOWED], "R16"),
        ([rdmsr(A, mode="user")], [returned(0)], "R59"),
    ],
)
def test_who_wrote_it_hears_which_requirement_says_so(script, wrong, names):
    seen = good(script)
    assert whatever not in seen
    outcome = judge(case(script, wrong), Kernel(seen))
    assert outcome["verdict"] is Verdict.ERROR
    assert "the expectation is wrong, not the kernel: at step " in outcome["error"]
    assert f"; {names}: " in outcome["error"]
    ours = judge(replace(case(script, wrong), file=""), Kernel(seen))
    assert ours["verdict"] is Verdict.FAIL, "the catalogue is held against the Model elsewhere"


def test_what_reaches_the_end_of_all_indices_is_left_to_the_kernel():
    script = filtered(
        default_allow().slot(MsrRange(READ, 0xFFFF_FFFF, 1, b"\0")), rdmsr(-1 % 2**32)
    )
    outcome = judge(
        case(script, [done, done, RdmsrExit(2**32 - 1, FILTER), gp]), Kernel((done, done, gp))
    )
    assert outcome["verdict"] is Verdict.ERROR and "; R25: " in outcome["error"]


def test_a_kernel_that_is_wrong_is_told_so():
    script = filtered(default_allow().deny(A), rdmsr(A))
    right, wrong = [done, done, *DENIED], (done, done, *ALLOWED)
    assert judge(case(script, good(script)), Kernel(wrong))["verdict"] is Verdict.FAIL
    # the case is wrong as well, and the kernel all the same
    assert judge(case(script, [done]), Kernel(wrong))["verdict"] is Verdict.FAIL
    assert right


@pytest.mark.parametrize("trace", [OBSERVE, (done, Lost("shutdown"))])
def test_a_guest_that_dies_is_no_pass(trace):
    for file in ("", "x.json"):
        dying = case([enable_exits(FILTER), rdmsr(A)], trace, file)
        outcome = judge(dying, Kernel((done, Lost("shutdown"))))
        assert outcome["verdict"] is Verdict.ERROR and "the guest died" in outcome["error"]
