"""What a run amounts to: counts, fingerprint and exit status, from its case records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from vmm.conformance.records.schema import CaseRecord, EndRecord, Upshot
from vmm.conformance.records.status import Status
from vmm.conformance.records.verdict import Verdict

WORST = (
    *(Verdict.FAIL, Verdict.TIMEOUT, Verdict.UNSTEADY, Verdict.ERROR),
    *(Verdict.XFAIL, Verdict.XPASS, Verdict.PASS, Verdict.SKIP),
)
"""What a requirement is called whose cases had several verdicts: the first of these."""
REFUSED = "msr:"
"""How the ``need`` of a case begins whose MSR this host refuses, filtered or not."""


def end_record(
    cases: Sequence[CaseRecord],
    seconds: float,
    *,
    splats: Sequence[Sequence[str]] = (),
    foreign: Sequence[str] = (),
    lost: int = 0,
    interrupted: bool = False,
    trouble: bool = False,
) -> EndRecord:
    """Return the ``end`` record (see ``records.schema``) of a run that left ``cases``.

    ``splats`` fell in no case, ``foreign`` ones are others' and change no status; ``trouble`` says
    that the harness itself could not go on.
    """
    counts = count(cases)
    status = _status(counts, bool(splats), interrupted, trouble)
    return {
        "type": "end",
        "counts": counts,
        "seconds": round(seconds, 3),
        "interrupted": interrupted,
        "status": status,
        "fingerprint": fingerprint(cases),
        "splats": [list(lines) for lines in splats],
        "foreign": list(foreign),
        "lost": lost,
        "broken": broken(cases),
    }


def count(cases: Iterable[CaseRecord]) -> dict[str, int]:
    """Return how many cases had each verdict.

    A passed ``observe`` case counts as "observed", and as "refused" one whose point was not reached
    since this host refuses its MSR (``oracle.refused``).
    """
    return dict(Counter(_column(case) for case in cases))


def fingerprint(cases: Iterable[CaseRecord]) -> str:
    """Return 12 hex digits over all observations: equal where kernels show the same quirks.

    The order of the cases does not matter; without observations it is "".
    """
    lines = sorted(f"{case['id']} {case['observation']}" for case in cases if "observation" in case)
    if not lines:
        return ""
    import hashlib

    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def by_requirement(cases: Iterable[CaseRecord]) -> dict[str, Verdict]:
    """Return what is known of each requirement by the cases of a run: the worst of their verdicts.

    A case that did not go as it should speaks for the requirement that it is about, its first, and
    says nothing of the others that it touches; one that did speaks for all. Observations say
    nothing of any.
    """
    found: dict[str, list[Verdict]] = {}
    for case in cases:
        if "observation" not in case:
            verdict, names = case["verdict"], case["requirements"]
            for name in names if verdict.is_good else names[:1]:
                found.setdefault(name, []).append(verdict)
    return {name: min(verdicts, key=WORST.index) for name, verdicts in found.items()}


def broken(cases: Iterable[CaseRecord]) -> list[str]:
    """Return the requirements that the kernel does not keep, by the cases that are about them."""
    verdicts = by_requirement(cases)
    return sorted(name for name, verdict in verdicts.items() if verdict.is_violation)


def of_a_program(case: Upshot) -> Verdict:
    """Return what a C program says where msrward says this: it knows no refused MSRs."""
    return Verdict.PASS if _column(case) == "refused" else case["verdict"]


def _column(case: Upshot) -> str:
    if case["verdict"] is Verdict.PASS and "observation" in case:
        return "observed"
    is_refused = case["verdict"] is Verdict.SKIP and case.get("need", "").startswith(REFUSED)
    return "refused" if is_refused else str(case["verdict"])


def _status(counts: dict[str, int], splats: bool, interrupted: bool, trouble: bool) -> Status:
    if interrupted:
        return Status.INTERRUPTED
    if trouble:
        return Status.TROUBLE
    if splats or any(counts.get(verdict) for verdict in Verdict if verdict.is_violation):
        return Status.VIOLATES
    if any(counts.get(verdict) for verdict in Verdict if verdict.is_bad):
        return Status.TROUBLE
    return Status.CONFORMS if set(counts) - {Verdict.SKIP, "refused"} else Status.UNTESTED
