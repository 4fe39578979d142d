"""Random pages of hypercalls: what is written to Xen's MSR goes where nobody else has anything."""

from __future__ import annotations

from collections.abc import Iterable

from vmm.conformance.language import script as s
from vmm.conformance.oracle.msrs import is_unknown_to_kvm
from vmm.conformance.oracle.xen import FIRST, LAST

PAGES = 3
"""The highest number of a page that is asked for, and how many there are at most."""
PLACES = tuple(at | page for at in (s.HYPERCALL_PAGE, FIRST) for page in range(PAGES + 1))
"""What is written to the MSR: an address with memory, or without any, and the number of a page."""


def may_be_xens(index: int) -> bool:
    """Say whether every kernel takes it for the MSR, and knows no other of that number."""
    return FIRST <= index <= LAST and is_unknown_to_kvm(index)


def is_safe(script: Iterable[s.Action]) -> bool:
    """Say whether no write has KVM write over what the guest is made of."""
    msrs: set[int] = set()
    for action in script:
        if isinstance(action, s.XenHvmConfig):
            msrs.add(action.msr)
        elif not all(value in PLACES for index, value in _written(action) if index in msrs):
            return False
    return True


def _written(action: s.Action) -> Iterable[tuple[int, int]]:
    access = s.innermost(action)
    if isinstance(access, s.Wrmsr | s.SetMsr):
        yield access.index, access.value
    elif isinstance(access, s.Sweep) and access.access == "wrmsr":
        yield from ((index, access.value) for index in access.indices)
