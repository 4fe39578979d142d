"""The host's own nesting instead of emulation: when it is chosen, and what is asked of QEMU."""

from dataclasses import replace
from pathlib import Path

import pytest

from vmm.lab import vendors
from vmm.lab.errors import LabError
from vmm.lab.kernels import images
from vmm.lab.kernels.kernels import Kernel
from vmm.lab.machines import machine, nesting, qemu
from vmm.lab.machines.emulation import Boot
from vmm.lab.machines.emulators import Emulator


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A host with these `nested` parameters and a /dev/kvm, or without."""
    monkeypatch.delenv("MSRWARD_EMULATE", raising=False)
    monkeypatch.setattr(nesting, "_PARAMETERS", tmp_path)
    monkeypatch.setattr(nesting, "_KVM", tmp_path / "kvm")

    def make(has_kvm=True, **nested):
        if has_kvm:
            (tmp_path / "kvm").touch()
        for module, value in nested.items():
            (tmp_path / module / "parameters").mkdir(parents=True)
            (tmp_path / module / "parameters/nested").write_text(f"{value}\n")
        return {vendor for vendor in vendors.VENDORS if nesting.offers(vendor)}

    return make


@pytest.mark.parametrize(
    ("nested", "vendors"),
    [
        ({"kvm_amd": "1"}, {"svm", "svm-nrips"}),
        ({"kvm_intel": "Y"}, {"vmx"}),
        ({"kvm_intel": "N", "kvm_amd": "0"}, set()),
        ({}, set()),
        ({"kvm_amd": "1", "has_kvm": False}, set()),
    ],
)
def test_a_vendor_is_offered_where_the_host_nests_it(host, nested, vendors):
    assert host(**nested) == vendors


def test_emulation_can_be_asked_for(host, monkeypatch):
    monkeypatch.setenv("MSRWARD_EMULATE", "1")
    assert host(kvm_amd="1") == set()


@pytest.mark.parametrize(
    ("module", "vendor", "title", "cpu"),
    [
        ("kvm_intel", "vmx", "qemu 10.0 on KVM", "host"),
        ("kvm_intel", "svm", "qemu 10.0", vendors.of("svm").cpu),
    ],
)
def test_qemu_is_asked_for_what_the_host_offers(
    host, tmp_path, monkeypatch, module, vendor, title, cpu
):
    host(**{module: "1"})
    monkeypatch.setattr(machine, "find", lambda name: Emulator(name, (10, 0), (name,), Path("/")))
    monkeypatch.setattr(images, "pvh", lambda image, work: None)
    emulator = machine.emulator_of(vendor)
    guest = Boot(Kernel("k", "6.6", tmp_path), vendor, b"", "quiet", 2)
    argv = qemu.command(emulator, guest, tmp_path).argv
    assert emulator.title == title
    assert argv[argv.index("-cpu") + 1] == cpu
    assert argv[argv.index("-accel") + 1] == ("kvm" if cpu == "host" else "tcg,thread=single")
    if cpu != "host":
        argv = qemu.command(emulator, replace(guest, cpu="EPYC"), tmp_path).argv
        assert argv[argv.index("-cpu") + 1] == "EPYC"


def test_another_cpu_is_refused_where_kvm_does_the_work(host, tmp_path, monkeypatch):
    host(kvm_amd="1")
    monkeypatch.setattr(machine, "find", lambda name: Emulator(name, (10, 0), (name,), Path("/")))
    with pytest.raises(LabError, match="MSRWARD_EMULATE=1"):
        machine.boot(Kernel("k", "6.6", tmp_path), "svm", ["true"], cpu="EPYC")
