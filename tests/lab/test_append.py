"""What is added to a kernel's command line, and what of it the modules get."""

import struct

import pytest

from vmm.lab import append
from vmm.lab.errors import LabError
from vmm.lab.initramfs import archive
from vmm.lab.kernels import modules
from vmm.lab.kernels.kernels import Kernel

LINE = 'quiet kvm.ignore_msrs=1 kvm-intel.preemption-timer=0 kvm.dyndbg="+p" kvm.ignore_msrs'


def test_words_are_separated_by_one_space():
    assert append.normal("  a.b=1   c ") == "a.b=1 c"
    assert append.normal('x="a  b"  y') == 'x="a  b" y'


@pytest.mark.parametrize("bad", ['x="a', "a\nb", "\x00", "\u00e4", "x" * 1201])
def test_what_is_no_command_line_is_refused(bad):
    with pytest.raises(LabError, match="--append"):
        append.normal(bad)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("kvm", ["ignore_msrs=1", "dyndbg=+p", "ignore_msrs"]),
        ("kvm_intel", ["preemption_timer=0"]),
        ("kvm_amd", []),
        ("irqbypass", []),
    ],
)
def test_a_module_gets_its_own_parameters_in_order(module, words):
    assert append.arguments(LINE, module) == words


def test_a_parameter_that_the_kernel_lacks_is_found_where_its_module_is_there():
    shown = {"kvm": {"ignore_msrs": "Y"}, "kvm_intel": {"preemption_timer": "N"}}
    assert append.unknown(LINE, shown) == []
    assert append.unknown("kvm.ignoremsrs=1 kvm_amd.nope=1 kvm.ignore_msrs=1", shown) == [
        "kvm.ignoremsrs"
    ]


def test_directories_of_different_lines_have_different_names():
    lines = ["", "kvm.a=1", "kvm.a=2", "kvm/a=1", "x" * 50, "x" * 51]
    assert len({append.suffix(line) for line in lines}) == len(lines)
    assert append.suffix("") == ""
    assert append.suffix("kvm.ignore_msrs=1").startswith("-kvm.ignore_msrs=1-")
    assert "/" not in append.suffix("a/../b")


@pytest.fixture
def kernel(tmp_path):
    paths = [tmp_path / f"0{n}-{name}.ko" for n, name in enumerate(("kvm", "kvm-amd", "kvm-intel"))]
    for path in paths:
        path.write_bytes(b"elf")
    return Kernel("k", "6.6", tmp_path, tuple(paths))


def test_inserted_modules_are_given_theirs_after_the_labs_own(kernel):
    line = "kvm.force_emulation_prefix=0 kvm.ignore_msrs=1 kvm_amd.nested=0 kvm_intel.ept=0"
    packed = archive.module_archive(kernel, "svm", line)
    assert b"force_emulation_prefix=1\nforce_emulation_prefix=0\nignore_msrs=1" in packed
    assert b"nested=0" in packed
    assert b"ept=0" not in packed, "the other vendor's module is not there"


@pytest.mark.parametrize(
    ("line", "signed"),
    [
        ("", False),
        ("kvm.ignore_msrs=1 lockdownx=1 x.lockdown=1 module.sig=1", False),
        ("quiet lockdown=integrity", True),
        ('"lockdown=confidentiality"', True),
        ("module.sig_enforce", True),
        ("module.sig_enforce=1 kvm.ignore_msrs=1", True),
    ],
)
def test_signatures_cost_time_and_stay_where_they_are_asked_for(kernel, line, signed):
    signature = b"SIG" + bytes(8) + struct.pack(">I", 3) + modules._SIGNATURE_MAGIC
    for path in kernel.modules:
        path.write_bytes(b"elf" + signature)
    assert (signature in archive.module_archive(kernel, "svm", line)) is signed


def test_what_the_guests_shell_would_change_is_refused(kernel):
    with pytest.raises(LabError, match="shell"):
        archive.module_archive(kernel, "svm", 'kvm.x="a b"')
