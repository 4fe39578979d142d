"""Measure msrward against a bare C program, both in the same run and in turns.

Each line is one promise of speed. The C side (native/bench.c) runs the same guests and makes the
same accesses with straight ioctl(KVM_RUN) loops, and checks nothing; the Python side checks all.
A machine is never quiet, so only ratios count: each is the median over rounds of the two sides
one right after the other.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Self

from vmm._native import ffi, lib
from vmm.conformance.kernel.wire import EXIT, REPLY, RESULT, SEEN, STEP
from vmm.conformance.oracle.model import Model
from vmm.conformance.random.bulk import CHUNK, Sweep
from vmm.conformance.random.deal import Deal
from vmm.conformance.random.forecast import Forecast
from vmm.errors import KvmError
from vmm.exits import RdmsrExit
from vmm.filter import default_allow
from vmm.guest import IMAGES, Guest
from vmm.kvm import Kvm
from vmm.msr import FILTER
from vmm.placed import NATIVE
from vmm.vcpu import MSR, RDMSR, Vcpu

ROOT = Path(__file__).resolve().parent.parent
DENIED, ANSWER = 0x474F4F00, 0x1122334455667788
PLAN = struct.Struct("<4Q")
SEED = 1


@dataclass
class Line:
    """One line of the table: times of a unit on both sides, in ``unit``, of each round."""

    name: str
    unit: str
    target: float
    at_most: bool = True
    c: list[float] = field(default_factory=list)
    python: list[float] = field(default_factory=list)
    c_exits: int = 0
    python_exits: int = 0
    c_gaps: list[float] = field(default_factory=list)
    python_gaps: list[float] = field(default_factory=list)
    skipped: str = ""

    def ratio(self) -> float:
        """Return Python's time (or, for a rate, Python's rate) divided by C's."""
        ratios = [p / c for c, p in zip(self.c, self.python, strict=True)]
        return median(ratios) if self.at_most else 1 / median(ratios)

    def verdict(self) -> str:
        """Return PASS or MISS, or SKIP for what could not be measured."""
        if self.skipped:
            return "SKIP"
        passes = self.ratio() <= self.target if self.at_most else self.ratio() >= self.target
        return "PASS" if passes else "MISS"


class BareC:
    """The C program: a process that does one command at a time."""

    def __init__(self, build: Path) -> None:
        """Build the program if it is not there or older than its source, and start it."""
        command = [str(_built(build)), _image("spin"), hex(_read_forever()), _image("access")]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, command: str) -> list[int]:
        """Return the numbers that answer a command: ns, count, and more."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        answer = [int(word) for word in self._process.stdout.readline().split()]
        if not answer:
            raise RuntimeError(f"the C program ended at {command!r}")
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def _built(build: Path) -> Path:
    sources = [ROOT / "native" / name for name in ("bench.c", "shim.h")]
    program = build / "bench"
    if not program.exists() or any(
        each.stat().st_mtime > program.stat().st_mtime for each in sources
    ):
        compiler = shutil.which("cc") or shutil.which("gcc")
        if not compiler:
            raise RuntimeError("no C compiler (cc) to build native/bench.c with")
        subprocess.run(
            [compiler, "-O2", "-I", str(ROOT / "native"), str(sources[0]), "-o", str(program)],
            check=True,
        )
    return program


def _image(name: str) -> str:
    return str(IMAGES / f"{name}.elf")


def _read_forever() -> int:
    return Guest.load("spin").symbols["read_forever"]


# --- one exit ---------------------------------------------------------------------------------


def boot_spin(kvm: Kvm) -> Vcpu:
    """Return a vCPU that reads a denied MSR for ever."""
    vm = kvm.create_vm()
    vm.enable_msr_exits(FILTER)
    vm.set_msr_filter(default_allow().deny(DENIED))
    return Guest.load("spin").boot(vm, rcx=DENIED, rip=_read_forever())


def run_and_reply(vcpu: Vcpu, count: int) -> int:
    """Make ``count`` round trips as a user of the API makes them; return how many were exits."""
    exits = 0
    for _ in range(count):
        match vcpu.run():
            case RdmsrExit():
                vcpu.reply(ANSWER)
                exits += 1
    return exits


class Drained:
    """The same through ``drain``: the log of a batch is compared with what it must be."""

    def __init__(self, vcpu: Vcpu, count: int) -> None:
        """Make room for ``count`` exits, of which the last is left in ``kvm_run`` by each batch."""
        self.vcpu, self.batch = vcpu, ffi.new("struct mw_batch *")
        self._log = ffi.new("struct mw_exit[]", count)
        self._reply = ffi.new("struct mw_reply *", {"data": ANSWER})
        self.batch.fd, self.batch.run, self.batch.log = vcpu.fd, vcpu.kvm_run, self._log
        self.batch.replies, self.batch.n_replies = self._reply, 1
        self.batch.log_size, self.batch.program = count - 1, vcpu.get_regs().rsp
        low, high = ANSWER & 0xFFFFFFFF, ANSWER >> 32
        exit_ = (RDMSR, 0, 0, FILTER, DENIED, 0, _read_forever(), low, DENIED, high)
        self._expected = EXIT.pack(*exit_) * (count - 1)
        self._last = MSR.pack(0, FILTER, DENIED, 0)
        self._seen = ffi.buffer(self._log, len(self._expected))

    def run(self) -> int:
        """Run a batch; return how many exits were as expected in every field: all, or an error."""
        reason = lib.mw_drain(self.batch)
        last = ffi.buffer(ffi.addressof(self.vcpu.kvm_run, "msr"), MSR.size)
        if reason != RDMSR or self._seen != self._expected or last != self._last:
            raise RuntimeError("an exit of the benchmark's guest is not as expected")
        self.vcpu.reply(ANSWER)
        return int(self.batch.n_exits) + 1


def measure_exits(kvm: Kvm, c: BareC, lines: Sequence[Line], rounds: int, count: int) -> None:
    """Fill the lines of ``vcpu.run()`` and of ``drain``; both use the same vCPU."""
    vcpu = boot_spin(kvm)
    run_and_reply(vcpu, 2)
    drained = Drained(vcpu, count)
    bare = functools.partial(c.ask, f"exits {count}")
    sides: list[Callable[[], int]] = [lambda: run_and_reply(vcpu, count), drained.run]
    for number in range(rounds):
        for line, side in zip(lines, sides, strict=True):
            vcpu.kvm_run.kvm_valid_regs = 0  # drain asks for the registers at each exit
            _take_turns(line, number, bare, side, count)


def _take_turns(
    line: Line, number: int, bare: Callable[[], list[int]], side: Callable[[], int], units: int
) -> None:
    """Do one round: both sides, the one that goes first changing from round to round."""
    for python in (False, True) if number % 2 else (True, False):
        if python:
            began = time.perf_counter_ns()
            line.python_exits += side()
            line.python.append((time.perf_counter_ns() - began) / units / 1e3)
        else:
            ns, exits, *began_at = bare()
            line.c_exits += exits
            line.c.append(ns / units / 1e3)
            line.c_gaps += _gaps(began_at)


def _gaps(began: Sequence[int]) -> list[float]:
    return [(after - before) / 1e3 for before, after in itertools.pairwise(began)]


# --- cases ------------------------------------------------------------------------------------


def measure_cases(kvm: Kvm, c: BareC, line: Line, work: tuple[int, int, int]) -> None:
    """Fill the line of random-filter cases: both sides make the same installs and accesses.

    ``work`` is the number of rounds, of cases in a round, and of accesses in a case.
    """
    rounds, cases, accesses = work
    with contextlib.ExitStack() as opened:
        plan = opened.enter_context(tempfile.NamedTemporaryFile(prefix="msrward-plan-"))
        sweep = opened.enter_context(Sweep(kvm, SEED, accesses))
        plan.write(b"".join(_plan(rounds, cases, accesses)))
        plan.flush()
        c.ask(f"plan {plan.name}")

        def checked() -> int:
            result = sweep.run(cases=cases)
            if result.mismatch:
                raise RuntimeError(f"the kernel breaks its contract: {result.mismatch}")
            line.python_gaps.extend(ns / 1e3 for ns in result.gaps)
            return result.exits

        for number in range(rounds):
            bare = functools.partial(c.ask, f"cases {number * cases} {cases}")
            _take_turns(line, number, bare, checked, cases)


def _plan(rounds: int, cases: int, accesses: int) -> Iterator[bytes]:
    """Yield the file that tells the C program what the sweep of the same seed does."""
    deal = Deal(SEED, accesses)
    forecast = Forecast(deal, Model(), Guest.load("access"), PLAN.size)
    end = Guest.load("access").symbols["op_done"]
    yield PLAN.pack(rounds * cases, accesses, end, PLAN.size + len(deal.sea))
    yield deal.sea
    for number, limit in enumerate(_limits(cases) * rounds):
        sheet = forecast.sheet(number, CHUNK, limit)
        at = 0
        for case in range(sheet.size):
            _, _, exits, _ = SEEN.unpack_from(sheet.expected, at)
            log = sheet.expected[at + SEEN.size : at + SEEN.size + exits * EXIT.size]
            at += SEEN.size + len(log) + accesses * RESULT.size
            steps = [exit_[1] for exit_ in EXIT.iter_unpack(log)]
            answered = [_slice(sheet.replies, REPLY.size, case * accesses + step) for step in steps]
            yield _slice(sheet.filters, NATIVE.size, case) + exits.to_bytes(8, "little")
            yield b"".join(answered).ljust(REPLY.size * accesses, b"\0")
            yield _slice(sheet.programs, STEP.size * accesses, case)


def _limits(cases: int) -> list[int]:
    return [min(CHUNK, cases - first) for first in range(0, cases, CHUNK)]


def _slice(data: bytes, size: int, number: int) -> bytes:
    return data[number * size : (number + 1) * size]


# --- the whole suite --------------------------------------------------------------------------


def measure_suite(line: Line, rounds: int) -> None:
    """Fill the line of ``msrward check``; its C side is what the promise allows, not a program."""
    from vmm.conformance.cases import CASES

    for _ in range(rounds):
        start, _ = _wall("-c", "pass")
        wall, status = _wall("-P", "-m", "vmm", "check", "-q")
        if status not in (0, 1):
            line.skipped = f"msrward check ended with status {status}"
            return
        line.c.append(start * 10 + 2.0 * len(CASES))
        line.python.append(wall)


def _wall(*arguments: str) -> tuple[float, int]:
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    return (time.perf_counter() - began) * 1e3, done.returncode


# --- the table --------------------------------------------------------------------------------


def measure(rounds: int, exits: int, cases: int, build: Path) -> list[Line]:
    """Return all lines, measured; ``exits`` and ``cases`` are the work of one round."""
    exit_, drain = Line("exit: vcpu.run() and reply()", "us", 1.15), Line("exit: drain", "us", 1.03)
    four, sixteen = (
        Line(f"random-filter case, {accesses} accesses", "us", 0.75, at_most=False)
        for accesses in (4, 16)
    )
    suite = Line("the whole suite (C: 10 starts of Python + 2 ms a case)", "ms", 1.0)
    with Kvm() as kvm, BareC(build) as c:
        measure_exits(kvm, c, (exit_, drain), rounds * 8, exits)
        measure_cases(kvm, c, four, (rounds, cases, 4))
        measure_cases(kvm, c, sixteen, (rounds, cases // 2, 16))
    for line in (exit_, drain, four, sixteen):
        if line.c_exits != line.python_exits:
            raise RuntimeError(f"{line.name}: {line.c_exits} exits in C, {line.python_exits} here")
    measure_suite(suite, min(rounds, 5))
    return [exit_, drain, four, sixteen, suite]


def report(line: Line) -> dict[str, Any]:
    """Return the line as what ``--json`` prints."""
    return {
        "name": line.name,
        "unit": line.unit,
        "c": _quantiles(line.c),
        "python": _quantiles(line.python),
        "ratio": None if line.skipped else round(line.ratio(), 3),
        "ratio_of": "times" if line.at_most else "rates",
        "target": line.target,
        "at_most": line.at_most,
        "verdict": line.verdict(),
        "skipped": line.skipped or None,
        "rounds": len(line.python),
        "exits": {"c": line.c_exits, "python": line.python_exits},
        "install_gap_us": {"c": _quantiles(line.c_gaps), "python": _quantiles(line.python_gaps)},
    }


def _quantiles(values: list[float]) -> dict[str, float] | None:
    ordered = sorted(values)
    if not ordered:
        return None
    at = {"p50": len(ordered) // 2, "p90": len(ordered) * 9 // 10}
    return {name: round(ordered[place], 3) for name, place in at.items()}


def _table(reports: list[dict[str, Any]]) -> str:
    rows = [("", "C p50", "p90", "Python p50", "p90", "ratio", "target", "")]
    for each in reports:
        if each["skipped"]:
            rows.append((each["name"], *["-"] * 5, "", f"SKIP: {each['skipped']}"))
            continue
        times = [f"{each[side][p]:.2f}" for side in ("c", "python") for p in ("p50", "p90")]
        sign = "<=" if each["at_most"] else ">="
        rows.append(
            (
                f"{each['name']}, {each['unit']}",
                *times,
                f"{each['ratio']:.3f}",
                f"{sign} {each['target']:.2f}",
                each["verdict"],
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(8)]
    lines = [
        row[0].ljust(widths[0])
        + "  "
        + "  ".join(cell.rjust(width) for cell, width in zip(row[1:7], widths[1:7], strict=True))
        + f"  {row[7]}"
        for row in rows
    ]
    return "\n".join([*(line.rstrip() for line in lines), "", *map(_notes, reports)]).rstrip()


def _notes(each: dict[str, Any]) -> str:
    if not each["install_gap_us"]["c"]:
        return ""
    c, python = each["install_gap_us"]["c"], each["install_gap_us"]["python"]
    rates = [f"{1e6 / each[side]['p50']:,.0f}" for side in ("c", "python")]
    return (
        f"{each['name']}: {rates[0]} cases/s in C, {rates[1]} checked in Python; from one install "
        f"to the next, in us: C p50 {c['p50']:.1f} p90 {c['p90']:.1f}, "
        f"Python p50 {python['p50']:.1f} p90 {python['p90']:.1f}"
    )


def main() -> int:
    """Print the table; 0 whatever it says, 2 when nothing could be measured."""
    parser = argparse.ArgumentParser(prog="bench", description="msrward against bare C.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=12, help="rounds of each line (12)")
    parser.add_argument("--exits", type=int, default=1000, help="exits in a round (1000)")
    parser.add_argument("--cases", type=int, default=4096, help="cases of 4 in a round (4096)")
    args = parser.parse_args()
    try:
        build = ROOT / "build"
        build.mkdir(exist_ok=True)
        reports = [report(line) for line in measure(args.rounds, args.exits, args.cases, build)]
    except (KvmError, OSError, RuntimeError, subprocess.CalledProcessError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    host = {"load": os.getloadavg()[0], "cpus": os.cpu_count(), "python": sys.version.split()[0]}
    if args.json:
        print(json.dumps({"host": host, "lines": reports}, indent=1))
    else:
        print(f"load {host['load']:.1f} on {host['cpus']} CPUs, Python {host['python']}\n")
        print(_table(reports))
    return 0


if __name__ == "__main__":
    sys.exit(main())
