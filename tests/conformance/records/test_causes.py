"""Failures by cause: what is new first, then open bugs, then fixes that the kernel lacks."""

from __future__ import annotations

from typing import Any

from vmm.conformance.records.causes import causes, explains

VMX = {"vendor_module": "kvm_intel"}
_WRITE = "wrmsr(Msr.IA32_TSC_DEADLINE, 0x0)"
_EXIT = "WrmsrExit(Msr.IA32_TSC_DEADLINE, FILTER, 0x0)"


def _case(action: str, expected: list[str], seen: list[str], **more: Any) -> dict[str, Any]:
    return {
        "id": f"some.{len(action)}",
        "verdict": "FAIL",
        "script": [action],
        "trace": seen,
        "step": 1,
        "action": action,
        "expected": expected,
        "seen": seen,
        **more,
    }


OPEN = _case(_WRITE, [_EXIT, "wrote"], ["wrote"])
LACKS = _case("install_compat(default_allow())", ["done"], ["rejected(ENOTTY)"])
NEWS = _case("rdmsr(0x10)", ["RdmsrExit(0x10, FILTER)", "gp"], ["returned(0x1)"])
PASSES = {"id": "some.case", "verdict": "PASS"}


def test_news_come_first_then_open_bugs_then_lacking_fixes() -> None:
    found = causes([LACKS, PASSES, OPEN, NEWS, OPEN], VMX)
    assert [(cause.entry, cause.state, len(cause.cases)) for cause in found] == [
        ("", "news", 1),
        ("B12", "open", 2),
        ("B09", "fixed in 6.1, lacking here", 1),
    ]


def test_a_second_difference_is_not_explained_by_the_first() -> None:
    second = {"step": 2, "action": "rdmsr(0x10)", "expected": NEWS["expected"]}
    assert explains({**OPEN, "also": [{**second, "seen": ["returned(0x1)"]}]}, VMX) == ""
    again = {"step": 2, "action": _WRITE, "expected": [_EXIT, "gp"], "seen": ["wrote"]}
    assert explains({**OPEN, "also": [again]}, VMX) == "B12"


def test_what_goes_on_with_the_same_access_is_the_same_difference() -> None:
    begun = _case(f"begin({_WRITE})", [_EXIT], ["wrote"])
    finish = {"step": 2, "action": "finish(Reply(0))", "expected": ["wrote"], "seen": ["gp"]}
    assert explains({**begun, "also": [finish]}, VMX) == "B12"


_FIELDS = _case("enter_l2(fields=True)", ["entered"], ["entry_failed('state')"])
_CUT = "------------[ cut here ]------------"


def _warning(function: str) -> list[str]:
    where = f"arch/x86/kvm/vmx/nested.c:2638 {function}+0xcd5/0x2360 [kvm_intel]"
    return [_CUT, "", f"WARNING: CPU: 0 PID: 1340 at {where}", "", "Modules linked in:"]


def test_a_warning_is_explained_with_the_difference_that_it_comes_with() -> None:
    known = [_warning("nested_vmx_enter_non_root_mode"), _warning("load_vmcs12_host_state")]
    assert explains({**_FIELDS, "splats": known}, VMX) == "B06"
    assert explains({**_FIELDS, "splats": [*known, _warning("kvm_msr_allowed")]}, VMX) == ""
    assert explains({**_FIELDS, "splats": [[_CUT, *known[0]]]}, VMX) == "B06"
    assert explains({**_FIELDS, "splats": [["BUG: KASAN", *known[0]]]}, VMX) == ""
    assert explains({**_FIELDS, "splats": [[]]}, VMX) == ""
    assert explains({**OPEN, "splats": known}, VMX) == ""


def test_another_splat_or_an_error_is_explained_by_nothing() -> None:
    assert explains({**OPEN, "splats": [["BUG: KASAN"]]}, VMX) == ""
    assert explains({"id": "some.case", "verdict": "TIMEOUT", "error": "killed"}, VMX) == ""
    assert explains({"id": "some.case", "verdict": "FAIL", "expected": ["done"]}, VMX) == ""


def test_what_is_read_back_after_a_write_that_no_filter_stopped_is_another_difference() -> None:
    back = {"step": 2, "action": "rdmsr(Msr.IA32_TSC_DEADLINE)", "expected": ["returned(0x0)"]}
    assert explains({**OPEN, "also": [{**back, "seen": ["returned(0x5)"]}]}, VMX) == ""


def test_a_feature_is_as_open_where_the_host_turned_it_on() -> None:
    """A guest that comes from elsewhere: B34 takes no note of who wrote DEBUGCTL."""
    lbr, svm = "Msr.IA32_LASTBRANCHFROMIP", {"vendor_module": "kvm_amd"}
    steps = ["set_msr(Msr.IA32_DEBUGCTLMSR, 1)", "install(default_deny())", f"rdmsr({lbr})"]
    seen = {"step": 3, "action": steps[2], "expected": [f"RdmsrExit({lbr}, FILTER)", "gp"]}
    case = {"id": "x.y", "verdict": "FAIL", "script": steps, "seen": ["returned(0x1)"], **seen}
    trace = ["done", "done", "returned(0x1)"]
    assert explains({**case, "trace": trace}, svm) == "B34"
    assert explains({**case, "trace": trace, "script": ["get_msr(0x1)", *steps[1:]]}, svm) == ""
