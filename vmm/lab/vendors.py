"""The machines of the lab: one row a vendor, which is all that differs between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vmm.lab.errors import LabError


@dataclass(frozen=True, slots=True)
class Vendor:
    """A machine whose CPU has one vendor's virtualization extensions.

    `module` is the KVM module that uses them, `gives` what they are to a person. Emulated, it is
    `emulator`'s CPU model `cpu`, `cpus` times; `lacks` is what that cannot do, as $MSRWARD_LACKS
    has it (``need=reason``). `features` is what Bochs adds to its model, from 3.0 on.
    """

    name: str
    module: str
    gives: str
    emulator: str
    cpu: str
    cpus: int
    lacks: str = ""
    features: str = ""

    @property
    def extensions(self) -> Literal["svm", "vmx"]:
        """The flag of a CPU that has them: svm or vmx."""
        return "svm" if self.module == "kvm_amd" else "vmx"


VENDORS: dict[str, Vendor] = {
    row.name: row
    for row in (
        # Five-level page tables make each of a nested guest's page walks dearer: an eighth of a
        # suite. With ERMS and FSRM a kernel clears pages by REP STOSB, which TCG does byte by byte:
        # a quarter of a suite.
        Vendor(
            *("svm", "kvm_amd", "SVM", "qemu", "max,la57=off,erms=off,fsrm=off", 2),
            # (RCX * 2) / 8 in 64 bits (system/svm_helper.c, QEMU 2.0 to 11.1); fuzz found it.
            "upper_rcx=QEMU looks up the MSR bitmap of a guest under its SVM by all 64 bits of RCX",
        ),
        Vendor(
            *("vmx", "kvm_intel", "VMX", "bochs", "corei7_haswell_4770", 1),
            # Its CPUID says nothing of it. MSR_IMM is not for us: Bochs 3.0 makes of a VM exit of
            # RDMSR $msr one of RDMSR, which means ECX.
            features="wrmsrns",
        ),
        Vendor(
            *("svm-nrips", "kvm_amd", "SVM with NRIPS", "bochs", "ryzen", 1),
            # SvmInterceptException clears inhibit_mask before Svm_Vmexit saves it (cpu/svm/svm.cc).
            "single_step=Bochs ends when a guest under its SVM single-steps;"
            "emulated_shadow=Bochs drops the shadow where its SVM intercepts an exception, as #UD",
        ),
    )
}
"""By what ``--vendor`` calls them."""

MODULES = tuple(dict.fromkeys(row.module for row in VENDORS.values()))
"""The KVM modules of all vendors; a machine loads its own."""


def of(name: str) -> Vendor:
    """Return the row; a :class:`LabError` names those there are."""
    try:
        return VENDORS[name]
    except KeyError:
        raise LabError(f"no vendor {name}; choose one of {', '.join(VENDORS)}") from None
