"""``msrward fuzz``, ``run`` and ``export``: scripts that are drawn, saved, and written as C."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from vmm.cli.options import count
from vmm.cli.output import complain, say
from vmm.cli.parser import add_command


def add(commands: Any) -> None:
    """Add the three commands."""
    fuzz = add_command(commands, "fuzz", _fuzz, "random scripts: the Model against this kernel")
    fuzz.add_argument("--examples", type=count, default=1000, metavar="N", help="scripts (1000)")
    fuzz.add_argument("--seed", type=int, metavar="N", help="repeat the run that printed N")
    run = add_command(commands, "run", _run, "run a case that was saved as JSON")
    run.add_argument("file", type=Path, metavar="FILE", help="what 'msrward export --json' wrote")
    export = add_command(commands, "export", _export, "write a case as one C program, or as JSON")
    export.add_argument("case", metavar="CASE", help="a case id")
    export.add_argument("--json", action="store_true", help="JSON for 'msrward run', not C")
    export.add_argument("-o", "--output", type=Path, metavar="FILE", help="not to stdout")


def _fuzz(args: argparse.Namespace) -> int:
    from vmm.conformance.judge.check import kvm_capabilities
    from vmm.conformance.kernel.backend import KvmBackend
    from vmm.conformance.random import fuzz

    kvm_capabilities()
    with KvmBackend() as backend:
        return fuzz.run(backend, args.seed, args.examples, say)


def _run(args: argparse.Namespace) -> int:
    from vmm.conformance.judge.check import check
    from vmm.conformance.judge.runner import Options
    from vmm.conformance.language import codec
    from vmm.conformance.report.desk import View

    try:
        case = codec.load(args.file.read_bytes())
    except OSError as error:
        return complain(f"cannot read {args.file}: {error.strerror}")
    except ValueError as error:
        return complain(f"{args.file}: {error}")
    rerun = shlex.join(["msrward", "run", str(args.file)]).replace("{", "{{").replace("}", "}}")
    return check([case], 1, Options(), View(verbose=2, rerun=rerun))


def _export(args: argparse.Namespace) -> int:
    from vmm.conformance.c.export import c_source
    from vmm.conformance.cases import CASES
    from vmm.conformance.judge.selection import select
    from vmm.conformance.language import codec

    chosen = select(CASES, [args.case])
    if len(chosen) > 1:
        return complain(f"{args.case} is {len(chosen)} cases: name one of them")
    try:
        text = codec.dump(chosen[0]) if args.json else c_source(chosen[0])
    except ValueError as error:
        return complain(str(error))
    if args.output:
        args.output.write_text(text)
    else:
        say(text.rstrip("\n"))
    return 0
