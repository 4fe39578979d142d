"""The command: measure all lines, print the table."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from bench.bare import ROOT, BareC
from bench.cases import measure_cases
from bench.exits import measure_exits
from bench.lab import measure_lab
from bench.line import Line
from bench.suite import measure_suite
from bench.table import report, table
from vmm.conformance.records.status import DONE, Status
from vmm.errors import KvmError
from vmm.kvm import Kvm


def measure(rounds: int, exits: int, cases: int, build: Path) -> list[Line]:
    """Return all lines, measured; ``exits`` and ``cases`` are the work of one round."""
    one = Line("exit: vcpu.run(reply=)", "us", 1.12, cpu=True)
    two = Line("exit: vcpu.run() and reply()", "us", 1.15, cpu=True)
    border = Line("exit: by cffi alone, nothing decoded", "us", 1.12, cpu=True)
    drain = Line("exit: drain", "us", 1.03, cpu=True)
    per_exit = (one, two, border, drain)
    four, sixteen = (
        Line(f"random-filter case, {accesses} accesses", "us", 0.75, at_most=False)
        for accesses in (4, 16)
    )
    suite = Line("the whole suite (C: the player, and 10 starts of Python)", "ms", 1.25)
    with Kvm() as kvm, BareC(build) as c:
        measure_exits(kvm, c, per_exit, rounds * 8, exits)
        measure_cases(kvm, c, four, (rounds, cases, 4))
        measure_cases(kvm, c, sixteen, (rounds, cases // 2, 16))
    for line in (*per_exit, four, sixteen):
        if line.c_exits != line.python_exits:
            raise RuntimeError(f"{line.name}: {line.c_exits} exits in C, {line.python_exits} here")
    measure_suite(suite, min(rounds, 5))
    return [*per_exit, four, sixteen, suite]


def main() -> int:
    """Print the table; 0 whatever it says, 2 when nothing could be measured."""
    parser = argparse.ArgumentParser(prog="bench", description="msrward against bare C.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=12, help="rounds of each line (12)")
    parser.add_argument("--exits", type=int, default=1000, help="exits in a round (1000)")
    parser.add_argument("--cases", type=int, default=4096, help="cases of 4 in a round (4096)")
    add = parser.add_argument
    add("--lab", metavar="K", help="measure the lab instead: this kernel, by both executors")
    add("--vendor", default="svm", help="the lab's machine (svm)")
    args = parser.parse_args()
    try:
        build = ROOT / "build"
        build.mkdir(exist_ok=True)
        if args.lab:
            lines = measure_lab(args.lab, args.vendor, min(args.rounds, 3))
        else:
            lines = measure(args.rounds, args.exits, args.cases, build)
        reports = [report(line) for line in lines]
    except (KvmError, OSError, RuntimeError, subprocess.CalledProcessError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return Status.TROUBLE
    host = {"load": os.getloadavg()[0], "cpus": os.cpu_count(), "python": sys.version.split()[0]}
    if args.json:
        print(json.dumps({"host": host, "lines": reports}, indent=1))
    else:
        print(f"load {host['load']:.1f} on {host['cpus']} CPUs, Python {host['python']}\n")
        print(table(reports))
    return DONE


if __name__ == "__main__":
    sys.exit(main())
