"""Double entry: the literals in the source against the compiler, and both against ioctl-opt."""

import ctypes

import ioctl_opt
import pytest

from vmm import filter as filters
from vmm import msr, placed, uffd
from vmm._native import ffi, lib
from vmm.conformance.language import script

KVMIO = 0xAE


def size(struct: str) -> type:
    return ctypes.c_uint8 * ffi.sizeof(f"struct {struct}")


NONE = {
    "KVM_GET_API_VERSION": 0x00,
    "KVM_CREATE_VM": 0x01,
    "KVM_CHECK_EXTENSION": 0x03,
    "KVM_GET_VCPU_MMAP_SIZE": 0x04,
    "KVM_CREATE_VCPU": 0x41,
    "KVM_SET_TSS_ADDR": 0x47,
    "KVM_CREATE_IRQCHIP": 0x60,
    "KVM_RUN": 0x80,
    "KVM_NMI": 0x9A,
    "KVM_SMI": 0xB7,
}
READ = {
    "KVM_GET_REGS": (0x81, "kvm_regs"),
    "KVM_GET_SREGS": (0x83, "kvm_sregs"),
    "KVM_GET_MP_STATE": (0x98, "kvm_mp_state"),
    "KVM_GET_LAPIC": (0x8E, "kvm_lapic_state"),
    "KVM_GET_VCPU_EVENTS": (0x9F, "kvm_vcpu_events"),
    "KVM_GET_DEBUGREGS": (0xA1, "kvm_debugregs"),
    "KVM_GET_XCRS": (0xA6, "kvm_xcrs"),
    "KVM_GET_XSAVE": (0xA4, "kvm_xsave"),
    "KVM_GET_FPU": (0x8C, "kvm_fpu"),
}
WRITTEN = {
    "KVM_SET_USER_MEMORY_REGION": (0x46, "kvm_userspace_memory_region"),
    "KVM_SET_REGS": (0x82, "kvm_regs"),
    "KVM_SET_SREGS": (0x84, "kvm_sregs"),
    "KVM_SET_MSRS": (0x89, "kvm_msrs"),
    "KVM_SET_SIGNAL_MASK": (0x8B, "kvm_signal_mask"),
    "KVM_SET_CPUID2": (0x90, "kvm_cpuid2"),
    "KVM_SET_MP_STATE": (0x99, "kvm_mp_state"),
    "KVM_INTERRUPT": (0x86, "kvm_interrupt"),
    "KVM_SET_LAPIC": (0x8F, "kvm_lapic_state"),
    "KVM_GET_ONE_REG": (0xAB, "kvm_one_reg"),
    "KVM_SET_ONE_REG": (0xAC, "kvm_one_reg"),
    "KVM_SIGNAL_MSI": (0xA5, "kvm_msi"),
    "KVM_SET_GUEST_DEBUG": (0x9B, "kvm_guest_debug"),
    "KVM_SET_VCPU_EVENTS": (0xA0, "kvm_vcpu_events"),
    "KVM_SET_DEBUGREGS": (0xA2, "kvm_debugregs"),
    "KVM_SET_XCRS": (0xA7, "kvm_xcrs"),
    "KVM_SET_XSAVE": (0xA5, "kvm_xsave"),
    "KVM_SET_FPU": (0x8D, "kvm_fpu"),
    "KVM_ENABLE_CAP": (0xA3, "kvm_enable_cap"),
    "KVM_XEN_HVM_CONFIG": (0x7A, "kvm_xen_hvm_config"),
}
BOTH = {
    "KVM_GET_MSR_INDEX_LIST": (0x02, "kvm_msr_list"),
    "KVM_GET_SUPPORTED_CPUID": (0x05, "kvm_cpuid2"),
    "KVM_GET_MSRS": (0x88, "kvm_msrs"),
    "KVM_GET_CPUID2": (0x91, "kvm_cpuid2"),
}
FILTER_STRUCT = placed.NATIVE.size


@pytest.mark.parametrize("name", NONE)
def test_numbers_without_a_struct(name):
    assert getattr(lib, name) == ioctl_opt.IO(KVMIO, NONE[name])


@pytest.mark.parametrize(
    ("name", "make", "number", "struct"),
    [
        (name, make, number, struct)
        for make, table in ((ioctl_opt.IOR, READ), (ioctl_opt.IOW, WRITTEN), (ioctl_opt.IOWR, BOTH))
        for name, (number, struct) in table.items()
    ],
)
def test_numbers_with_a_struct(name, make, number, struct):
    # Some structs end in a flexible array, which counts for nothing in the number.
    assert getattr(lib, name) == make(KVMIO, number, size(struct))


def test_every_ioctl_is_held_by_one_of_these_tables():
    other = {"KVM_X86_SET_MSR_FILTER", "KVM_API_VERSION"}
    prefixes = ("KVM_CAP_", "KVM_EXIT_", "KVM_SYNC_", "KVM_GUESTDBG_", "KVM_MSR_", "KVM_CPUID_")
    names = {each for each in dir(lib) if each.startswith("KVM_") and not each.startswith(prefixes)}
    assert names - other == {*NONE, *READ, *WRITTEN, *BOTH}


def test_the_filter_ioctl_and_its_struct():
    assert FILTER_STRUCT == 392
    number = ioctl_opt.IOW(KVMIO, 0xC6, ctypes.c_uint8 * FILTER_STRUCT)
    assert lib.KVM_X86_SET_MSR_FILTER == number == script.KVM_X86_SET_MSR_FILTER == 0x4188AEC6


def test_the_compat_number_holds_the_compat_layout():
    number = ioctl_opt.IOW(KVMIO, 0xC6, ctypes.c_uint8 * placed.COMPAT.size)
    assert number == script.KVM_X86_SET_MSR_FILTER_COMPAT == 0x4104AEC6


def test_offsets_of_the_filter_struct_are_the_compilers():
    for field, offset in {"flags": 0, "nmsrs": 4, "base": 8, "bitmap": 16}.items():
        assert ffi.offsetof("struct kvm_msr_filter_range", field) == offset
    assert ffi.sizeof("struct kvm_msr_filter_range") == placed.NATIVE.range.size
    assert ffi.sizeof("struct kvm_msr_filter") == FILTER_STRUCT
    assert ffi.offsetof("struct kvm_msr_filter", "ranges") == placed.NATIVE.header.size


@pytest.mark.parametrize(
    "name",
    [
        "KVM_CAP_X86_USER_SPACE_MSR",
        "KVM_CAP_X86_MSR_FILTER",
        "KVM_CAP_SPLIT_IRQCHIP",
        "KVM_MSR_FILTER_READ",
        "KVM_MSR_FILTER_WRITE",
        "KVM_MSR_FILTER_DEFAULT_ALLOW",
        "KVM_MSR_FILTER_DEFAULT_DENY",
        "KVM_MSR_FILTER_MAX_RANGES",
        "KVM_MSR_FILTER_MAX_BITMAP_SIZE",
    ],
)
def test_literals_are_the_compilers(name):
    assert getattr(msr, name) == getattr(lib, name)


def test_exit_reasons_are_the_compilers():
    for reason in msr.MsrExitReason:
        assert reason.value == getattr(lib, f"KVM_MSR_EXIT_REASON_{reason.name}")
    assert (lib.KVM_EXIT_X86_RDMSR, lib.KVM_EXIT_X86_WRMSR) == (29, 30)


def test_kvm_run_msr_lies_where_the_hot_path_reads_it():
    at = ffi.offsetof("struct kvm_run", "msr")
    inner = {
        name: ffi.offsetof("mw_msr", name) for name in ("error", "pad", "reason", "index", "data")
    }
    assert at == 32 and inner == {"error": 0, "pad": 1, "reason": 8, "index": 12, "data": 16}


def test_batch_structs_are_packed_as_the_shim_has_them():
    from vmm.conformance.kernel import wire as record

    assert ffi.sizeof("struct mw_exit") == record.EXIT.size
    assert ffi.sizeof("struct mw_reply") == record.REPLY.size
    assert ffi.sizeof("struct mw_seen") == record.SEEN.size
    assert (record.STEP.size, record.RESULT.size) == (lib.MW_STEP, lib.MW_RESULT)
    assert lib.MW_SPARE_EXITS == record.SPARE_EXITS


def test_bitmap_size_counts_whole_longs():
    sizes = {1: 8, 7: 8, 8: 8, 63: 8, 64: 8, 65: 16, 0x2FFF: 0x600, 0x3000: 0x600, 0x3001: 0x608}
    assert {each: filters.bitmap_size(each) for each in sizes} == sizes


def test_userfaultfd_numbers():
    for name, number, struct in (
        ("UFFDIO_API", 0x3F, "uffdio_api"),
        ("UFFDIO_REGISTER", 0x00, "uffdio_register"),
        ("UFFDIO_COPY", 0x03, "uffdio_copy"),
    ):
        assert getattr(lib, name) == ioctl_opt.IOWR(0xAA, number, size(struct)), name
    assert ioctl_opt.IOR(0xAA, 0x02, size("uffdio_range")) == lib.UFFDIO_WAKE
    assert ioctl_opt.IO(0xAA, 0x00) == uffd.USERFAULTFD_IOC_NEW
