"""What one check of the doctor found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from vmm.conformance.records.verdict import Verdict


class Health(StrEnum):
    """What a check says of this host; WARN: something is not tested."""

    PASS = Verdict.PASS
    WARN = "WARN"
    FAIL = Verdict.FAIL


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What one check found: the verdict, the fact, and what to do about it."""

    verdict: Health
    fact: str
    remedy: str = ""
