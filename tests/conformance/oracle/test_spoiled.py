"""Which cases ignore_msrs=1 spoils is asked of the Model, and it spoils no case that holds."""

from __future__ import annotations

import pytest

from vmm.conformance.cases import CASES
from vmm.conformance.language.case import OBSERVE, Case
from vmm.conformance.language.script import (
    ANY,
    Event,
    done,
    enable_exits,
    get_msr,
    gp,
    install,
    rdmsr,
    refused,
    returned,
    unfiltered,
    whatever,
    wrmsr,
    wrote,
)
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.spoiled import is_spoiled, model_of
from vmm.exits import RdmsrExit
from vmm.filter import default_allow
from vmm.msr import FILTER, UNKNOWN, Msr

X, DENIED = 0x5000_0000, default_allow().deny(0x5000_0000)


def case(script, trace, needs=()):
    return Case("x.y", "X.", "R56", script, trace, needs)


@pytest.mark.parametrize(
    ("script", "trace", "spoiled"),
    [
        ([rdmsr(X)], [gp], True),
        ([rdmsr(X)], [unfiltered], False),
        ([rdmsr(X)], [returned(0)], False),
        ([rdmsr(X)], [returned(1)], True),
        ([enable_exits(UNKNOWN), rdmsr(X)], [done, RdmsrExit(X, UNKNOWN), returned(1)], True),
        ([enable_exits(FILTER), install(DENIED), rdmsr(X)], [done, done, gp], True),
        ([install(DENIED), rdmsr(X)], [done, gp], False),
        ([wrmsr(Msr.STAR, 1), rdmsr(Msr.STAR)], [wrote, returned(1)], False),
        ([rdmsr(Msr.IA32_TSC)], [returned(ANY)], False),
        ([get_msr(X)], [refused], False),
        ([rdmsr(X)], OBSERVE, True),
        ([install(DENIED), rdmsr(X)], OBSERVE, False),
    ],
)
def test_a_case_is_spoiled_if_it_expects_what_no_ignoring_kernel_shows(script, trace, spoiled):
    assert is_spoiled(case(script, trace)) is spoiled


def test_the_cases_that_need_it_are_not_spoiled_and_would_be_without():
    needing = [each for each in CASES if "ignore_msrs" in each.needs]
    assert len(needing) > 15
    for each in needing:
        assert not is_spoiled(each), each.id
        assert each.expected != Model().predict(each.actions), each.id


def test_much_of_the_catalogue_is_left():
    some = [each for each in CASES if not each.thorough and "ignore_msrs" not in each.needs]
    left = [each for each in some if not is_spoiled(each)]
    themes = {each.id.partition(".")[0] for each in left}
    assert len(left) > 400
    assert {"masks", "passthrough", "fastpath", "scope", "running"} <= themes


def test_what_the_host_sees_of_unknown_msrs_is_left_open() -> None:
    told: list[Event] = list(Model(ignore_msrs=True).predict((get_msr(X),)))
    assert told == [whatever]
    assert model_of(case([rdmsr(X)], [gp], ("ignore_msrs",))).ignore_msrs
