"""``msrward fuzz``: random scripts, the Model against this kernel."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmm.cli.kept import Telling, as_json, recorded
from vmm.cli.options import count, seconds
from vmm.cli.output import complain
from vmm.cli.parser import add_command
from vmm.conformance.records.status import DONE, Status
from vmm.conformance.records.verdict import Verdict

if TYPE_CHECKING:
    from vmm.conformance.random.corpus import Corpus
    from vmm.conformance.random.finding import Finding
    from vmm.conformance.random.gate import Gate

FUZZ = "random scripts: the Model against this kernel"


def add(commands: Any) -> None:
    """Add the command."""
    fuzz = add_command(commands, "fuzz", _fuzz, FUZZ)
    options(fuzz)
    as_json(fuzz)


def options(parser: argparse.ArgumentParser, examples: int = 1000) -> None:
    """Add what fuzz has, wherever it runs; ``examples`` is how many scripts a seed draws there."""
    add = parser.add_argument
    add("--examples", type=count, default=examples, metavar="N", help=f"scripts ({examples})")
    add("--seed", type=int, metavar="N", help="repeat the run that printed N")
    text = "go on with the next seed, and the next, for S seconds or until something is found"
    add("--seconds", type=seconds, metavar="S", help=text)
    add("--bulk", action="store_true", help="filters and accesses only, thousands a second")
    text = "keep results.jsonl in DIR, and what is found as a case: found.json"
    add("-o", "--output", type=Path, metavar="DIR", help=text)
    corpus = parser.add_mutually_exclusive_group()
    text = "keep scripts that reach a new kind of trace in DIR, and start from them (by default"
    text += " beside the records of this user, unless --seed is given)"
    corpus.add_argument("--corpus", type=Path, metavar="DIR", help=text)
    text = "start from nothing: the seed alone decides"
    corpus.add_argument("--no-corpus", action="store_true", help=text)


def _fuzz(args: argparse.Namespace) -> int:
    from vmm.conformance.host.watch import Watch
    from vmm.conformance.judge.check import kvm_capabilities
    from vmm.conformance.kernel.backend import KvmBackend
    from vmm.conformance.random import bulk, finding, fuzz

    kvm_capabilities()
    telling = Telling(as_json=args.json)
    found: list[Finding] = []
    began = time.monotonic()
    seed = first = fuzz.random_seed() if args.seed is None else args.seed
    interrupted = False
    with Watch() as watch, KvmBackend() as backend:
        corpus = corpus_of(args, fuzz.gate_of(backend))
        run = bulk.run if args.bulk else partial(fuzz.run, corpus=corpus)
        try:
            status = run(backend, seed, args.examples, telling.say, on_found=found.append)
            while status == DONE and time.monotonic() - began < (args.seconds or 0.0):
                seed += 1
                status = run(backend, seed, args.examples, telling.say, on_found=found.append)
        except KeyboardInterrupt:
            status, interrupted = Status.INTERRUPTED, True
            told = f"{args.examples * (seed - first)} scripts were as predicted"
            telling.say(f"interrupted: {told}, and then came some of --seed {seed}")
        complaints = watch.complaints()
    report = str(found[0]) if found else telling.last
    if corpus:
        telling.say(corpus.summary)
    for each in complaints:
        telling.say(f"the kernel: {each}")
    file = _saved(args, found)
    if file:
        telling.say(f"saved: {file}")
    if args.output or args.json:
        total = args.examples * (seed - first + (not interrupted))
        drawn = finding.Drawn(seed, args.examples, args.bulk)
        case = finding.as_case(found[0] if found else None, total, file, drawn)
        if status == Status.UNTESTED:
            case |= {"verdict": Verdict.SKIP, "reason": report}
        if corpus and args.json:
            case["kept"] = corpus.new
        run_ = recorded(
            *([case], time.monotonic() - began),
            complaints=complaints,
            foreign=watch.foreign,
            blind=watch.blind,
            report=report,
            interrupted=interrupted,
        )
        telling.end(run_, args.output)
    return Status.VIOLATES if complaints and not interrupted else status


def corpus_of(args: argparse.Namespace, gate: Gate, whose: str = "corpus") -> Corpus | None:
    """Return the corpus to start from, if any; Trouble if it is named and cannot be used.

    ``whose`` is the name of its directory where none is given.
    """
    from vmm.conformance.judge.check import Trouble
    from vmm.conformance.random.corpus import Corpus, CorpusError, default

    if args.bulk and args.corpus:
        raise Trouble("--bulk has no corpus: leave out one of them")
    is_asked_for = args.corpus or args.seed is None
    if args.no_corpus or args.bulk or not is_asked_for:
        return None
    try:
        corpus = Corpus(args.corpus or default().with_name(whose), gate.lets)
    except CorpusError as error:
        if args.corpus:
            raise Trouble(str(error)) from None
        complain(f"{error}; going on without one")
        return None
    if corpus.left_out:
        complain(corpus.left_out)
    return corpus


def _saved(args: argparse.Namespace, found: Sequence[Finding]) -> Path | None:
    """Save what was found as a case, unless a program asked; the path says where."""
    if not found or (args.json and not args.output):
        return None
    return save(found[0], args.output)


def save(found: Finding, directory: Path | None) -> Path:
    """Write a finding as a case into a directory, or among those that are kept of this user."""
    from hashlib import sha256

    from vmm.conformance.language import codec
    from vmm.conformance.records import places
    from vmm.conformance.records.results import default_directory

    text = codec.dump(found.case)
    name = f"fuzz-{sha256(text.encode()).hexdigest()[:12]}.json"
    path = directory / "found.json" if directory else default_directory().with_name("found") / name
    places.write_new(path, text)
    return path
