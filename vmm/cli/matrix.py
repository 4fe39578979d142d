"""``msrward lab matrix``: judge many kernels by several vendors, and show where they differ."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from vmm.cli import options
from vmm.cli.guarded import in_one_line
from vmm.cli.output import complain, say
from vmm.cli.parser import add_command
from vmm.conformance.records.status import Status
from vmm.lab.vendors import VENDORS


def add(commands: Any) -> None:
    """Add the command."""
    call = in_one_line(_matrix)
    matrix = add_command(commands, "matrix", call, "judge many kernels by several vendors")
    options.choice(matrix)
    add = matrix.add_argument
    names = "5.10,6.1,newest: packaged series, or whatever --kernel takes"
    add("--kernels", required=True, type=_words, metavar="K,K...", help=names)
    add(
        "--vendors",
        type=_vendors,
        default=["svm"],
        metavar="V,V...",
        help=f"of {','.join(VENDORS)} (svm)",
    )
    options.append(matrix)
    options.executor(matrix)
    options.on(matrix)
    add(
        "-j",
        "--jobs",
        type=options.count,
        metavar="N",
        help="machines at once (cores, memory; with --on: the workers' threads)",
    )
    add("--timeout", type=options.deadline, default=60.0, metavar="S", help="seconds a case (60)")
    add("--limit", type=options.seconds, default=1800.0, metavar="S", help="seconds a guest (1800)")
    add("-o", "--output", type=Path, metavar="DIR", help="where the records go (a new directory)")
    add("--resume", action="store_true", help="go on with the matrix in DIR")
    add("--by-case", action="store_true", help="show a row for each case, not each requirement")


def _words(text: str) -> list[str]:
    if words := [word for word in text.split(",") if word]:
        return words
    raise argparse.ArgumentTypeError(f"{text!r} names none")


def _vendors(text: str) -> list[str]:
    for word in _words(text):
        if word not in VENDORS:
            raise argparse.ArgumentTypeError(f"{word!r} is not one of {', '.join(VENDORS)}")
    return _words(text)


def _matrix(args: argparse.Namespace) -> int:
    from vmm.lab.runs import away

    with away.team(args.on) as team:
        return _judge(args, team)


def _judge(args: argparse.Namespace, team: Any) -> int:
    from vmm.conformance.cases import CASES
    from vmm.conformance.judge.selection import choose
    from vmm.conformance.report import table
    from vmm.lab.runs import matrix
    from vmm.lab.runs.order import Inner, Orders

    chosen = choose(CASES, args.globs, args.exclude, thorough=args.thorough, shard=args.shard)
    how = (args.limit, args.append, args.executor)
    orders = Orders(chosen, Inner(timeout=args.timeout, shard=str(args.shard or "")), *how)
    directory = args.output or matrix.default_directory()
    _is_ours(directory)
    missing: list[str] = []
    cells = matrix.cells(
        *(args.kernels, args.vendors, directory),
        lambda wish, why: missing.append(f"{wish}: {why}"),
        args.append,
    )
    for line in missing:
        complain(line)
    matrix.run(cells, orders, on_cell=_say_cell, jobs=args.jobs, resume=args.resume, team=team)
    columns = [
        table.Column(cell.kernel.release, cell.title, cell.saved, lacks=cell.lacks)
        for cell in cells
    ]
    say("\n".join(table.report(columns, by_case=args.by_case)))
    say(f"\nrecords: {directory}; page: {_write_page(columns, directory)}")
    return table.status(columns) if not missing else Status.TROUBLE


def _say_cell(cell: Any, trouble: str) -> None:
    said = f"no verdict: {trouble}" if trouble else _last_line(cell.directory / "report.txt")
    say(f"{cell.kernel.release} {cell.title}: {said}")


def _last_line(report: Path) -> str:
    from vmm.conformance.records import places

    return (places.read_regular(report).decode(errors="replace").splitlines() or [""])[-1]


def _is_ours(directory: Path) -> None:
    """Make the directory, before anything is booted; Trouble where that cannot be."""
    from vmm.conformance.judge.check import Trouble
    from vmm.conformance.records import places

    try:
        with places.directory(directory) as held:
            os.close(places.create("index.html", held))
    except OSError as error:
        why = f"cannot write to the output directory {directory}: {error.strerror}"
        raise Trouble(f"{why}; give another with -o DIR") from None


def _write_page(columns: Any, directory: Path) -> Path:
    from vmm.conformance.records import places
    from vmm.conformance.report import html

    page = directory / "index.html"
    places.write_new(page, html.page(columns))
    return page
