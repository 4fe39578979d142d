"""Differential testing: random scripts, the Model against the kernel, shrunk to what matters.

What the Model predicts is the pattern, what the kernel leaves is held against it; the first script
on which they differ is shrunk and comes out as a case that can be pasted into ``cases/``. A seed
makes the same scripts everywhere. ``tests/conformance/random/test_fuzz.py`` lets Hypothesis draw
them too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from shlex import quote
from typing import Protocol

from vmm.conformance.host.parameters import ignores_msrs
from vmm.conformance.language.script import XEN_INTERCEPT, Script, Trace, first_difference
from vmm.conformance.language.soundness import is_sound
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.spoiled import NEED
from vmm.conformance.random.corpus import Corpus
from vmm.conformance.random.finding import TRIES, Finding
from vmm.conformance.random.gate import Gate
from vmm.conformance.random.levels import Levels
from vmm.conformance.random.mutation import Below, mutated
from vmm.conformance.random.scripts import random_script
from vmm.conformance.random.shrink import shrink
from vmm.conformance.records.status import Status

EXAMPLES = 1000


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


def compare(
    backend: Witness,
    script: Script,
    model: Oracle | None = None,
    note: Callable[[Script, Trace], object] = lambda *_: None,
) -> Finding | None:
    """Return where ``backend`` and ``model`` (the Model, unless given) differ on ``script``.

    ``note`` is told what was seen.
    """
    expected = (model or Model()).predict(script)
    seen = backend.run(script, expected=expected)
    note(script, seen)
    step = first_difference(script, expected, seen)
    return None if step is None else Finding(script, expected, seen, step)


def shrunk(
    finding: Finding,
    backend: Witness,
    model: Oracle | None = None,
    lets: Callable[[Script], bool] = is_sound,
) -> Finding:
    """Return a finding as small as can be made of this one, unsteady if it does not come again.

    No script is run that the gate, ``lets``, keeps from the host: a smaller one may differ for
    what it lacks, and not for what was found.
    """
    latest = finding

    def differs(script: Script) -> bool:
        nonlocal latest
        found = compare(backend, script, model)
        latest = found or latest
        return found is not None

    smallest = shrink(finding.script, lambda script: lets(script) and differs(script))
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
    clean: bool = False,
    xen: Sequence[int] = (),
    smm: bool = False,
    corpus: Corpus | None = None,
    lacks: Callable[[str], str | None] = lambda _: None,
) -> Finding | None:
    """Return the first script, shrunk, on which ``backend`` is not as ``model`` says, or None.

    ``model`` is the Model itself unless a test gives one that errs; ``lacks`` says what the host
    does not have, and a script shrinks to none that fuzz itself may not run. The scripts of the
    ``corpus`` come first, then every second is made of those; without one the seed alone decides.
    """
    from random import Random

    below = Random(seed).randrange
    note = corpus.note if corpus else lambda *_: None
    for _ in range(examples):
        script = _old_or_made(below, corpus) if corpus else None
        script = script or random_script(
            *(below, vcpus),
            levels=levels,
            upper_rcx=upper_rcx,
            clean=clean,
            xen=xen,
            smm=smm,
        )
        found = compare(backend, script, model, note)
        if found:
            rerun = f"msrward fuzz --seed {seed} --examples {examples}"
            rerun += f" --corpus {quote(str(corpus.directory))}" if corpus else ""
            lets = Gate(vcpus, levels, lacks).lets
            return replace(shrunk(found, backend, model, lets), rerun=rerun)
    return None


def _old_or_made(below: Below, corpus: Corpus) -> Script | None:
    """Return a script of the corpus that has not run yet, or one that is made of such; or None."""
    if corpus.waiting:
        return corpus.waiting.pop(0)
    make = corpus.scripts and below(2)
    return mutated(below, corpus.scripts, corpus.lets) if make else None


def run(
    backend: Host,
    seed: int | None = None,
    examples: int = EXAMPLES,
    say: Callable[[str], None] = print,
    *,
    on_found: Callable[[Finding], None] | None = None,
    corpus: Corpus | None = None,
) -> Status:
    """Fuzz this host's kernel, tell ``say`` the seed and the outcome, and return an exit status.

    CONFORMS: all examples were as predicted; VIOLATES: one was not. Where
    ``kvm.ignore_msrs`` is 1 the Model is told so. ``on_found`` gets what was found.
    """
    seed = random_seed() if seed is None else seed
    start = f", from {len(corpus.scripts)} scripts of {corpus.directory}" if corpus else ""
    say(f"fuzzing with --seed {seed} --examples {examples}{start}")
    ignoring = ignores_msrs()
    found = fuzz(
        *(backend, seed, examples),
        model=Model(ignore_msrs=ignoring),
        vcpus=vcpus_of(backend),
        levels=levels_of(backend),
        upper_rcx=not backend.lacks("upper_rcx"),
        clean=not backend.lacks("clean_bitmap"),
        xen=xen_of(backend),
        smm=not backend.lacks("smm"),
        corpus=corpus,
        lacks=backend.lacks,
    )
    if found and ignoring:
        found = replace(found, needs=(NEED,))
    if found and on_found:
        on_found(found)
    say(str(found) if found else f"{examples} scripts: the kernel did what the Model predicted")
    return Status.of(found is not None)


def gate_of(backend: Host) -> Gate:
    """Return what lets scripts that fuzz did not draw through to this host."""
    return Gate(vcpus_of(backend), levels_of(backend), backend.lacks)


def vcpus_of(backend: Host) -> int:
    """Return how many vCPUs a script may have on this host."""
    return 2 - bool(backend.lacks("vcpus"))


def levels_of(backend: Host) -> Levels:
    """Return whose extensions the guests of this host have."""
    if backend.lacks("nested_svm") is None:
        return "svm"
    return "vmx" if backend.lacks("nested_vmx") is None else ""


def xen_of(backend: Host) -> tuple[int, ...]:
    """Return the flags with which a script may name Xen's MSR on this host."""
    flags = {"xen_hvm": 0, "xen_intercept": XEN_INTERCEPT}
    return tuple(flag for need, flag in flags.items() if backend.lacks(need) is None)


def random_seed() -> int:
    """Return a seed that nobody chose."""
    import secrets

    return secrets.randbelow(1 << 32)
