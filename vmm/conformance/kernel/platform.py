"""What a guest is given beside MSRs: CPUID as a script wants it; and a host out of files."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vmm._native import ffi, lib
from vmm.conformance.language import script as words
from vmm.kvm import Kvm

PAGE = 4096
BARE = {0x8000_0001: ("edx", 1 << 29 | 1 << 20 | 1 << 11)}
"""What a vCPU in long mode cannot be without: LM, NX, SYSCALL."""
NO_FEATURES = (0, 0x4000_0000, 0x8000_0000, 0x8000_0008)
"""Leaves that say who made the CPU, which leaves there are, and how wide addresses are."""


def without_features(cpuid: Any) -> Any:
    """Take every feature out of ``struct kvm_cpuid2`` that the guest can do without."""
    for entry in cpuid.entries[0 : cpuid.nent]:
        kept, bits = BARE.get(entry.function, ("", 0))
        for register in ("eax", "ebx", "ecx", "edx") if entry.function not in NO_FEATURES else ():
            setattr(entry, register, getattr(entry, register) & (bits if register == kept else 0))
    return cpuid


def change(cpuid: Any, action: words.SetCpuidBits) -> None:
    """Change ``struct kvm_cpuid2``, with a new entry where the leaf has none."""
    found = [
        each
        for each in cpuid.entries[0 : cpuid.nent]
        if (each.function, each.index) == (action.leaf, action.index)
    ]
    if not found:
        found = [cpuid.entries[cpuid.nent]]
        found[0].function, found[0].index = action.leaf, action.index
        found[0].flags = lib.KVM_CPUID_FLAG_SIGNIFCANT_INDEX if action.index else 0
        cpuid.nent += 1
    rest = getattr(found[0], action.register) & ~action.bits
    setattr(found[0], action.register, rest | action.bits * action.on)


def cpuid_with(kvm: Kvm, feature: str, on: bool) -> Any:
    """Return ``struct kvm_cpuid2`` with all that the host supports, but ``feature`` as given."""
    if feature == "everything":
        return kvm.get_supported_cpuid() if on else without_features(kvm.get_supported_cpuid())
    leaf, register, bit = words.CPUID_BITS[feature]
    cpuid = kvm.get_supported_cpuid()
    for entry in cpuid.entries[0 : cpuid.nent]:
        if entry.function == leaf:
            rest = getattr(entry, register) & ~(1 << bit)
            setattr(entry, register, rest | on << bit)
    return cpuid


def xen_config(msr: int, pages: int, flags: int) -> tuple[Any, list[Any]]:
    """Return ``struct kvm_xen_hvm_config``, and the pages of 32- and 64-bit code that it names."""
    blobs = [
        ffi.new("uint8_t[]", b"".join(_hypercall_page(kind << 24 | at) for at in range(pages)))
        for kind in (0x32, 0x64)
    ]
    addresses = [int(ffi.cast("uintptr_t", blob)) * bool(pages) for blob in blobs]
    config = ffi.new("struct kvm_xen_hvm_config *", {"flags": flags, "msr": msr})
    config.blob_addr_32, config.blob_addr_64 = addresses
    config.blob_size_32 = config.blob_size_64 = pages
    return config, blobs


def _hypercall_page(content: int) -> bytes:
    return content.to_bytes(4, "little") * (PAGE // 4)


@contextmanager
def no_descriptor() -> Iterator[None]:
    """Within: this process can open no file more (EMFILE)."""
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
