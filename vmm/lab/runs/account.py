"""What a boot in the lab took and how it ended, as the records of a run tell it."""

from __future__ import annotations

from vmm.conformance.records.schema import LabRecord
from vmm.lab.machines.machine import LabResult


def account(result: LabResult, *, whole: bool) -> LabRecord:
    """Return the ``lab`` of an end; with the console's end, unless the run is ``whole``."""
    boot = result.boot_seconds
    told: LabRecord = {
        "outcome": result.outcome,
        "reason": result.reason,
        "attempts": result.attempts,
        "boot_seconds": rounded(boot),
        "suite_seconds": rounded(None if boot is None else result.total_seconds - boot),
        "total_seconds": rounded(result.total_seconds),
    }
    if not whole:
        told["console"] = list(result.console_tail)
    return told


def rounded(seconds: float | None) -> float | None:
    """Return seconds as they are recorded; None where they are not known."""
    return None if seconds is None else round(seconds, 2)
