"""What is there is found by doing; what is not there is said in words that lead somewhere."""

import errno
import os
from pathlib import Path

import pytest

from vmm.conformance.language.needs import needs_of
from vmm.conformance.language.script import (
    begin,
    begin_install,
    create_irqchip,
    execute,
    get_msr,
    install_compat,
    meanwhile,
    park,
    rdmsr,
    spin,
    wrmsr,
)
from vmm.errors import KvmError
from vmm.filter import default_allow, default_deny

STALLS = default_deny().allow(1)


@pytest.mark.parametrize(
    ("action", "needs"),
    [
        (rdmsr(1), ()),
        (rdmsr(1, emulated=True), ("force_emulation_prefix",)),
        (begin(wrmsr(1, 2, emulated=True)), ("force_emulation_prefix",)),
        (spin(rdmsr(1, single_step=True, vcpu=1)), ("single_step", "vcpus")),
        (rdmsr(1, mode="real"), ()),
        (begin(rdmsr(1, mode="smm")), ("smm",)),
        (execute("cpuid", 0x40000000), ()),
        (execute("rdpid", 1, emulated=True, vcpu=1), ("force_emulation_prefix", "rdpid", "vcpus")),
        (execute("rsm", 1), ("smm",)),
        (create_irqchip(), ("irqchip",)),
        (meanwhile(create_irqchip()), ("irqchip", "task_syscall")),
        (install_compat(default_allow()), ("compat",)),
        (meanwhile(install_compat(default_allow())), ("compat", "task_syscall")),
        (begin_install(STALLS), ("task_syscall",)),
        (begin_install(STALLS, stall_at=0), ("userfaultfd", "task_syscall")),
        (
            begin_install(STALLS, stall_at=0, caller="compat"),
            ("userfaultfd", "compat", "task_syscall"),
        ),
        (park(0), ("userfaultfd",)),
        (park(1), ("userfaultfd", "vcpus")),
        (get_msr(1, vcpu=3), ("vcpus",)),
    ],
)
def test_the_words_say_what_they_need(action, needs):
    assert needs_of([action]) == needs


def test_each_need_is_said_once_in_the_order_of_the_script():
    script = [park(1), create_irqchip(), park(0), rdmsr(1, vcpu=2)]
    assert needs_of(script) == ("userfaultfd", "vcpus", "irqchip")


def test_every_need_has_a_probe():
    pytest.importorskip("vmm._native")
    from vmm.conformance.cases import CASES
    from vmm.conformance.host.needs import PROBES
    from vmm.conformance.kernel.backend import BY_A_GUEST

    needs = {need for case in CASES for need in case.all_needs} - {"ignore_msrs"}  # the worker's
    assert needs <= set(PROBES) | set(BY_A_GUEST)
    assert not set(PROBES) & set(BY_A_GUEST)


@pytest.fixture
def refusing(kvm, monkeypatch):
    """What makes one ioctl of a VM fail with an errno."""
    from vmm.kvm import Vm

    def refuse(name: str, code: int) -> None:
        true = Vm.ioctl

        def ioctl(self, number, argument=0, what=None, *rest):
            if what == name:
                raise KvmError(code, name)
            return true(self, number, argument, what, *rest)

        monkeypatch.setattr(Vm, "ioctl", ioctl)

    return refuse


def test_an_irqchip_that_is_reported_and_not_there_is_split(kvm, refusing):
    """CONFIG_KVM_IOAPIC=n: KVM_CAP_IRQCHIP is 1 and KVM_CREATE_IRQCHIP is ENOTTY."""
    from vmm.conformance.host.needs import no_irqchip

    assert no_irqchip(kvm) is None
    refusing("KVM_CREATE_IRQCHIP", errno.ENOTTY)
    assert no_irqchip(kvm) is None
    refusing("KVM_ENABLE_CAP", errno.EINVAL)
    assert "no in-kernel irqchip: KVM_ENABLE_CAP" in no_irqchip(kvm)


def test_an_irqchip_that_fails_otherwise_is_not_papered_over(kvm, refusing):
    from vmm.conformance.host.needs import no_irqchip

    refusing("KVM_CREATE_IRQCHIP", errno.EPERM)
    assert "KVM_CREATE_IRQCHIP" in no_irqchip(kvm)


def test_a_probe_that_finds_no_memory_has_found_nothing_out(kvm, refusing):
    from vmm.conformance.host.limits import ExhaustedError
    from vmm.conformance.host.needs import no_irqchip

    refusing("KVM_CREATE_IRQCHIP", errno.ENOMEM)
    with pytest.raises(ExhaustedError, match="KVM_CREATE_IRQCHIP: ENOMEM, no more memory"):
        no_irqchip(kvm)


def test_a_vcpu_that_is_busy_is_told_as_that(kvm, refusing):
    from vmm.conformance.host.needs import no_second_vcpu

    assert no_second_vcpu(kvm) is None
    refusing("KVM_CREATE_VCPU", errno.EBUSY)
    assert "end the perf" in no_second_vcpu(kvm)


def test_a_task_whose_system_call_cannot_be_read_is_a_lack(kvm, tmp_path, monkeypatch):
    from vmm.conformance.host.needs import no_task_syscall

    assert no_task_syscall(kvm) is None
    assert "No such file" in no_task_syscall(kvm, tmp_path)

    def refuse(_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert "file capabilities" in no_task_syscall(kvm)


def test_a_json_script_without_needs_is_skipped_and_not_blamed():
    """No author lists what the words need: the case of a file has it by itself."""
    from vmm.conformance.language.codec import load

    script = '"script": [{"word": "rdmsr", "index": 1, "emulated": true}]'
    case = load('{"msrward": 1, ' + script + ', "trace": [{"word": "returned", "value": 0}]}')
    assert case.needs == ()
    assert case.all_needs == ("force_emulation_prefix",)
