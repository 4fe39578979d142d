"""--known: what an entry of the history explains is XFAIL, and nothing else is."""

from __future__ import annotations

import argparse

import pytest

from vmm.cli.options import known
from vmm.conformance.cases import CASES
from vmm.conformance.contract.history import HISTORY
from vmm.conformance.judge.recording import Options, case_record
from vmm.conformance.records.causes import explains
from vmm.conformance.records.verdict import Verdict

CASE = next(case for case in CASES if case.id == "fastpath.write_denied_by_range_no_apic_cpuid_on")
_WRITE = repr(CASE.actions[3])


def _verdict(seen: str, ids: tuple[str, ...], vendor: str = "kvm_intel") -> str:
    outcome = {
        "verdict": Verdict.FAIL,
        "trace": ["done", "done", "done", seen],
        "step": 4,
        "action": _WRITE,
        "expected": ["WrmsrExit(0x6e0, FILTER, 0x0)", "wrote"],
        "seen": [seen],
    }
    return str(case_record(CASE, outcome, 1.0, [], Options(known=ids, vendor=vendor))["verdict"])


def test_a_known_bug_is_xfail_and_no_other() -> None:
    assert _verdict("wrote", ("B12",)) == "XFAIL"
    assert _verdict("wrote", ()) == "FAIL"
    assert _verdict("wrote", ("B13",)) == "FAIL"
    assert _verdict("wrote", ("B13",), "kvm_amd") == "XFAIL"
    assert _verdict("gp", known("open")) == "FAIL"


@pytest.mark.parametrize(
    ("verdict", "splats", "xfail", "becomes"),
    [
        ("FAIL", False, True, "XFAIL"),
        ("PASS", False, True, "XPASS"),
        ("TIMEOUT", False, True, "TIMEOUT"),
        ("ERROR", False, True, "ERROR"),
        ("SKIP", False, True, "SKIP"),
        ("SKIP", True, False, "FAIL"),
        ("SKIP", True, True, "FAIL"),
        ("PASS", True, True, "FAIL"),
        ("FAIL", True, True, "FAIL"),
    ],
)
def test_xfail_excuses_a_difference_and_neither_a_hang_nor_a_splat(
    verdict: str, splats: bool, xfail: bool, becomes: str
) -> None:
    outcome = {"verdict": Verdict(verdict)}
    options = Options(xfail=(CASE.id,) if xfail else ())
    log = [["WARNING: CPU: 0 PID: 1"]] if splats else []
    assert case_record(CASE, outcome, 1.0, log, options)["verdict"] == becomes


def test_a_splat_is_no_known_bug() -> None:
    outcome = {"verdict": Verdict.FAIL, "step": 4, "action": _WRITE, "trace": []}
    outcome |= {"expected": ["WrmsrExit(0x6e0, FILTER, 0x0)", "wrote"], "seen": ["wrote"]}
    options = Options(known=("B12",), vendor="kvm_intel")
    assert case_record(CASE, dict(outcome), 1.0, [], options)["verdict"] == "XFAIL"
    assert case_record(CASE, dict(outcome), 1.0, [["BUG: x"]], options)["verdict"] == "FAIL"


def test_a_splat_is_no_known_bug_even_where_the_entry_explains_it() -> None:
    case = next(case for case in CASES if case.id == "l2.fields_under_everything")
    at = next(n for n, action in enumerate(case.actions) if repr(action).startswith("enter_l2("))
    outcome = {"verdict": Verdict.FAIL, "step": at + 1, "action": repr(case.actions[at])}
    outcome |= {"trace": [], "expected": ["entered"], "seen": ["entry_failed('state')"]}
    where = "arch/x86/kvm/vmx/nested.c:2638 nested_vmx_enter_non_root_mode+0xcd5/0x2360"
    splats = [[f"WARNING: CPU: 0 PID: 1340 at {where} [kvm_intel]"]]
    options = Options(known=("B06",), vendor="kvm_intel")
    record = case_record(case, dict(outcome), 1.0, splats, options)
    assert explains(record, {"vendor_module": "kvm_intel"}) == "B06"
    assert record["verdict"] == "FAIL"
    assert case_record(case, dict(outcome), 1.0, [], options)["verdict"] == "XFAIL"


def test_open_stands_for_all_that_no_kernel_has_a_fix_for() -> None:
    assert {"B12", "B13", "B20", "B34"} <= set(known("open"))
    assert "B03" not in known("open")
    assert known("B12,B13") == ("B12", "B13")


def test_an_unknown_id_is_refused_in_one_line() -> None:
    every = f"'B99' is neither 'open' nor one of B01 to {max(HISTORY)}"
    with pytest.raises(argparse.ArgumentTypeError, match=every):
        known("B12,B99")
