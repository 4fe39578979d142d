"""The command behind scripts/selftests: exported selftests, built by a kernel's harness and run."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType

from vmm.cli.guarded import ended
from vmm.cli.output import complain
from vmm.cli.parser import script
from vmm.conformance.c.selftest import selftest_source
from vmm.conformance.c.tape import is_playable
from vmm.conformance.cases import CASES
from vmm.conformance.language.case import Case
from vmm.conformance.records.status import Status
from vmm.conformance.records.verdict import Verdict
from vmm.lab import cache, vendors
from vmm.lab.errors import LabError
from vmm.lab.kernels import kernels, selftests
from vmm.lab.kernels.source import unpack
from vmm.lab.runs.selftests import Ran, played_verdicts, run_selftests

_STATUSES: Mapping[int, str] = MappingProxyType(
    {
        Status.CONFORMS: "every test was built and says what msrward says",
        Status.VIOLATES: "one says something else: it is named",
        Status.TROUBLE: "one does not build, a kernel cannot be had, or its own test fails too",
        Status.INTERRUPTED: "Ctrl-C",
    }
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    args = _parser().parse_args(argv)
    tests = dict(_chosen(args.globs))
    if not tests:
        return complain("no case that the harness can express is called that: see msrward list")
    return ended(lambda: _run(args, tests), LabError, OSError)


def _parser() -> argparse.ArgumentParser:
    description = (
        "Write cases as tests for the kernel's own KVM selftests, build them there,"
        " run them in the lab, and compare with what msrward says."
    )
    parser = script("selftests", description, _STATUSES)
    add = parser.add_argument
    add("globs", nargs="*", metavar="GLOB", help="cases by name (default: one of each theme)")
    add("--source", default="linux-source-6.12", metavar="S", help="a source package, or a tree")
    add("--kernel", default="debian:6.12", metavar="K", help="the kernel to run them on")
    add("--vendor", choices=sorted(vendors.VENDORS), default="svm", help="the machine (svm)")
    return parser


def _chosen(globs: Sequence[str]) -> Iterator[tuple[str, tuple[Case, str]]]:
    """Yield tests by name, with their case and their source."""
    themes: set[str] = set()
    for case in CASES:
        theme = case.id.partition(".")[0]
        wanted = any(fnmatchcase(case.id, glob) for glob in globs) if globs else theme not in themes
        if not wanted or not is_playable(case):
            continue
        try:
            source = selftest_source(case)
        except ValueError:
            continue
        themes.add(theme)
        yield selftests.prefix(case.id), (case, source)


def _run(args: argparse.Namespace, tests: Mapping[str, tuple[Case, str]]) -> int:
    kernel = kernels.resolve(args.kernel)
    is_tree = Path(args.source).is_dir()
    tree = (
        cache.root() / "selftests" / (Path(args.source).resolve().name if is_tree else args.source)
    )
    with cache.in_use(), cache.lock("selftests"):
        unpack(tree, args.source, Path(args.source) if is_tree else None)
        programs = selftests.build(tree, {name: source for name, (_, source) in tests.items()})
    ran = run_selftests(kernel, args.vendor, programs)
    control = ran.pop(selftests.CONTROL)
    if control.verdict is not Verdict.PASS:
        why = (control.said or ["nothing"])[-1]
        raise LabError(f"the kernel's own {selftests.CONTROL} ends with {control.status}: {why}")
    said = played_verdicts(kernel, args.vendor, [case for case, _ in tests.values()])
    wrong = [
        _difference(name, each, said[case.id])
        for name, each in ran.items()
        for case in (tests[name][0],)
        if each.verdict is not said[case.id]
    ]
    count = Counter(str(each.verdict) for each in ran.values())
    told = ", ".join(f"{n} {verdict}" for verdict, n in sorted(count.items()))
    differ = f"{len(wrong)} that differ from msrward" if wrong else "all as msrward says"
    print(f"{args.source}, {kernel.name}, {args.vendor}: {told}, {differ}")
    print("\n".join(wrong), end="\n" * bool(wrong))
    return Status.of(bool(wrong))


def _difference(name: str, ran: Ran, verdict: Verdict) -> str:
    why = (ran.said or ["nothing"])[-1]
    return f"  {name}: msrward says {verdict}, the test {ran.verdict} ({ran.status}): {why}"


if __name__ == "__main__":
    sys.exit(main())
