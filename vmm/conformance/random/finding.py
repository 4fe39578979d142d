"""What fuzz finds: a script on which the Model and a kernel differ, as text, record and case."""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from vmm.conformance.language import codec
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import Script, Trace, first_difference, steps
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.spoiled import NEED
from vmm.conformance.records.schema import CaseOutcome, CaseRecord, Found, record_of
from vmm.conformance.records.verdict import Verdict

TRIES = 20
"""How often a shrunk script is run again before its finding is called unsteady."""

PASTE = """\
# For a module of vmm/conformance/cases/: name it, and name what it checks. It uses names of
# vmm.conformance.language.script, vmm.filter, vmm.exits, vmm.msr and errno.
"""


@dataclass(frozen=True)
class Finding:
    """A script on which prediction and kernel differ; ``step`` counts from 0."""

    script: Script
    expected: Trace
    seen: Trace
    step: int
    rerun: str = ""
    is_steady: bool = True
    needs: tuple[str, ...] = ()

    @property
    def case(self) -> Case:
        """Return the finding as a case, which fails on this kernel."""
        by = f"Found by '{self.rerun}': " if self.rerun else ""
        sentence = f"{by}step {self.step + 1} is not as the Model has it."
        return Case("fuzz.found", sentence, "", self.script, self.expected, self.needs)

    def __str__(self) -> str:
        """Return what differs, how to see it again, and the case as code."""
        action = repr(self.script[self.step]) if self.step < len(self.script) else "end of script"
        lines = [
            f"step {self.step + 1} of {len(self.script)}: {action}",
            f"  expected: {_shown(self.script, self.expected, self.step)}",
            f"  seen:     {_shown(self.script, self.seen, self.step)}",
            *([f"  rerun:    {self.rerun}"] if self.rerun else []),
            *([] if self.is_steady else [f"  not again in {TRIES} more runs of it"]),
        ]
        return "\n".join([*lines, "", PASTE + code(self.case)])


class Drawn(NamedTuple):
    """The call that drew a script."""

    seed: int
    examples: int
    bulk: bool = False

    @property
    def words(self) -> str:
        """What follows ``fuzz`` in the command that draws it again."""
        return f"{'--bulk ' * self.bulk}--seed {self.seed} --examples {self.examples}"


def document(found: Finding, drawn: Drawn) -> Found:
    """Return a finding as the ``found`` of a case's record."""
    seen = replace(found.case, trace=found.seen)
    text = json.dumps(json.loads(codec.dump(seen)))
    return {
        "case": text,
        "seed": drawn.seed,
        "examples": drawn.examples,
        "bulk": drawn.bulk,
        "steady": found.is_steady,
    }


def drawn_of(claim: Found) -> Drawn:
    """Return the call that a ``found`` names."""
    return Drawn(claim["seed"], claim["examples"], claim["bulk"])


def finding_of(claim: Found, command: str) -> Finding | None:
    """Return the finding of a ``found`` that anybody wrote, as the Model of today has it.

    None where the Model predicts the trace. ``command`` is what draws it again, but for the words
    of the call. ValueError says why the document is none.
    """
    case = codec.load(claim["case"])
    if case.observes:
        raise ValueError("a finding without a trace")
    model = Model(ignore_msrs=NEED in case.needs)
    expected = model.predict(case.actions)
    step = first_difference(case.actions, expected, case.expected)
    if step is None:
        return None
    seen = (case.actions, expected, case.expected, step)
    rerun = f"{command} {drawn_of(claim).words}"
    return Finding(*seen, rerun, claim["steady"], case.needs)


def as_case(
    found: Finding | None, examples: int, file: Path | None = None, drawn: Drawn | None = None
) -> CaseRecord:
    """Return what came of so many examples as a case's record; ``file`` has it as JSON."""
    if found is None:
        sentence = f"{examples} random scripts leave what the Model predicts."
        return record_of("fuzz.found", sentence, [], {"verdict": Verdict.PASS})
    end = found.step >= len(found.script)
    expected, seen = (
        [repr(each) for each in cut[found.step]] if found.step < len(cut) else []
        for cut in (steps(found.script, found.expected), steps(found.script, found.seen))
    )
    outcome: CaseOutcome = {
        "verdict": Verdict.FAIL,
        "step": found.step + 1,
        "action": "end of script" if end else repr(found.script[found.step]),
        "expected": expected,
        "seen": seen,
        "trace": [repr(each) for each in found.seen],
    }
    record = record_of("fuzz.found", found.case.sentence, [], outcome)
    record["script"] = [repr(each) for each in found.script]
    if file:
        record["file"] = str(file)
    if drawn:
        record["found"] = document(found, drawn)
    return record


def code(case: Case) -> str:
    """Return the case as the Python that makes it, ready for a module of ``cases/``."""
    lines = textwrap.wrap(case.sentence, 90, drop_whitespace=False, break_on_hyphens=False)
    sentence = "\n    ".join(_quoted(line) for line in lines or [""])
    trace = "OBSERVE" if case.observes else _listed(case.expected)
    needs = f"\n    needs={case.needs!r}," if case.needs else ""
    return (
        f"Case(\n    {_quoted(case.id)},\n    {sentence},\n    {_quoted(case.checks)},\n"
        f"    script={_listed(case.actions)},\n    trace={trace},{needs}\n)"
    )


def _shown(script: Script, trace: Trace, number: int) -> str:
    cut = steps(script, trace)
    return ", ".join(map(repr, cut[number])) if number < len(cut) else "nothing"


def _listed(words: Script | Trace) -> str:
    return "[" + "".join([f"\n        {word!r}," for word in words]) + "\n    ]" if words else "[]"


def _quoted(text: str) -> str:
    return json.dumps(text)
