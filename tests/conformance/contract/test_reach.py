"""A bug can show where a kernel is as new as it, and KVM has on what it is about."""

from __future__ import annotations

import pytest

from vmm.conformance.contract.history import HISTORY, OPEN
from vmm.conformance.contract.reach import REACHES, can_show, lacking
from vmm.conformance.contract.signatures import SIGNATURES

SVM = {"vendor_module": "kvm_amd", "parameters": {"kvm_amd": {"nrips": "1", "lbrv": "1"}}}
BARE = {"vendor_module": "kvm_amd", "parameters": {"kvm_amd": {"nrips": "0", "lbrv": "0"}}}
VMX, TIMELESS = (
    {"vendor_module": "kvm_intel", "parameters": {"kvm_intel": {"preemption_timer": on}}}
    for on in ("Y", "N")
)
DEBIAN = "6.12.118+deb13-cloud-amd64"


@pytest.mark.parametrize(
    ("entry", "host", "release", "shows"),
    [
        ("B13", SVM, "6.18.5-cloud-amd64", True),
        ("B13", SVM, "6.18.0-rc1", True),
        ("B13", SVM, "6.17.13", False),
        ("B13", SVM, DEBIAN, False),
        ("B13", BARE, "7.3.4", False),
        ("B34", SVM, "6.17.13", True),
        ("B34", SVM, "6.17.8", False),
        ("B34", SVM, DEBIAN, False),
        ("B34", BARE, "7.3.4", False),
        ("B12", VMX, DEBIAN, True),
        ("B12", TIMELESS, DEBIAN, False),
        ("B12", TIMELESS, "6.18.5", True),
        ("B36", SVM, DEBIAN, True),
        ("B36", SVM, "6.1.192", False),
        ("B20", SVM, "5.10.262", True),
        ("B13", SVM, "our-own", True),
        ("B13", {}, "6.18.5", True),
        ("B19", VMX, DEBIAN, True),
    ],
)
def test_where_a_bug_can_show(
    entry: str, host: dict[str, object], release: str, shows: bool
) -> None:
    assert can_show(entry, {**host, "release": release}) is shows


def test_of_a_host_of_which_nothing_is_known_everything_can_show() -> None:
    assert all(can_show(entry, {}) for entry in HISTORY)
    assert all(can_show(entry, {"release": None, "parameters": None}) for entry in HISTORY)


def test_a_reach_is_of_a_bug_that_can_show_and_agrees_with_the_history() -> None:
    signed = {row.id for row in SIGNATURES}
    assert {reach.id for reach in REACHES} <= signed
    for entry in {reach.id for reach in REACHES}:
        first = next(reach.since for reach in REACHES if reach.id == entry)
        assert HISTORY[entry].affected.startswith(f"{first}..")


def test_a_release_lacks_what_was_mended_after_it_and_what_is_open():
    assert set(OPEN) < set(lacking("6.1"))
    assert {"B07", "B10"} <= set(lacking("6.1")), "mended in 6.12 and 6.11"
    assert not {"B05", "B06"} & set(lacking("6.1")), "mended in 5.16 and 5.18"
    assert lacking("99.0") == OPEN
    assert "B10" in lacking("6.9") and "B10" not in lacking("6.11"), "as numbers, not as text"
