"""The parameters of kvm.ko that change what a guest sees, read and (in the lab's guest alone) set.

``ignore_msrs``: Documentation/admin-guide/kernel-parameters.txt; it may change at any time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

IGNORE_MSRS = Path("/sys/module/kvm/parameters/ignore_msrs")
OWN_GUEST = "MSRWARD_OWN_GUEST"
"""Set in a guest of the lab: the machine is there for this run, and its parameters are ours."""


def ignores_msrs() -> bool:
    """Say whether accesses of MSRs that KVM does not know succeed now; no where it cannot tell."""
    try:
        return IGNORE_MSRS.read_text().strip() in ("Y", "1")
    except OSError:
        return False


def may_set() -> bool:
    """Say whether this machine's parameters are ours to set."""
    return bool(os.environ.get(OWN_GUEST)) and os.access(IGNORE_MSRS, os.W_OK)


@contextmanager
def ignoring_msrs() -> Iterator[None]:
    """Turn ``ignore_msrs`` on for a while, for every VM of this machine; OSError if it cannot."""
    before = IGNORE_MSRS.read_text()
    IGNORE_MSRS.write_text("1")
    try:
        yield
    finally:
        IGNORE_MSRS.write_text(before)
