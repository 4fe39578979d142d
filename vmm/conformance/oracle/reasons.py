"""Which requirement decides a step: for a person whose expectation the contract contradicts."""

from __future__ import annotations

from collections.abc import Iterator

from vmm.conformance.language import script as s
from vmm.conformance.language.case import Case
from vmm.conformance.oracle.filters import NO_FILTER, Installed
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.state import VmState
from vmm.filter import READ, WRITE, MsrFilter
from vmm.msr import MsrExitReason


def contradicts(case: Case, seen: s.Trace, model: Model) -> tuple[int, tuple[str, ...]] | None:
    """Return the first step (from 0) that is not as ``case`` expects, and what decides it.

    None unless the Model, which knows the contract alone, agrees with all that was seen: then the
    kernel is right, and what the case expects is wrong. The requirements may be none.
    """
    predicted = model.predict(case.actions)
    if s.first_difference(case.actions, predicted, seen) is not None:
        return None
    at = s.first_difference(case.actions, case.expected, seen)
    if at is None:
        return None
    if at >= len(case.actions):
        return at, ()
    vm = model.new_vm(case.actions)
    for action in case.actions[:at]:
        model.step(vm, action)
    return at, tuple(dict.fromkeys(_deciding(model, vm, s.innermost(case.actions[at]))))


def _deciding(model: Model, vm: VmState, action: s.Action) -> Iterator[str]:
    match action:
        case s.Install():
            yield from _of_install(model, action.filter)
        case s.EnableCap():
            yield "R43" if model.masks.mask_is_invalid(model.masks.mask_argument(action)) else "R44"
        case s.Rdmsr() | s.Wrmsr():
            yield from _of_access(model, vm, action)


def _of_install(model: Model, new: MsrFilter) -> Iterator[str]:
    """R06 to R13; a filter with nothing wrong replaces the one before it, R16."""
    rules = model.filters
    if not rules.errors(new):
        yield "R16"
    if rules.filter_flags_are_invalid(new.flags):
        yield "R06"
    if rules.denies_all(new):
        yield "R12"
    for range_ in (each for each in new.ranges if not rules.is_skipped(each)):
        if rules.size_is_invalid(range_.nmsrs):
            yield "R09"
        elif rules.range_flags_are_invalid(range_.flags):
            yield "R08" if range_.flags == 0 else "R07"
        elif rules.copy_errors(range_.nmsrs, range_.bitmap):
            yield "R10"


def _of_access(model: Model, vm: VmState, access: s.Access) -> Iterator[str]:
    if not model.accesses.is_privileged(access):
        yield "R59"
        return
    kind = READ if isinstance(access, s.Rdmsr) else WRITE
    filter_ = model.filter_of(vm, access.vcpu)
    yield _of_filter(model, filter_, access.index & 0xFFFF_FFFF, kind)
    if model.allowed(vm, access) is False and not model.masks.is_told(
        vm.mask, MsrExitReason.FILTER
    ):
        yield "R50"


def _of_filter(model: Model, filter_: Installed | None, index: int, kind: int) -> str:
    rules = model.filters
    if rules.is_exempt(index):
        return "R30"
    if filter_ is None:
        return "R70"
    for held in rules.in_order(filter_.ranges):
        if rules.covers(held, index, kind):
            return "R25" if rules.wraps(held) else "R19"
    if filter_ == NO_FILTER:
        return "R26"
    return "R17" if filter_.default_allows else "R18"
