"""``msrward lab fuzz``, ``lab stress`` and ``lab churn``: what they do here, in another kernel."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from vmm.cli import churn, fuzz, options, stress
from vmm.cli.guarded import in_one_line
from vmm.cli.kept import as_json, keep
from vmm.cli.output import say
from vmm.cli.parser import add_command
from vmm.lab.vendors import VENDORS

if TYPE_CHECKING:
    from vmm.conformance.random.corpus import Corpus
    from vmm.lab.runs.sampled import Sampled

WALL, WALL_A_SECOND = 900.0, 30.0
"""Seconds that a guest may take, and more for each second of its own that it was asked for."""

EXAMPLES = 100
"""Scripts that a seed draws: a minute's, emulated, since --seconds ends between two seeds."""


def _fuzz_options(parser: argparse.ArgumentParser) -> None:
    fuzz.options(parser, EXAMPLES)


_OF = MappingProxyType(
    {
        "fuzz": (_fuzz_options, fuzz.FUZZ, ("examples", "seconds", "bulk")),
        "stress": (stress.options, stress.TEXT, ("seconds", "vcpus", "installers")),
        "churn": (churn.options, churn.TEXT, ("rounds", "installs", "vms")),
    }
)
"""Of each command its options, its line of help, and the options it gives on."""


def add(commands: Any, kernel: str) -> None:
    """Add the three commands; ``kernel`` is the help of ``--kernel``."""
    for name, (more, text, _) in _OF.items():
        parser = add_command(commands, name, _call(name), f"in the lab: {text}")
        parser.add_argument("--kernel", "-k", required=True, metavar="K", help=kernel)
        parser.add_argument(
            "--vendor", choices=VENDORS, default="svm", help="what to emulate (svm)"
        )
        limit = "seconds of wall time, to end a guest that hangs (900, and 30 for each of its own)"
        parser.add_argument("--limit", type=options.seconds, metavar="S", help=limit)
        options.append(parser)
        options.cpu(parser)
        more(parser)
        as_json(parser)


def _call(name: str) -> Callable[[argparse.Namespace], int]:
    return in_one_line(lambda args: _run(args, name))


def _run(args: argparse.Namespace, name: str) -> int:
    from vmm.conformance.random.fuzz import random_seed
    from vmm.lab.kernels import kernels
    from vmm.lab.runs import sampled

    seed = random_seed() if args.seed is None else args.seed
    words = _words(args, name)
    limit = args.limit or WALL + WALL_A_SECOND * (getattr(args, "seconds", None) or 0)
    kernel = kernels.resolve(args.kernel)
    corpus = _corpus(args) if name == "fuzz" else None
    where = (kernel, args.vendor, name, words, seed, limit, args.append, args.cpu)
    order = sampled.Sampling(*where, corpus)
    outcome = sampled.run(order)
    if corpus and not args.json:
        say(corpus.summary)
    return _told(args, outcome, f"{order.again} {' '.join((*words, f'--seed={seed}'))}")


def _corpus(args: argparse.Namespace) -> Corpus | None:
    """Return what to start from: of each vendor's machine, another."""
    from vmm.conformance.random.gate import Gate
    from vmm.lab import vendors

    gate = Gate(2, vendors.of(args.vendor).extensions, lambda _: None)
    corpus = fuzz.corpus_of(args, gate, f"corpus-{args.vendor}")
    if corpus:
        corpus.foretell()
    return corpus


def _told(args: argparse.Namespace, outcome: Sampled, again: str) -> int:
    """Show what came of it, keep it, and return the exit status."""
    file = None
    if outcome.finding and (args.output or not args.json):
        file = fuzz.save(outcome.finding, args.output)
        outcome = replace(outcome, cases=[{**each, "file": str(file)} for each in outcome.cases])
    if args.output:
        keep(args.output, (outcome.host, outcome.records))
    if args.json:
        from vmm.conformance.records.jsonl import encoder

        line = encoder(outcome.host)
        say("".join(map(line, outcome.records)).rstrip("\n"))
        return outcome.status
    if outcome.finding:
        say(f"{outcome.finding}\nsaved: {file}")
    else:
        say("\n".join([*outcome.end.get("report", ()), f"  again: {again}"]))
    lab, end = outcome.host["lab"], outcome.end["lab"]
    say(
        f"{outcome.host.get('release')} ({args.vendor}) on {lab['emulator']}:"
        f" boot {end['boot_seconds']:.1f} s, total {end['total_seconds']:.1f} s"
    )
    return outcome.status


def _words(args: argparse.Namespace, name: str) -> tuple[str, ...]:
    given = ((option, getattr(args, option)) for option in _OF[name][2])
    return tuple(
        f"--{option}" if value is True else f"--{option}={value}"
        for option, value in given
        if value
    )
