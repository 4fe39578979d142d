"""What the host gives a guest for Xen's hypercalls, and how it looks what came of it."""

import pytest

from vmm._native import ffi
from vmm.conformance.host.needs import PROBES
from vmm.conformance.kernel.calls import Calls
from vmm.conformance.kernel.platform import xen_config
from vmm.conformance.kernel.pool import PooledVm
from vmm.conformance.language.script import HYPERCALL_PAGE, get_hypercall_page, got, rdmsr
from vmm.errors import KvmError


def at(address, size):
    return bytes(ffi.buffer(ffi.cast("uint8_t *", address), size))


def test_the_pages_are_full_of_their_numbers():
    config, blobs = xen_config(0x40000200, 3, 0)
    assert (config.msr, config.flags) == (0x40000200, 0)
    assert (config.blob_size_32, config.blob_size_64) == (3, 3)
    for address, kind in ((config.blob_addr_32, 0x32), (config.blob_addr_64, 0x64)):
        for page in range(3):
            content = at(address + page * 4096, 4096)
            assert content == bytes([page, 0, 0, kind]) * 1024
    assert len(blobs) == 2


def test_no_pages_are_no_address():
    config, _ = xen_config(0, 0, 2)
    assert (config.blob_addr_32, config.blob_addr_64, config.flags) == (0, 0, 2)


@pytest.mark.parametrize(("where", "seen"), [(0, 0x1234), (4092, 0x1234), (-4, 0), (4096, 0)])
def test_the_page_is_looked_at_from_end_to_end(backend, where, seen):
    vm = PooledVm(backend.kvm, keep=False)
    try:
        vm.memory.write(HYPERCALL_PAGE + where, (0x1234).to_bytes(4, "little"))
        assert Calls(vm).get_hypercall_page() == got(seen)
    finally:
        vm.close()


def test_a_guest_has_nothing_of_its_own_there(backend):
    assert (
        backend.run((get_hypercall_page(), rdmsr(0x10), get_hypercall_page()))[::2] == (got(0),) * 2
    )


class WithoutXen:
    def check_extension(self, cap):
        return 0


class Refusing(WithoutXen):
    """Says that it has it, and refuses it."""

    def check_extension(self, cap):
        return 1

    def create_vm(self):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def xen_hvm_config(self, config):
        raise KvmError(22, "KVM_XEN_HVM_CONFIG")


@pytest.mark.parametrize(("need", "flags"), [("xen_hvm", 0), ("xen_intercept", 2)])
def test_a_host_without_it_says_why(need, flags):
    assert PROBES[need](WithoutXen()) == (
        "no KVM_XEN_HVM_CONFIG: this kernel is built without CONFIG_KVM_XEN, or has none"
    )
    assert f"KVM_XEN_HVM_CONFIG with flags {flags}: " in PROBES[need](Refusing())
