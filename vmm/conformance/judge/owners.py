"""Whose a splat of the kernel log is: that of workers which are at a case, or of nobody here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from vmm.conformance.host.foreign import Ours, why_foreign
from vmm.conformance.host.splats import Splat
from vmm.conformance.judge.worker import Worker
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import innermost


def why_not_ours(splat: Splat, busy: Sequence[Worker]) -> str:
    """Return why a splat surely is another process's, or ""."""
    cases = [worker.case for worker in busy if worker.case]
    return why_foreign(splat, Ours(os.getpid(), _indices(cases))) or ""


def owners(splat: Splat, busy: Sequence[Worker]) -> Sequence[Worker]:
    """Return the workers that a splat names, or all that are busy."""
    return [worker for worker in busy if _is_named(worker, splat)] or busy


def _indices(cases: Sequence[Case]) -> set[int]:
    """Return the MSRs that the scripts use."""
    used = (
        getattr(innermost(each), "access", innermost(each)) for c in cases for each in c.actions
    )
    return {each.index for each in used if hasattr(each, "index")}


def _is_named(worker: Worker, splat: Splat) -> bool:
    return any(
        pid == worker.pid or Path(f"/proc/{worker.pid}/task/{pid}").exists() for pid in splat.pids
    )
