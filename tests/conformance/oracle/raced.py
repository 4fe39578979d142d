"""What the Model predicts of races round one pair of filters."""

from __future__ import annotations

from collections.abc import Sequence

from predicted import X, Y, Z, predict

from vmm.conformance.language import script as s
from vmm.conformance.language.script import done, enable_exits, install, rdmsr
from vmm.filter import MsrFilter, MsrRange, Pointer, default_allow, default_deny
from vmm.msr import FILTER, UNKNOWN

OLD = default_allow().deny(X).allow(Y)
NEW = default_deny().allow(X).deny(Y)
TELL = enable_exits(FILTER | UNKNOWN)
BAD_FLAGS = MsrRange(8, Z, 1, b"\x00")
BAD_SIZE = MsrRange(3, Z, 0x3001, b"\x00")
UNREADABLE = MsrRange(3, Z, 1, Pointer.UNMAPPED)


def after(*script: s.Action) -> s.Trace:
    """Return what ``script`` leaves after the mask is set and ``OLD`` is installed."""
    trace = predict(TELL, install(OLD), *script)
    assert trace[:2] == (done, done)
    return trace[2:]


def denies(*script: s.Action, vcpu: int = 0, msrs: Sequence[int] = (X, Y, Z)) -> list[bool | None]:
    """Say which of ``msrs`` are denied after ``script``; None where the Model does not know."""
    probes = [rdmsr(each, vcpu=vcpu) for each in msrs]
    words = (TELL, install(OLD), *script)
    cut = s.steps((*words, *probes), predict(*words, *probes))[len(words) :]
    reasons = [getattr(each[0], "reason", None) for each in cut]
    return [None if reason is None else reason is FILTER for reason in reasons]


OLD_IS_IN_FORCE, NEW_IS_IN_FORCE = [True, False, False], [False, True, True]


def with_bad(bad: MsrRange, at: int) -> MsrFilter:
    ranges = [MsrRange(3, X + each, 1, b"\x01") for each in range(4)]
    ranges[at] = bad
    return MsrFilter(1, tuple(ranges))
