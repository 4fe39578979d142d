"""The doctor: every check answers, with a remedy where it is not PASS, and KVM is really used."""

import json
import os

import ioctl_opt
import pytest

from vmm.conformance.host import ability, doctor, faults, klog, surroundings
from vmm.conformance.host.diagnosis import Diagnosis
from vmm.conformance.host.doctor import CHECKS, examine, render


@pytest.fixture
def facts(monkeypatch):
    """The host's facts, to be changed by a test."""
    changed = doctor.facts()
    for each in (ability, surroundings):
        monkeypatch.setattr(each, "facts", lambda: changed)
    return changed


@pytest.mark.usefixtures("has_kvm")
def test_a_host_that_can_run_guests_has_no_fail():
    findings = examine()
    assert list(findings) == [name for name, _ in CHECKS]
    assert not [found for found in findings.values() if found.verdict == "FAIL"]
    assert findings["guest"].verdict == "PASS"


def test_its_numbers_are_the_compilers():
    lib = pytest.importorskip("vmm._native").lib
    assert ability.KVM_CAP_SYNC_REGS == lib.KVM_CAP_SYNC_REGS
    assert ability.KVM_SYNC_X86_REGS == lib.KVM_SYNC_X86_REGS
    assert ioctl_opt.IO(0xAA, 0x00) == faults.USERFAULTFD_IOC_NEW


def test_what_is_not_pass_has_a_remedy():
    for name, found in examine().items():
        assert found.verdict in ("PASS", "WARN", "FAIL")
        assert found.fact, name
        assert found.verdict != "WARN" or found.remedy, name


def test_one_line_for_each_finding():
    lines = render({"a": Diagnosis("PASS", "fine"), "bc": Diagnosis("WARN", "odd", "mend")}).split(
        "\n"
    )
    assert lines == ["PASS a   fine", "WARN bc  odd -> mend"]


def test_json_has_every_finding_and_the_host():
    said = json.loads(render({"a": Diagnosis("FAIL", "bad", "mend")}, as_json=True))
    assert said["schema"] == 1
    assert said["checks"] == [{"check": "a", "verdict": "FAIL", "fact": "bad", "remedy": "mend"}]
    assert said["host"]["release"] == os.uname().release


def test_a_check_that_fails_to_run_is_a_finding(monkeypatch):
    def missing():
        raise ModuleNotFoundError("No module named 'vmm._native'")

    monkeypatch.setattr(doctor, "CHECKS", [("guest", missing)])
    found = examine()["guest"]
    assert found.verdict == "FAIL"
    assert "scripts/check" in found.remedy


@pytest.mark.usefixtures("has_kvm")
@pytest.mark.parametrize("caps", [(0, 1), (1, 0)])
def test_a_kernel_without_the_filter_is_a_fail(monkeypatch, caps):
    from vmm.kvm import Kvm

    answers = dict(zip((188, 189), caps, strict=True))
    monkeypatch.setattr(Kvm, "check_extension", lambda _, cap: answers[cap])
    found = ability.capabilities()
    assert found.verdict == "FAIL"
    assert "5.10" in found.remedy


@pytest.mark.usefixtures("has_kvm")
def test_a_guest_that_is_not_filtered_is_a_fail(monkeypatch):
    from vmm.kvm import Vm

    monkeypatch.setattr(Vm, "set_msr_filter", lambda *_: None)
    found = ability.guest()
    assert found.verdict == "FAIL"
    assert found.fact.startswith("the guest did HltExit()")


@pytest.mark.parametrize(
    ("errno", "words"), [(2, "modprobe"), (13, "run as root"), (19, "modprobe"), (1, "run as root")]
)
def test_a_device_that_does_not_open(monkeypatch, errno, words):
    def refuse(*_):
        raise OSError(errno, os.strerror(errno))

    monkeypatch.setattr(os, "open", refuse)
    found = ability.device()
    assert (found.verdict, found.fact) == ("FAIL", f"/dev/kvm: {os.strerror(errno)}")
    assert words in found.remedy


@pytest.mark.parametrize(
    ("fact", "value", "check", "verdict"),
    [
        ("parameters", {"kvm": {"ignore_msrs": "Y"}}, ability.ignore_msrs, "WARN"),
        ("parameters", {"kvm": {"ignore_msrs": "N"}}, ability.ignore_msrs, "PASS"),
        ("parameters", {}, ability.ignore_msrs, "WARN"),
        ("parameters", {"kvm": {"force_emulation_prefix": "1"}}, ability.forced_emulation, "PASS"),
        ("parameters", {"kvm": {"force_emulation_prefix": "0"}}, ability.forced_emulation, "WARN"),
        ("taint", 0, surroundings.taint, "PASS"),
        ("taint", 512, surroundings.taint, "WARN"),
        ("taint", None, surroundings.taint, "WARN"),
        ("vendor_module", None, ability.vendor_module, "WARN"),
        ("platform", None, ability.platform, "WARN"),
        ("platform", "bare metal", ability.platform, "PASS"),
    ],
)
def test_facts_that_matter(facts, fact, value, check, verdict):
    facts[fact] = value
    assert check().verdict == verdict


def test_another_machine_is_a_fail(monkeypatch):
    uname = os.uname_result(("Linux", "host", "6.1", "#1", "aarch64"))
    monkeypatch.setattr(os, "uname", lambda: uname)
    assert surroundings.machine().verdict == "FAIL"


def test_no_userfaultfd_is_a_warning_that_says_what_goes_untested(monkeypatch):
    def refuse():
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(faults, "_uffd_by_syscall", refuse)
    monkeypatch.setattr(faults, "_uffd_by_device", refuse)
    found = faults.userfaultfd()
    assert found.verdict == "WARN"
    assert found.fact.startswith("races are not tested: the system call: Operation not permitted")


@pytest.mark.parametrize(("user", "mend"), [(0, "seccomp profile"), (1000, "run as root")])
def test_what_mends_it_fits_where_one_stands(monkeypatch, user, mend):
    def refuse():
        raise PermissionError(1, "Operation not permitted")

    for name in ("_uffd_by_syscall", "_uffd_by_device"):
        monkeypatch.setattr(faults, name, refuse)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert mend in faults.userfaultfd().remedy


@pytest.mark.parametrize(("number", "mend"), [(2, "device /dev/kmsg"), (1, "dmesg_restrict=0")])
def test_what_mends_a_log_that_cannot_be_read(monkeypatch, number, mend):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(klog.os, "open", refuse)
    assert mend in surroundings.kernel_log().remedy


def test_the_doctor_leaves_nothing_open():
    examine()  # imports open and close their own
    before = os.listdir("/proc/self/fd")
    examine()
    assert os.listdir("/proc/self/fd") == before
