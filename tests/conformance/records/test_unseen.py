"""A known bug that nothing shows is said where a case could have shown it, and only there."""

from typing import Any

import pytest

from vmm.conformance.cases import CASES
from vmm.conformance.contract.history import HISTORY
from vmm.conformance.records.unseen import unseen

VMX, SVM, PVM = ({"vendor_module": name} for name in ("kvm_intel", "kvm_amd", "kvm_pvm"))
CASE = {case.id: case for case in CASES}
OLD, NO_NRIPS = (
    SVM | {"release": release, "parameters": {"kvm_amd": {"nrips": nrips}}}
    for release, nrips in (("6.12.118+deb13-cloud-amd64", "1"), ("7.3.4+deb13-cloud-amd64", "0"))
)
WRITE, READ = "fastpath.write_denied_by_range_no_apic_cpuid_on", "matching.first_range_wins"
RESTORED = "restored.star_between"


def judged(name: str, verdict: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "verdict": verdict, "requirements": CASE[name].requirements, **more}


FAILED = judged(
    WRITE,
    "FAIL",
    step=1,
    action="wrmsr(Msr.IA32_TSC_DEADLINE, 0x5)",
    expected=["WrmsrExit(Msr.IA32_TSC_DEADLINE, FILTER, 0x5)", "wrote"],
    seen=["wrote"],
)


@pytest.mark.parametrize(
    ("case", "host", "said"),
    [
        (judged(WRITE, "PASS"), VMX, ["B12"]),
        (judged(WRITE, "XPASS"), VMX, ["B12"]),
        (judged(WRITE, "PASS"), SVM, ["B13"]),
        (judged(WRITE, "PASS"), OLD, []),
        (judged(WRITE, "PASS"), NO_NRIPS, []),
        (judged(WRITE, "PASS"), NO_NRIPS | {"parameters": {"kvm_amd": {"nrips": "1"}}}, ["B13"]),
        (judged(RESTORED, "PASS"), OLD, ["B36"]),
        (judged(WRITE, "PASS"), PVM, []),
        (judged(WRITE, "SKIP"), VMX, []),
        (judged(READ, "PASS"), VMX, []),
        (FAILED, VMX, []),
        (judged(RESTORED, "PASS"), SVM, ["B36"]),
        (judged(RESTORED, "SKIP"), SVM, []),
        ({"id": "a.b", "verdict": "PASS", "requirements": ["?"]}, VMX, []),
    ],
)
def test_a_known_bug_that_no_case_shows_is_said_where_one_could(
    case: dict[str, Any], host: dict[str, str], said: list[str]
) -> None:
    assert unseen(("B12", "B13", "B36"), [case], host) == said


def test_an_l2_of_vmx_shows_what_hardware_lets_it_reach():
    """Else it is intercepted, and a new filter governs it at once (B20, CONTRACT.md 5.1)."""
    fs, star = (
        judged(f"inside.read_of_{msr}_denied_by_range", "PASS") for msr in ("fs_base", "star")
    )
    assert unseen(("B20",), [fs], VMX) == unseen(("B20",), [star], SVM) == ["B20"]
    assert unseen(("B20",), [star], VMX) == []


def test_what_no_case_can_show_is_never_said() -> None:
    every = [judged(case.id, "PASS") for case in CASES]
    said = unseen([entry for entry, fix in HISTORY.items() if fix.is_open], every, SVM)
    assert "B18" not in said, "its cases observe"
    assert {"B13", "B20", "B36", "B37"} <= set(said)
