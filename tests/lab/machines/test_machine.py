"""A real kernel on a real emulator. Skips, with the reason, where either cannot be had."""

from dataclasses import replace
from functools import partial

import pytest

from vmm.conformance.c.tape import tape
from vmm.lab.errors import LabError
from vmm.lab.initramfs.player import Playing
from vmm.lab.kernels import kernels, modules, packaged
from vmm.lab.machines import emulators, machine
from vmm.lab.machines.emulation import Run

PROBE = (
    "import fcntl, os; kvm = os.open('/dev/kvm', os.O_RDWR); "
    "print('api', fcntl.ioctl(kvm, 0xAE00), os.uname().release); print('x' * 5000); "
    'print(\'{"id": 1, "host": {}}\'); print(\'{"id": 22, "host": {}}\'); raise SystemExit(3)'
)


@pytest.fixture(scope="module")
def kernel():
    """A small distribution kernel, cached if possible, and QEMU to boot it on."""
    try:
        emulators.find("qemu")
        cached = packaged.cached()
        return kernels.resolve(f"debian:{cached[0].version}" if cached else "debian:6.1")
    except LabError as error:
        pytest.skip(str(error))


def test_a_distribution_kernel_runs_a_command_on_its_own_kvm(kernel):
    seen = []
    result = machine.boot(kernel, "svm", ["python3", "-c", PROBE], on_line=seen.append, timeout=120)
    assert (result.outcome, result.status, result.reason) == ("done", 3, "")
    records = ('{"id": 1, "host": {}}', '{"id": 22, "host": {}}')
    assert result.lines == (f"api 12 {kernel.release}", "x" * 5000, *records)
    assert tuple(seen) == result.lines
    assert 0 < result.boot_seconds < result.total_seconds


def test_a_kernel_that_panics_says_so(kernel):
    result = machine.boot(kernel, "svm", ["true"], append="rdinit=/nothing", timeout=120)
    assert (result.outcome, result.status) == ("panic", None)
    assert result.attempts == 2
    assert any("Kernel panic" in line for line in result.console_tail)


def test_what_an_emulator_leaves_is_not_there_when_the_boot_is_repeated(kernel, monkeypatch):
    """Bochs takes no disk that has a lock, and a Bochs that was killed leaves one."""
    found = []

    def lost(command, work, *_, **__):
        found.append((work / "disk.lock").exists())
        (work / "disk.lock").touch()
        return Run(None, 0.1, False, "")

    monkeypatch.setattr(machine, "run", lost)
    assert machine.boot(kernel, "svm", ["true"]).attempts == 2
    assert found == [False, False]


def test_a_kernel_without_kvm_says_so(kernel):
    bare = kernels.Kernel(kernel.name, kernel.release, kernel.image)
    result = machine.boot(bare, "svm", ["true"], timeout=120)
    assert (result.outcome, result.attempts) == ("no-kvm", 1)


@pytest.mark.parametrize("executor", ["python", "player"])
def test_a_module_that_the_kernel_refuses_is_named_with_the_way_out(kernel, executor):
    how = {"append": "kvm_amd.npt=maybe", "timeout": 120}
    if executor == "python":
        result = machine.boot(kernel, "svm", ["true"], **how)
    else:
        result = machine.play(kernel, "svm", Playing(tape([])), **how)
    assert result.outcome == "no-kvm"
    assert "for it refused 02-kvm_amd.ko: Invalid argument: a parameter that" in result.reason
    assert any("`maybe' invalid for parameter `npt'" in line for line in result.console_tail)


SIGNED = ("lockdown=integrity", "lockdown=confidentiality", "module.sig_enforce=1")


def test_a_module_without_a_signature_is_refused_where_one_is_asked_for(kernel, tmp_path):
    bare = [tmp_path / path.name for path in kernel.modules]
    for path, own in zip(bare, kernel.modules, strict=True):
        path.write_bytes(modules.unsigned(own.read_bytes()))
    for append in SIGNED:
        boot = partial(machine.boot, replace(kernel, modules=tuple(bare)), "svm", ["true"])
        result = boot(append=append, timeout=120)
        assert "irqbypass.ko: " in result.reason
        assert "ask for a signature that this kernel takes" in result.reason


def test_a_packaged_kernel_has_its_signed_modules_where_they_are_asked_for(kernel):
    if any(len(own := path.read_bytes()) == len(modules.unsigned(own)) for path in kernel.modules):
        pytest.skip(f"the modules of {kernel.release} have no signature: a cache of before")
    for append in SIGNED:
        result = machine.boot(kernel, "svm", ["true"], append=append, timeout=120)
        assert (result.outcome, result.status, result.reason) == ("done", 0, "")


def test_an_unknown_vendor_is_one_line(kernel):
    with pytest.raises(LabError, match="choose one of svm, vmx, svm-nrips"):
        machine.boot(kernel, "arm", ["true"])
