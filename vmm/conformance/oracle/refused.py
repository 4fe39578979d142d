"""Whether a case got to its point: an MSR that is refused, filtered or not, shows little of R72."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from vmm.conformance.language.case import Case
from vmm.conformance.language.script import (
    Access,
    Fault,
    RdmsrExit,
    Spin,
    Step,
    Trace,
    WrmsrExit,
    steps,
    unfiltered,
)
from vmm.conformance.oracle.msrs import is_unknown_to_kvm
from vmm.msr import FILTER

PASSED_THROUGH = "R72"
"""The requirement that is about MSRs which hardware passes through."""


def refused_here(case: Case, seen: Trace, alone: Callable[[Access], Step]) -> tuple[int, ...]:
    """Return the MSRs of a case on R72 that this host refuses whatever the filter says.

    What the case lets through (it expects ``unfiltered``, or sends a vCPU into a loop) must be
    refused each time, or nothing is returned: one access that is not refused is a point.
    ``alone`` gives what an access leaves in a VM without a filter: of a loop no trace tells.
    """
    if PASSED_THROUGH not in case.requirements:
        return ()
    indices = []
    for access, step in _let_through(case, seen, alone):
        if not _is_refused(step):
            return ()
        indices.append(access.index)
    return tuple(dict.fromkeys(indices))


def asked_alone(case: Case) -> tuple[Access, ...]:
    """Return the accesses whose outcome alone ``refused_here`` may ask for."""
    if case.observes or PASSED_THROUGH not in case.requirements:
        return ()
    spun = (action.access for action in case.actions if isinstance(action, Spin))
    asked = (_alone(access) for access in spun if not is_unknown_to_kvm(access.index))
    return tuple(dict.fromkeys(asked))


def _alone(access: Access) -> Access:
    return replace(access, vcpu=0)


def _let_through(
    case: Case, seen: Trace, alone: Callable[[Access], Step]
) -> Iterator[tuple[Access, Step]]:
    wants, haves = (steps(case.actions, trace) for trace in (case.expected, seen))
    for action, want, have in zip(case.actions, wants, haves, strict=True):
        access = action.access if isinstance(action, Spin) else action
        if not isinstance(access, Access) or is_unknown_to_kvm(access.index):
            continue
        if isinstance(action, Spin):
            yield access, alone(_alone(access))
        elif want == (unfiltered,):
            yield access, have


def _is_refused(step: Step) -> bool:
    exits = [event for event in step if isinstance(event, RdmsrExit | WrmsrExit)]
    return isinstance(step[-1], Fault) or any(each.reason != FILTER for each in exits)
