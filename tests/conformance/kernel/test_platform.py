"""CPUID, disabled exits and INIT on /dev/kvm: what a script asks for is what the vCPU has."""

import pytest

from vmm.conformance.language.script import (
    DISABLE_EXITS,
    InternalError,
    Lost,
    OtherExit,
    create_vcpu,
    disable_exits,
    done,
    set_cpuid,
    set_cpuid_bits,
)
from vmm.exits import InternalErrorExit, ShutdownExit
from vmm.exits import OtherExit as Other


def cpuid_of(backend, script):
    """Return what KVM_SET_CPUID2 was given last, by leaf and subleaf."""
    from vmm.conformance.kernel.execution import Execution

    run = Execution(backend._take(script), script, backend._control_vm)
    assert set(run.events()) == {done}
    cpuid = run.calls.cpuid[0]
    run.vm.close()
    return {
        (each.function, each.index): (each.eax, each.ebx, each.ecx, each.edx)
        for each in cpuid.entries[0 : cpuid.nent]
    }


def test_any_bit_of_any_leaf_can_be_set_and_cleared(backend):
    supported = cpuid_of(backend, (set_cpuid("everything", on=True),))
    script = (set_cpuid_bits(1, "ecx", 1 << 31, on=False), set_cpuid_bits(0x55, "ebx", 6, index=3))
    changed = cpuid_of(backend, script)
    eax, ebx, ecx, edx = supported[1, 0]
    assert changed.pop((0x55, 3)) == (0, 6, 0, 0)
    assert changed == {**supported, (1, 0): (eax, ebx, ecx & ~(1 << 31), edx)}


def test_without_everything_there_is_long_mode_and_no_feature(backend):
    bare = cpuid_of(backend, (set_cpuid("everything", on=False),))
    assert bare[1, 0] == (0, 0, 0, 0) == bare[7, 0]
    assert bare[0x8000_0001, 0][3] & 1 << 29
    assert all(word == 0 for word in bare[0x8000_0001, 0][:3])


def test_exits_are_disabled_before_a_vcpu_is_there(backend):
    offered = backend.kvm.check_extension(143)
    bit = next((bit for bit in DISABLE_EXITS.values() if offered & bit), None)
    if bit is None:
        pytest.skip("this host disables no exits")
    assert backend.run((disable_exits(bit), create_vcpu(0))) == (done, done)
    missing = [
        name for name, bit in DISABLE_EXITS.items() if backend.lacks(f"disable_exits_{name}")
    ]
    assert missing == [name for name, bit in DISABLE_EXITS.items() if not offered & bit]


def test_an_exit_that_is_none_of_an_access_is_an_event():
    from vmm.conformance.kernel.halves import foreign

    assert foreign(InternalErrorExit(3)) == InternalError(3)
    assert foreign(Other(17)) == OtherExit(17)
    assert isinstance(foreign(ShutdownExit()), Lost)
