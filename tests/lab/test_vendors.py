"""One row a vendor: what is elsewhere said of vendors is said by these rows alone."""

import re
from pathlib import Path

import pytest

from vmm.lab import vendors
from vmm.lab.errors import LabError

ROOT = Path(vendors.__file__).parents[1]
OTHERS = {*ROOT.glob("lab/**/*.py"), *ROOT.glob("cli/**/*.py")} - {Path(vendors.__file__)}


def test_a_row_is_found_by_its_name():
    assert vendors.of("svm-nrips").emulator == "bochs"
    with pytest.raises(LabError, match="choose one of svm, vmx, svm-nrips"):
        vendors.of("arm")


def test_no_other_module_of_the_lab_has_a_vendor_of_its_own():
    told = re.compile(r'"(kvm_amd|kvm_intel|vmx|svm-nrips)"')
    assert len(OTHERS) > 20
    assert not [path.name for path in OTHERS if told.search(path.read_text())]
