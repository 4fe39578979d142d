"""Nested state as data: its header is the kernel's, and an L2 can be taken out of it."""

import ctypes

import ioctl_opt
import pytest
from test_area import header

from vmm import structs
from vmm._native import ffi
from vmm.nested import state

DATA = b"\xa5" * 0x1000


def made(flags: int, format_: int) -> bytes:
    size = state.HEADER.size + len(DATA)
    return state.HEADER.pack(flags, format_, size, 0x61000, 0x60000) + DATA


def test_the_numbers_are_the_kernels():
    struct = ctypes.c_uint8 * state.HEADER.size
    assert state.HEADER.size == 128
    assert ioctl_opt.IOWR(0xAE, 0xBE, struct) == structs.KVM_GET_NESTED_STATE
    assert ioctl_opt.IOW(0xAE, 0xBF, struct) == structs.KVM_SET_NESTED_STATE
    assert state.HEADER.size + 0x2000 == structs.MOST_NESTED_STATE
    said = header("kvm.h")
    for name in ("GUEST_MODE", "RUN_PENDING", "GIF_SET", "FORMAT_VMX", "FORMAT_SVM"):
        assert getattr(state, name) == said[f"KVM_STATE_NESTED_{name}"], name


@pytest.mark.parametrize("format_", [state.FORMAT_SVM, state.FORMAT_VMX])
def test_a_state_says_whether_l2_is_active(format_):
    assert state.is_in_l2(made(state.GUEST_MODE | state.GIF_SET, format_))
    assert not state.is_in_l2(made(state.GIF_SET, format_))


def test_without_l2_the_extensions_stay_on():
    svm = state.without_l2(made(state.GUEST_MODE | state.GIF_SET, state.FORMAT_SVM))
    assert state.HEADER.unpack(svm)[:3] == (state.GIF_SET, state.FORMAT_SVM, 128)
    flags = state.GUEST_MODE | state.RUN_PENDING
    vmx = state.without_l2(made(flags, state.FORMAT_VMX))
    assert state.HEADER.unpack(vmx) == (0, state.FORMAT_VMX, 128, 0x61000, state.NOWHERE)


class Watched:
    """A real vCPU, whose CR4 is noted whenever it is set."""

    def __init__(self, there):
        self.there, self.written = there, []
        self.vcpu_id, self.nested = 0, None

    def set_regs(self, regs):
        self.there.set_regs(regs)

    def set_nested_state(self, nested):
        """Only note it: this host may have no nesting."""
        self.nested, self.before = nested, len(self.written)

    def get_sregs(self):
        return self.there.get_sregs()

    def set_sregs(self, sregs):
        self.written.append(sregs.cr4)
        self.there.set_sregs(sregs)


def test_rebuilding_the_mmu_changes_cr4_and_leaves_it_as_it_was(vm):
    watched = Watched(vm.create_vcpu(0))
    before = bytes(ffi.buffer(watched.get_sregs()))
    state.rebuild_mmu(watched)
    assert bytes(ffi.buffer(watched.get_sregs())) == before
    assert len(watched.written) == 2
    assert watched.written[0] ^ watched.written[1] == state.CR4_PGE


@pytest.mark.parametrize(("flags", "rebuilt"), [(0, 2), (state.GUEST_MODE, 0)])
def test_a_vcpu_that_is_restored_in_l1_has_its_mmu_built_anew(vm, flags, rebuilt):
    class Memory:
        def write(self, at, data):
            pass

    watched = Watched(vm.create_vcpu(0))
    nested = made(flags, state.FORMAT_SVM)
    saved = state.Snapshot(nested, watched.there.get_regs(), watched.get_sregs(), b"")
    saved.restore(watched, Memory())
    assert watched.nested == nested and len(watched.written) - watched.before == rebuilt
