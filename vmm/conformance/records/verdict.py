"""The verdicts on a case."""

from __future__ import annotations

from enum import StrEnum


class Verdict(StrEnum):
    """What became of a case: its member's text is what the records hold.

    XFAIL failed as it was known to, XPASS was to fail and passed; ERROR is of the harness; UNSTEADY
    failed, and did not when it was judged once more.
    """

    PASS = "PASS"
    FAIL = "FAIL"
    SKIP = "SKIP"
    XFAIL = "XFAIL"
    XPASS = "XPASS"
    ERROR = "ERROR"
    TIMEOUT = "TIMEOUT"
    UNSTEADY = "UNSTEADY"

    @property
    def is_bad(self) -> bool:
        """Whether somebody must look at the case: FAIL, TIMEOUT, ERROR, UNSTEADY."""
        return self in _BAD

    @property
    def is_good(self) -> bool:
        """Whether the case found nothing wrong: PASS, XPASS, and SKIP, which found nothing."""
        return self in _GOOD

    @property
    def is_violation(self) -> bool:
        """Whether the kernel is to blame: FAIL, TIMEOUT."""
        return self in _VIOLATION

    @property
    def expected(self) -> Verdict:
        """The verdict where a failure was expected: XFAIL for FAIL, XPASS for PASS."""
        return _EXPECTED.get(self, self)


_BAD = frozenset({Verdict.FAIL, Verdict.TIMEOUT, Verdict.ERROR, Verdict.UNSTEADY})
_GOOD = frozenset({Verdict.PASS, Verdict.SKIP, Verdict.XPASS})
_VIOLATION = frozenset({Verdict.FAIL, Verdict.TIMEOUT})
_EXPECTED = {Verdict.FAIL: Verdict.XFAIL, Verdict.PASS: Verdict.XPASS}
