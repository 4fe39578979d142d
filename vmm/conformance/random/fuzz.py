"""Differential testing: random scripts, the Model against the kernel, shrunk to what matters.

What the Model predicts is the pattern, what the kernel leaves is held against it; the first script
on which they differ is shrunk and comes out as a case that can be pasted into ``cases/``. A seed
makes the same scripts everywhere. ``tests/conformance/random/test_fuzz.py`` lets Hypothesis draw
them too.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

from vmm.conformance.host.parameters import ignores_msrs
from vmm.conformance.language import codec
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import Script, Trace, first_difference, steps
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.spoiled import NEED
from vmm.conformance.random.levels import Levels
from vmm.conformance.random.scripts import random_script
from vmm.conformance.random.shrink import shrink
from vmm.conformance.records.schema import Record
from vmm.conformance.records.status import Status
from vmm.conformance.records.verdict import Verdict

EXAMPLES = 1000
TRIES = 20
"""How often a shrunk script is run again before its finding is called unsteady."""

PASTE = """\
# For a module of vmm/conformance/cases/: name it, and name what it checks. It uses names of
# vmm.conformance.language.script, vmm.filter, vmm.exits, vmm.msr and errno.
"""


class Witness(Protocol):
    """What runs a script and tells what it saw, as ``KvmBackend`` does."""

    def run(self, script: Script, *, expected: Trace | None = None) -> Trace:
        """Return the trace that ``script`` left; see ``KvmBackend.run`` for ``expected``."""


class Host(Witness, Protocol):
    """A witness that knows what its host lacks, as ``KvmBackend`` does."""

    def lacks(self, need: str) -> str | None:
        """Return why the host does not have ``need``, or None."""


class Oracle(Protocol):
    """What says which trace a script must leave, as ``Model`` does."""

    def predict(self, script: Script) -> Trace:
        """Return the trace as a pattern."""


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


def document(found: Finding, drawn: Drawn) -> Record:
    """Return a finding as the ``found`` of a case's record."""
    import json

    seen = replace(found.case, trace=found.seen)
    text = json.dumps(json.loads(codec.dump(seen)))
    return {"case": text, **drawn._asdict(), "steady": found.is_steady}


def drawn_of(claim: Record) -> Drawn:
    """Return the call that a ``found`` names."""
    return Drawn(claim["seed"], claim["examples"], claim["bulk"])


def finding_of(claim: Record, command: str) -> Finding | None:
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
) -> Record:
    """Return what came of so many examples as a case's record; ``file`` has it as JSON."""
    record: Record = {"type": "case", "id": "fuzz.found", "requirements": [], "ms": 0.0}
    if found is None:
        sentence = f"{examples} random scripts leave what the Model predicts."
        return {**record, "sentence": sentence, "verdict": Verdict.PASS}
    end = found.step >= len(found.script)
    expected, seen = (
        [repr(each) for each in cut[found.step]] if found.step < len(cut) else []
        for cut in (steps(found.script, found.expected), steps(found.script, found.seen))
    )
    return {
        **record,
        **{"sentence": found.case.sentence, "verdict": Verdict.FAIL, "step": found.step + 1},
        "action": "end of script" if end else repr(found.script[found.step]),
        **{"expected": expected, "seen": seen, "trace": [repr(each) for each in found.seen]},
        "script": [repr(each) for each in found.script],
        **({"file": str(file)} if file else {}),
        **({"found": document(found, drawn)} if drawn else {}),
    }


def compare(backend: Witness, script: Script, model: Oracle | None = None) -> Finding | None:
    """Return where ``backend`` and ``model`` (the Model, unless given) differ on ``script``."""
    expected = (model or Model()).predict(script)
    seen = backend.run(script, expected=expected)
    step = first_difference(script, expected, seen)
    return None if step is None else Finding(script, expected, seen, step)


def shrunk(finding: Finding, backend: Witness, model: Oracle | None = None) -> Finding:
    """Return a finding as small as can be made of this one, unsteady if it does not come again."""
    latest = finding

    def differs(script: Script) -> bool:
        nonlocal latest
        found = compare(backend, script, model)
        latest = found or latest
        return found is not None

    smallest = shrink(finding.script, differs)
    is_steady = any(differs(smallest) for _ in range(TRIES))
    return Finding(latest.script, latest.expected, latest.seen, latest.step, is_steady=is_steady)


def fuzz(
    backend: Witness,
    seed: int,
    examples: int = EXAMPLES,
    *,
    model: Oracle | None = None,
    vcpus: int = 2,
    levels: Levels = "",
    upper_rcx: bool = True,
) -> Finding | None:
    """Return the first script, shrunk, on which ``backend`` is not as ``model`` says, or None.

    ``model`` is the Model itself unless a test gives one that errs.
    """
    from random import Random

    below = Random(seed).randrange
    for _ in range(examples):
        script = random_script(below, vcpus, levels=levels, upper_rcx=upper_rcx)
        found = compare(backend, script, model)
        if found:
            rerun = f"msrward fuzz --seed {seed} --examples {examples}"
            return replace(shrunk(found, backend, model), rerun=rerun)
    return None


def run(
    backend: Host,
    seed: int | None = None,
    examples: int = EXAMPLES,
    say: Callable[[str], None] = print,
    *,
    on_found: Callable[[Finding], None] | None = None,
) -> Status:
    """Fuzz this host's kernel, tell ``say`` the seed and the outcome, and return an exit status.

    CONFORMS: all examples were as predicted; VIOLATES: one was not. Where
    ``kvm.ignore_msrs`` is 1 the Model is told so. ``on_found`` gets what was found.
    """
    seed = random_seed() if seed is None else seed
    say(f"fuzzing with --seed {seed} --examples {examples}")
    vcpus, ignoring = 1 if backend.lacks("vcpus") else 2, ignores_msrs()
    model, levels = Model(ignore_msrs=ignoring), levels_of(backend)
    upper = not backend.lacks("upper_rcx")
    found = fuzz(
        *(backend, seed, examples), model=model, vcpus=vcpus, levels=levels, upper_rcx=upper
    )
    if found and ignoring:
        found = replace(found, needs=(NEED,))
    if found and on_found:
        on_found(found)
    say(str(found) if found else f"{examples} scripts: the kernel did what the Model predicted")
    return Status.of(found is not None)


def levels_of(backend: Host) -> Levels:
    """Return whose extensions the guests of this host have."""
    if backend.lacks("nested_svm") is None:
        return "svm"
    return "vmx" if backend.lacks("nested_vmx") is None else ""


def random_seed() -> int:
    """Return a seed that nobody chose."""
    import secrets

    return secrets.randbelow(1 << 32)


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
    import json

    return json.dumps(text)
