"""The catalogue: every case, by theme. A new theme is one more name in the tuple below."""

from __future__ import annotations

from vmm.conformance.case import Case
from vmm.conformance.cases import (
    bitmaps,
    callers,
    compat,
    completion,
    emulated,
    exits,
    fastpath,
    installers,
    locks,
    masks,
    matching,
    overtaken,
    parked,
    passthrough,
    plumbing,
    quirks,
    reentry,
    rollback,
    running,
    scope,
    slots,
    stalled,
    teardown,
    validation,
    vcpus,
    x2apic,
)

THEMES = (
    plumbing,
    validation,
    rollback,
    matching,
    slots,
    bitmaps,
    scope,
    x2apic,
    masks,
    exits,
    completion,
    reentry,
    emulated,
    passthrough,
    fastpath,
    vcpus,
    callers,
    compat,
    stalled,
    locks,
    overtaken,
    installers,
    parked,
    running,
    teardown,
    quirks,
)

CASES: tuple[Case, ...] = tuple(case for theme in THEMES for case in theme.CASES)
