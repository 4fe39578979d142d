"""A case whose MSR is refused here, filtered or not, is no pass: it says so, and is counted."""

from __future__ import annotations

import pytest

from vmm.conformance.cases import CASES
from vmm.conformance.judge.judging import judge
from vmm.conformance.kernel.backend import KvmBackend
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import (
    Returned,
    Spin,
    Wrote,
    gp,
    ran,
    rdmsr,
    returned,
    spin,
    spinning,
    unfiltered,
    until_runs,
    wrmsr,
    wrote,
)
from vmm.conformance.records.summary import count, end_record
from vmm.exits import RdmsrExit
from vmm.msr import UNKNOWN, Msr

XFD, MADE_UP = Msr.IA32_XFD, 0x474F4F00


class Host:
    """A backend that leaves for each MSR what it is told to."""

    def __init__(self, **leaves):
        self.leaves = leaves

    def run(self, script, *, expected=None):
        events = []
        for action in script:
            if isinstance(action, Spin):
                events.append(spinning)
            elif hasattr(action, "index"):
                events += self.leaves["write" if hasattr(action, "value") else "read"]
            else:
                events.append(ran)
        return tuple(events)

    def lacks(self, need):
        return None


def through(*accesses, checks="R72"):
    return Case("t.a", "S.", checks, accesses, [unfiltered] * len(accesses))


@pytest.mark.parametrize("left", [[gp], [RdmsrExit(XFD, UNKNOWN), returned(7)]])
def test_a_pass_of_an_msr_that_is_refused_is_a_skip_that_names_it(left):
    record = judge(through(rdmsr(XFD), rdmsr(XFD)), Host(read=left))
    assert (record["verdict"], record["need"]) == ("SKIP", "msr:IA32_XFD")
    assert record["reason"].startswith("refused here: ")


def test_one_access_that_is_let_through_is_a_point():
    case = through(rdmsr(XFD), wrmsr(XFD, 0))
    assert judge(case, Host(read=[gp], write=[wrote]))["verdict"] == "PASS"
    assert judge(case, Host(read=[gp], write=[gp]))["verdict"] == "SKIP"


def test_a_failure_stays_one():
    case = Case("t.a", "S.", "R72", [rdmsr(XFD), rdmsr(XFD)], [unfiltered, returned(1)])
    assert judge(case, Host(read=[gp]))["verdict"] == "FAIL"


@pytest.mark.parametrize(("left", "verdict"), [([gp], "SKIP"), ([returned(0)], "PASS")])
def test_of_a_loop_an_access_without_a_filter_tells(left, verdict):
    case = Case("t.a", "S.", "R72", [spin(rdmsr(XFD, vcpu=1)), until_runs(1)], [spinning, ran])
    assert judge(case, Host(read=left))["verdict"] == verdict


def test_msrs_that_are_nobodys_and_cases_on_other_promises_are_not_asked():
    assert judge(through(rdmsr(MADE_UP)), Host(read=[gp]))["verdict"] == "PASS"
    assert judge(through(rdmsr(XFD), checks="R23"), Host(read=[gp]))["verdict"] == "PASS"


def test_they_are_counted_apart_and_are_no_test():
    outcome = judge(through(rdmsr(XFD)), Host(read=[gp]))
    record = {"id": "t.a", "requirements": ["R72"], **outcome}
    assert count([record]) == {"refused": 1}
    assert end_record([record], 1.0)["status"] == 4


@pytest.mark.usefixtures("has_kvm")
@pytest.mark.parametrize("way", ["read", "write"])
def test_on_this_host_it_is_what_the_same_access_without_a_filter_says(way):
    with KvmBackend() as backend:
        found = {}
        for case in (each for each in CASES if each.id.startswith(f"passthrough.{way}_")):
            record = judge(case, backend)
            (access,) = {a for a in case.actions if getattr(a, "index", MADE_UP) >> 16 != 0x474F}
            passed = isinstance(backend.run((access,))[-1], Returned | Wrote)
            found[case.id] = (record["verdict"], "PASS" if passed else "SKIP")
    assert all(verdict == wanted for verdict, wanted in found.values()), found
    assert {verdict for verdict, _ in found.values()} >= {"PASS"}
