"""``msrward fuzz``, ``run`` and ``export``: scripts that are drawn, saved, and written as C."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmm.cli.options import count, seconds
from vmm.cli.output import complain, say
from vmm.cli.parser import add_command
from vmm.conformance.records.status import DONE, Status

if TYPE_CHECKING:
    from vmm.conformance.language.case import Case
    from vmm.conformance.random.fuzz import Finding

ONE_CASE = "a case id, or a file that 'msrward export --json' wrote"


def add(commands: Any) -> None:
    """Add the three commands."""
    fuzz = add_command(commands, "fuzz", _fuzz, "random scripts: the Model against this kernel")
    fuzz.add_argument("--examples", type=count, default=1000, metavar="N", help="scripts (1000)")
    fuzz.add_argument("--seed", type=int, metavar="N", help="repeat the run that printed N")
    text = "go on with the next seed, and the next, for S seconds or until something is found"
    fuzz.add_argument("--seconds", type=seconds, metavar="S", help=text)
    fuzz.add_argument(
        "--bulk", action="store_true", help="filters and accesses only, thousands a second"
    )
    text = "keep results.jsonl in DIR, and what is found as a case: found.json"
    fuzz.add_argument("-o", "--output", type=Path, metavar="DIR", help=text)
    run = add_command(commands, "run", _run, "run one case, and show all that was seen")
    run.add_argument("case", metavar="CASE", help=ONE_CASE)
    export = add_command(commands, "export", _export, "write a case as one C program, or as JSON")
    export.add_argument("case", metavar="CASE", help=ONE_CASE)
    form = export.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="JSON for 'msrward run', not C")
    text = "a test for the kernel's own tools/testing/selftests/kvm"
    form.add_argument("--selftest", action="store_true", help=text)
    export.add_argument("-o", "--output", type=Path, metavar="FILE", help="not to stdout")


def _fuzz(args: argparse.Namespace) -> int:
    from vmm.conformance.judge.check import kvm_capabilities
    from vmm.conformance.kernel.backend import KvmBackend
    from vmm.conformance.random import bulk, fuzz
    from vmm.conformance.random.fuzz import random_seed

    kvm_capabilities()
    found: list[fuzz.Finding] = []
    began = time.monotonic()
    run = bulk.run if args.bulk else fuzz.run
    seed = random_seed() if args.seed is None and args.seconds else args.seed
    with KvmBackend() as backend:
        status = run(backend, seed, args.examples, say, on_found=found.append)
        while status == DONE and time.monotonic() - began < (args.seconds or 0.0):
            seed += 1
            status = run(backend, seed, args.examples, say, on_found=found.append)
    if args.output and status != Status.UNTESTED:
        _keep(args, found[0] if found else None, time.monotonic() - began)
    return status


def _keep(args: argparse.Namespace, found: Finding | None, seconds: float) -> None:
    from vmm.cli.kept import keep
    from vmm.conformance.language import codec
    from vmm.conformance.random.fuzz import as_case

    file = args.output / "found.json" if found else None
    keep(args.output, [as_case(found, args.examples, file)], seconds)
    if found and file:
        file.write_text(codec.dump(found.case))


def _run(args: argparse.Namespace) -> int:
    from vmm.conformance.cases import CASES
    from vmm.conformance.judge.check import check
    from vmm.conformance.judge.runner import Options
    from vmm.conformance.report.desk import View

    return check([_one(args.case)], len(CASES), Options(), View(verbose=2, rerun="msrward run"))


def _export(args: argparse.Namespace) -> int:
    from vmm.conformance.c.export import c_source
    from vmm.conformance.c.selftest import selftest_source
    from vmm.conformance.language import codec

    case = _one(args.case)
    write = codec.dump if args.json else selftest_source if args.selftest else c_source
    try:
        text = write(case)
    except ValueError as error:
        return complain(str(error))
    if args.output:
        args.output.write_text(text)
    else:
        say(text.rstrip("\n"))
    return DONE


def _one(word: str) -> Case:
    """Return the one case that an id or a file names; UnknownCase says why there is none."""
    from vmm.conformance.cases import CASES
    from vmm.conformance.judge.selection import UnknownCase, choose, is_file, saved_case

    if not is_file(word) and Path(word).exists():
        return saved_case(Path(word))
    cases = choose(CASES, [word]).cases
    if len(cases) > 1:
        raise UnknownCase(f"{word} is {len(cases)} cases: name one of them")
    return cases[0]
