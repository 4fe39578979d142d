"""How a churn ended: as cases, and as the lines that a person reads."""

from __future__ import annotations

from dataclasses import dataclass

from vmm.conformance.churn.leak import Slope
from vmm.conformance.records.schema import CaseOutcome, CaseRecord, record_of
from vmm.conformance.records.verdict import Verdict

PASSED: CaseOutcome = {"verdict": Verdict.PASS}


@dataclass(frozen=True)
class ChurnResult:
    """How a churn ended. ``failure`` is "" when every VM went away and nothing got stuck.

    ``ended`` counts the VMs of each ending, ``skipped`` says why this host cannot do one;
    ``complaints`` are the kernel's, ``blind`` why its log could not be watched; ``interrupted``
    says that Ctrl-C ended it before its time.
    """

    seed: int
    seconds: float
    ended: dict[str, int]
    skipped: dict[str, str]
    slopes: tuple[Slope, ...]
    failure: str
    complaints: tuple[str, ...]
    blind: str
    foreign: tuple[str, ...] = ()
    interrupted: bool = False

    @property
    def conforms(self) -> bool:
        """Say whether something was done and nothing of it went wrong."""
        is_clean = not (self.failure or self.complaints or any(each.leaks for each in self.slopes))
        return is_clean and sum(self.ended.values()) > 0


def as_cases(result: ChurnResult) -> list[CaseRecord]:
    """Return the result as records of cases: one an ending, one a measurement, one if stuck."""

    def case(name: str, sentence: str, outcome: CaseOutcome = PASSED) -> CaseRecord:
        name = f"churn.{name.replace(' ', '_').replace(',', '')}"
        return record_of(name, sentence, ["R76"], outcome)

    def failed(error: str) -> CaseOutcome:
        return {"verdict": Verdict.FAIL, "error": error}

    ended = [
        case(f"ended.{name}", f"{count} VMs that ended {name} went away.")
        for name, count in result.ended.items()
        if count
    ]
    skipped = [
        case(f"ended.{name}", f"VMs go away {name}.", {"verdict": Verdict.SKIP, "reason": why})
        for name, why in result.skipped.items()
    ]
    slopes = [
        case(
            *(f"memory.{each.what}", f"The kernel keeps no memory of {each.what}."),
            failed(each.line()) if each.leaks else PASSED,
        )
        for each in result.slopes
    ]
    why = result.failure
    stuck = [case("stuck", "Every VM goes away.", failed(why))] if why else []
    return [*ended, *skipped, *slopes, *stuck]


def render(result: ChurnResult) -> str:
    """Return the result as the lines that a person reads."""
    verdict = "nothing was lost" if result.conforms else "FAILED"
    if not sum(result.ended.values()) and not result.failure:
        verdict = "nothing was done"
    verdict = f"interrupted: {verdict}" if result.interrupted else verdict
    lines = [f"churn: {verdict}, {sum(result.ended.values())} VMs in {result.seconds:.1f} s"]
    lines += [f"  {count:6} ended {name}" for name, count in result.ended.items()]
    lines += [f"    SKIP ended {name}: {why}" for name, why in result.skipped.items()]
    lines += [f"  {each.line()}" for each in result.slopes]
    lines += [f"  STUCK {result.failure}"] if result.failure else []
    lines += [f"  the kernel: {each}" for each in result.complaints]
    lines += [f"  foreign, and no matter here: {each}" for each in result.foreign]
    lines += [f"  the kernel log was not watched: {result.blind}"] if result.blind else []
    return "\n".join([*lines, f"  seed {result.seed}"])
