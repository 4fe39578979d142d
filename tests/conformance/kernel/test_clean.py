"""Whether KVM asks an L1 which bitmap is clean is found by a lie: what each outcome says."""

from types import SimpleNamespace

import pytest

from vmm.conformance.kernel import backend
from vmm.conformance.language import script as s
from vmm.msr import Msr

MADE = (s.done, s.done, s.done, s.done, s.wrote)
PASSED = (s.entered, s.l1_exit("hypercall"))
IS_L1S = s.l1_exit("rdmsr", Msr.KERNEL_GS_BASE)


def probed(monkeypatch, *last, vendor="vmx", has_evmcs=True, honest=IS_L1S):
    monkeypatch.setattr(backend, "no_nested", lambda _: None)
    monkeypatch.setattr(backend, "vendor_of", lambda _: vendor)
    host = SimpleNamespace(
        kvm=SimpleNamespace(check_extension=lambda cap: int(cap == 163 and has_evmcs)),
        run=lambda _: (*MADE, *PASSED, s.entered, honest, *PASSED, *last),
    )
    return backend.BY_A_GUEST["clean_bitmap"](host)


@pytest.mark.parametrize(("vendor", "has_evmcs"), [("vmx", True), ("svm", True), ("svm", False)])
def test_an_l1_that_is_believed_is_asked(monkeypatch, vendor, has_evmcs):
    last = s.entered, s.returned(0)
    assert probed(monkeypatch, *last, vendor=vendor, has_evmcs=has_evmcs) is None


def test_an_l1_that_gets_what_it_intercepts_is_not_asked(monkeypatch):
    assert "does not ask" in probed(monkeypatch, s.entered, IS_L1S)


@pytest.mark.parametrize(
    "last", [(s.entry_failed("instruction", 7), s.returned(0)), (s.Lost("KVM_EXIT_SHUTDOWN"),)]
)
def test_an_l2_that_is_not_entered_says_nothing_of_bitmaps(monkeypatch, last):
    assert "is as one that does not" in probed(monkeypatch, *last)


def test_an_l2_that_keeps_what_an_honest_l1_takes_says_nothing_of_clean(monkeypatch):
    why = probed(monkeypatch, s.entered, s.returned(0), honest=s.returned(0))
    assert "is as one that does not" in why


def test_a_kvm_without_enlightened_vmcs_asks_nobody_on_vmx(monkeypatch):
    why = probed(monkeypatch, s.entered, s.returned(0), has_evmcs=False)
    assert why == "clean_bitmap: KVM has no enlightened VMCS"
