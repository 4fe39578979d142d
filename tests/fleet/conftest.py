"""What the tests of the engines share: the files, and a run with results of every kind."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vmm.conformance.cases import CASES
from vmm.conformance.language import codec
from vmm.conformance.language.script import got

PASSES, OBSERVES, LACKS = (
    *("plumbing.capability_msr_filter", "quirks.short_bitmap_of_1_at_the_edge"),
    "levels.read_ia32_tsc",
)


@pytest.fixture(scope="session")
def files():
    """Return the directory of what is to be copied."""
    return Path(__file__).parents[2] / "scripts" / "fleet"


@pytest.fixture
def check(tmp_path, has_kvm):
    """Return words for ``msrward check`` that leave PASS, SKIP, XPASS, ERROR and an observation."""
    case = next(each for each in CASES if each.id == PASSES)
    file = tmp_path / "wrong.json"
    file.write_text(codec.dump(replace(case, id="saved.wrong", trace=[got(9), got(9)])))
    return f"plumbing.* {OBSERVES} {LACKS} {file} --xfail {PASSES}"


@pytest.fixture
def environ(tmp_path):
    """Return an environment that has this msrward, and in which nothing nests."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "MSRWARD_LACKS": f"nested={WHY}",
    }


WHY = "this is only a test"
