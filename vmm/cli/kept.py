"""Records of what is no run of cases: stress, churn and fuzz keep theirs as ``check`` does."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from vmm.conformance.records.schema import Record


def keep(
    directory: Path,
    cases: Sequence[Record],
    seconds: float,
    *,
    complaints: Sequence[str] = (),
    foreign: Sequence[str] = (),
    blind: str = "",
) -> None:
    """Write a run of ``cases`` that has just ended, after ``seconds``, to a directory.

    ``complaints`` are the kernel's, and splats of the run; ``blind`` is why its log was not
    watched. ResultsError says why it cannot be kept.
    """
    from vmm.conformance.cases import CASES
    from vmm.conformance.host.facts import facts
    from vmm.conformance.judge.check import kvm_capabilities
    from vmm.conformance.records.results import Results
    from vmm.conformance.records.summary import end_record

    here = {"hostname": os.uname().nodename, "capabilities": kvm_capabilities()}
    number = len(cases)
    run: Record = {"type": "run", "started": round(time.time() - seconds, 3), "cases": number}
    run |= {
        "catalogue": number + len(CASES),
        "resumed": 0,
        "jobs": 1,
        "kernel_log": blind or "watched",
    }
    splats = [text.splitlines() for text in complaints]
    end = end_record(cases, seconds, splats=splats, foreign=foreign)
    with Results(directory, {**facts(), **here}) as results:
        for record in (run, *cases, end):
            results.write(record)
