"""The command behind scripts/exports: every case as a C program, built, run, and compared."""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from types import MappingProxyType

from vmm.cli.guarded import ended
from vmm.cli.output import complain
from vmm.cli.parser import script
from vmm.conformance.c.export import c_source
from vmm.conformance.c.tape import is_playable
from vmm.conformance.cases import CASES
from vmm.conformance.host.parameters import ignores_msrs
from vmm.conformance.judge.judging import judge
from vmm.conformance.kernel.backend import KvmBackend
from vmm.conformance.language.case import Case
from vmm.conformance.records.status import Status
from vmm.conformance.records.summary import of_a_program
from vmm.conformance.records.verdict import Verdict
from vmm.lab import processes
from vmm.lab.processes import Commands

FLAGS = ("-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread")
VERDICTS = {0: Verdict.PASS, 1: Verdict.FAIL, 2: Verdict.ERROR, 4: Verdict.SKIP}
SECONDS = 120

_STATUSES: Mapping[int, str] = MappingProxyType(
    {
        Status.CONFORMS: "every program was built and says what msrward says",
        Status.VIOLATES: "one was not, or says something else: it is named",
        Status.TROUBLE: "there is no such case, no compiler or no /dev/kvm",
        Status.INTERRUPTED: "Ctrl-C",
    }
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    args = _parser().parse_args(argv)
    compilers, globs = args.cc or ["cc"], args.globs or ["*"]
    cases = [each for each in CASES if any(fnmatchcase(each.id, glob) for glob in globs)]
    cases = [each for each in cases if is_playable(each)]
    if not cases:
        return complain("no case with a form in C is called that: see msrward list")
    for compiler in compilers:
        if not shutil.which(shlex.split(compiler)[0]):
            return complain(f"no compiler {compiler}: install one, or name another with --cc")
    return ended(lambda: _compare(compilers, cases), OSError)


def _compare(compilers: Sequence[str], cases: Sequence[Case]) -> int:
    verdicts = _verdicts(cases)
    differ = [_differ(compiler, cases, verdicts) for compiler in compilers]
    return Status.of(any(differ))


def _parser() -> argparse.ArgumentParser:
    text = "Write cases as C, build and run each, and compare with what msrward says."
    parser = script("exports", text, _STATUSES)
    parser.add_argument("globs", nargs="*", metavar="GLOB", help="cases by name (default: all)")
    parser.add_argument("--cc", action="append", metavar="CC", help="a compiler, with options (cc)")
    return parser


def _verdicts(cases: Sequence[Case]) -> dict[str, Verdict]:
    ignoring = ignores_msrs()
    with KvmBackend() as backend:
        records = {each.id: judge(each, backend, ignoring=ignoring) for each in cases}
    return {name: of_a_program(record) for name, record in records.items()}


def _differ(compiler: str, cases: Sequence[Case], verdicts: dict[str, Verdict]) -> bool:
    """Print one line for the compiler, and one for each program that says something else."""
    with tempfile.TemporaryDirectory() as place, processes.threads(2) as (threads, commands):
        said = list(threads.map(partial(_said, commands, compiler, Path(place)), cases))
    wrong = [
        f"  {case.id}: msrward says {verdicts[case.id]}, the program {verdict}: {text}"
        for case, (verdict, text) in zip(cases, said, strict=True)
        if verdict != verdicts[case.id]
    ]
    count = Counter(str(verdict) for verdict, _ in said)
    print(f"{compiler}: {', '.join(f'{n} {name}' for name, n in sorted(count.items()))},", end=" ")
    print(f"{len(wrong)} that differ from msrward" if wrong else "all as msrward says")
    print("\n".join(wrong), end="\n" * bool(wrong))
    return bool(wrong)


def _said(commands: Commands, compiler: str, place: Path, case: Case) -> tuple[str, str]:
    """Return the verdict of the case's program, and what it printed last."""
    program, source = place / case.id, place / f"{case.id}.c"
    source.write_text(c_source(case))
    built, said = _run(commands, *shlex.split(compiler), *FLAGS, "-o", str(program), str(source))
    if built:
        return "not built", said.partition("\n")[0]
    status, said = _run(commands, str(program))
    program.unlink()
    return str(VERDICTS.get(status, f"status {status}")), said.strip().rpartition("\n")[2]


def _run(commands: Commands, *command: str) -> tuple[int, str]:
    """Return the command's status and what it said, the errors last."""
    pipe = subprocess.PIPE
    try:
        with commands.started(command, stdout=pipe, stderr=pipe) as process:
            said, complained = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return -1, f"no end within {SECONDS} s"
    return process.returncode, said + complained


if __name__ == "__main__":
    sys.exit(main())
