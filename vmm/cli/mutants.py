"""The command behind scripts/mutants: choose, run, and print the table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType

from vmm.cli import options as words
from vmm.cli.guarded import ended
from vmm.cli.output import complain
from vmm.cli.parser import script
from vmm.conformance.cases import CASES
from vmm.conformance.judge.check import Trouble
from vmm.conformance.judge.selection import UnknownCase, choose
from vmm.conformance.records.status import DONE, Status
from vmm.lab import cache
from vmm.lab.errors import LabError
from vmm.lab.mutants import judging, laboratory
from vmm.lab.mutants.findings import Fate, MutantRecord
from vmm.lab.mutants.source import Mutant, load

_STATUSES: Mapping[int, str] = MappingProxyType(
    {
        Status.CONFORMS: "every mutant was killed, or the data says why it survives",
        Status.VIOLATES: "a mutant survived that should not have",
        Status.TROUBLE: "one was lost or did not build, or the unchanged kernel does not pass",
        Status.INTERRUPTED: "Ctrl-C; --resume goes on",
    }
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    args = _parser().parse_args(argv)
    chosen = [mutant for mutant in load() if _wanted(mutant, args)]
    if not chosen:
        return complain("no mutant is called that; --list shows them")
    if args.list:
        print("\n".join(_card(mutant) for mutant in chosen))
        return DONE
    try:
        choose(CASES, args.cases or ())
    except UnknownCase as error:
        return complain(str(error))
    on = "interrupted; --resume goes on"
    return ended(lambda: _run(chosen, args), LabError, Trouble, OSError, interrupted=on)


def _parser() -> argparse.ArgumentParser:
    text = "Build wrong kernels, one mistake each, and show which cases notice."
    parser = script("mutants", text, _STATUSES)
    add = parser.add_argument
    add("globs", nargs="*", metavar="GLOB", help="mutants by name or requirement: 'svm.*', R72")
    add("-x", "--exclude", action="append", default=[], metavar="GLOB", help="leave these out")
    add("--shard", type=words.shard, metavar="I/N", help="of these, part I of N, by their names")
    add("-l", "--list", action="store_true", help="list the chosen mutants and run nothing")
    add("--source", type=Path, metavar="TREE", help="a kernel tree to use instead of the package")
    add("--results", type=Path, metavar="FILE", help="JSON lines (default: in the cache)")
    add("--resume", action="store_true", help="go on with the results that are there")
    add("--enough", type=int, default=5, metavar="N", help="stop after N killers (5; 0: never)")
    add("--cases", action="append", metavar="GLOB", help="cases for survivors")
    add("--no-control", action="store_true", help="the unchanged kernel is known to pass")
    add("--timeout", type=float, default=300.0, metavar="S", help="seconds for a boot (300)")
    add("--case-timeout", type=float, default=10.0, metavar="S", help="seconds for a case (10)")
    add("-j", "--jobs", type=int, metavar="N", help="compilers at once (default: one a core)")
    words.on(parser)
    return parser


def _wanted(mutant: Mutant, args: argparse.Namespace) -> bool:
    def matches(globs: Sequence[str]) -> bool:
        names = (mutant.name, mutant.vendor, *mutant.violates)
        return any(fnmatchcase(name, glob) for glob in globs for name in names)

    wanted = (not args.globs or matches(args.globs)) and not matches(args.exclude)
    return wanted and (not args.shard or args.shard.has(mutant.name))


def _card(mutant: Mutant) -> str:
    where = " ".join(each for each in (mutant.package, mutant.vendor, mutant.cpu) if each)
    lines = [f"{mutant.name}  ({where}; {' '.join(mutant.violates)})", mutant.summary]
    if mutant.explained:
        lines.append(f"may survive: {mutant.explained}")
    return "\n    ".join(lines)


def _run(chosen: Sequence[Mutant], args: argparse.Namespace) -> int:
    options = judging.Options(
        args.case_timeout,
        args.timeout,
        args.enough,
        args.jobs,
        tuple(args.cases or judging.THEMES),
        not args.no_control,
    )
    results = args.results or cache.root() / "mutants" / "results.jsonl"
    explained = {mutant.name: mutant.explained for mutant in chosen}
    with laboratory.laboratory(load(), options, args.source, args.on) as lab:
        found = laboratory.run(
            lab,
            chosen,
            results,
            lambda finding: print(_row(finding, explained), flush=True),
            resume=args.resume,
        )
    print(_summary(found, explained, results))
    return _status(found, explained)


def _row(finding: MutantRecord, explained: dict[str, str]) -> str:
    seconds = finding.build_seconds + finding.boot_seconds + finding.suite_seconds
    row = f"{finding.name:34} {finding.fate:13} {seconds:4.0f} s  {_why(finding, explained)}"
    return f"{row}\n    {finding.evidence}" if finding.evidence else row


def _why(finding: MutantRecord, explained: dict[str, str]) -> str:
    if finding.fate is Fate.SURVIVED:
        return explained.get(finding.name) or f"{finding.ran} cases pass"
    if not finding.killers:
        return finding.reason
    rest = len(finding.killers) - 3
    more = f" and {rest}{' or more' if finding.more else ''} others" if rest > 0 else ""
    return ", ".join(finding.killers[:3]) + more


def _summary(found: Sequence[MutantRecord], explained: dict[str, str], results: Path) -> str:
    judged = [finding for finding in found if finding.name != "control"]
    counts = [f"{n} {fate}" for fate in Fate if (n := sum(f.fate is fate for f in judged))]
    open_ = [f.name for f in judged if f.fate is Fate.SURVIVED and not explained[f.name]]
    lines = [f"{len(judged)} mutants: {', '.join(counts)}; {results}"]
    if open_:
        lines.append(f"unexplained: {', '.join(open_)}")
    return "\n".join(lines)


def _status(found: Sequence[MutantRecord], explained: dict[str, str]) -> int:
    if any(finding.fate in (Fate.LOST, Fate.UNBUILT) for finding in found):
        return Status.TROUBLE
    judged = [finding for finding in found if finding.name != "control"]
    return Status.of(any(f.fate is Fate.SURVIVED and not explained[f.name] for f in judged))


if __name__ == "__main__":
    sys.exit(main())
