"""The report that a person reads. Every function returns lines; none prints."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from vmm.conformance.contract.requirements import explain_case
from vmm.conformance.records.causes import Cause
from vmm.conformance.records.saved import added_in
from vmm.conformance.records.schema import CaseRecord, RunRecord
from vmm.conformance.records.verdict import Verdict
from vmm.conformance.report import rerun as reruns

COLOURS = {"red": 31, "green": 32, "yellow": 33, "bold": 1}
COLOUR_OF = {
    Verdict.PASS: "green",
    Verdict.FAIL: "red",
    Verdict.ERROR: "red",
    Verdict.TIMEOUT: "red",
}
WIDTH, BEFORE, AFTER, NAMES, THEMES = 180, 12, 3, 6, 3
"""What is shown of long things: characters of a line, steps round a failing one, ids."""

Paint = Callable[[str, str], str]


def painter(stream: TextIO) -> Paint:
    """Return what colours a text for ``stream``: nothing off a terminal or under NO_COLOR."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    if plain or not stream.isatty():
        return lambda _, text: text
    return lambda colour, text: f"\x1b[{COLOURS[colour]}m{text}\x1b[m"


def header(run: RunRecord, host: Mapping[str, Any]) -> list[str]:
    """Return the lines that say what is judged, and where."""
    where, version = machine(host), host.get("msrward")
    on, by = f" on {where}" if where else "", f"; msrward {version}" if version else ""
    lines = [f"{kernel(host)}{on}{by}"]
    if run.get("repeat"):
        lines.append(f"each case is judged {run['repeat']} times")
    if run["resumed"]:
        lines.append(f"resumed: {run['resumed']} of {run['cases']} cases are already recorded")
    if run["kernel_log"] != "watched":
        lines.append(f"the kernel log is not watched for splats: {run['kernel_log']}")
    return lines


def machine(host: Mapping[str, Any]) -> str:
    """Return "AMD EPYC, virtual", or less: "" of a guest that did not get so far as to tell."""
    return ", ".join(host[fact] for fact in ("cpu_model", "platform") if host.get(fact))


def kernel(host: Mapping[str, Any]) -> str:
    """Return "kernel 6.12.9 (kvm_amd)", and that it ran in the lab if it did."""
    lab = host.get("lab")
    where = f" in the lab ({lab['emulator']}{added_in(lab)})" if lab else ""
    return f"kernel {host.get('release')} ({host.get('vendor_module') or 'kvm'}){where}"


def case_line(case: CaseRecord, paint: Paint) -> str:
    """Return the one line of a case that has ended, for -v."""
    note = case.get("reason") or case.get("observation") or case.get("error")
    return (
        f"{word(case, paint)} {case['id']} ({case['ms']:.1f} ms){': ' + cut(note) if note else ''}"
    )


def failure(
    case: CaseRecord, paint: Paint, verbose: int = 0, rerun: str = reruns.HERE
) -> list[str]:
    """Return the block that explains a failed case: promise, script, difference, fix, rerun.

    ``rerun`` is the command that takes the case's id, or the file that it was read from.
    """
    lines = ["", f"{paint('red', case['verdict'])} {paint('bold', case['id'])}"]
    lines += [f"  {case['sentence']}"]
    if case["verdict"] != Verdict.ERROR or verbose:
        lines += [f"  {line}" for line in explain_case(case["requirements"], case.get("cause", ""))]
        lines += _script(case, paint, verbose)
    if "error" in case:
        lines.append(f"  {case['error']}")
    lines += judged_again(case)
    if verbose > 1:
        lines += [f"  trace: {event}" for event in case.get("trace", ())]
        lines += [f"  {line}" for line in case.get("traceback", "").splitlines()]
    for splat in case.get("splats", ()):
        lines += splat_lines(splat, paint)
    return [*lines, f"  rerun: {reruns.line(rerun, case)}"]


def judged_again(case: CaseRecord) -> list[str]:
    """Return what came of a failed case when it was judged again: once more, or many times."""
    lines = [f"  {said}"] if (said := often(case)) else []
    if second := case.get("again"):
        left = ", ".join(second.get("seen", ())) or second.get("error") or second.get("reason")
        detail = f": {cut(left)}" if left else ""
        lines.append(f"  judged once more, alone: {second['verdict']}{detail}")
    if lines and case["verdict"] is Verdict.UNSTEADY:
        why = "no verdict; a race, or a host that is too busy: run it again, many times"
        lines.append(f"  {case['first']} did not repeat: {why}")
    return lines


def often(case: CaseRecord) -> str:
    """Return "judged 10 times: 3 FAIL, 7 PASS" of a case under ``--repeat``, or ""."""
    repeats = case.get("repeats", {})
    if "varied" in case:
        return f"judged {sum(repeats.values())} times: observed {' or '.join(case['varied'])}"
    if len(repeats) < 2 and not case["verdict"].is_bad:
        return ""
    said = ", ".join(f"{number} {verdict}" for verdict, number in sorted(repeats.items()))
    return f"judged {sum(repeats.values())} times: {said}" if repeats else ""


def cause(cause: Cause, paint: Paint, verbose: int = 0, rerun: str = reruns.HERE) -> list[str]:
    """Return what a cause makes fail: its line, and its first case; with ``verbose``, all."""
    lines = ["", paint("bold", cause.title)] if cause.entry else []
    for case in cause.cases if verbose else cause.cases[:1]:
        lines += failure(case, paint, verbose, rerun)
    rest = 0 if verbose else len(cause.cases) - 1
    return lines + (
        [f"  and {plural(rest, 'case')} more by {cause.entry}; -v shows all"] * (rest > 0)
    )


def splat_lines(splat: Sequence[str], paint: Paint) -> list[str]:
    """Return a splat of the kernel log, indented under a title."""
    return [f"  {paint('red', 'the kernel log')} says:", *(f"    {line}" for line in splat)]


def skips(cases: Sequence[CaseRecord], verbose: int = 0) -> list[str]:
    """Return what was not tested: skipped cases by reason, the most first; promises unchecked.

    A reason is one line with the themes of its cases; with ``verbose``, with all their ids.
    """
    groups: dict[str, list[str]] = {}
    for case in cases:
        if case["verdict"] == Verdict.SKIP:
            groups.setdefault(case["reason"], []).append(case["id"])
    if not groups:
        return []
    lines = ["", "not tested:" if verbose else "not tested (-v names the cases):"]
    for reason, ids in sorted(groups.items(), key=lambda group: -len(group[1])):
        where = ", ".join(ids) if verbose else themes(ids)
        lines.append(f"  {plural(len(ids), 'case')}: {reason}: {where}")
    ran = {
        name for case in cases if case["verdict"] != Verdict.SKIP for name in case["requirements"]
    }
    left = {name for case in cases for name in case["requirements"]} - ran
    return lines + ([f"  so nothing is known of {' '.join(sorted(left))}"] if left else [])


def ignoring(cases: Sequence[CaseRecord], host: Mapping[str, Any]) -> list[str]:
    """Return a line if ``kvm.ignore_msrs`` was 1 for the cases, or for some in a second pass."""
    count = sum(1 for case in cases if case.get("ignore_msrs"))
    parameters = (host.get("parameters") or {}).get("kvm", {})
    if not count:
        return []
    if parameters.get("ignore_msrs") in ("Y", "1"):
        return ["", "kvm.ignore_msrs is 1 here: unknown MSRs succeed"]
    return ["", f"{plural(count, 'case')} judged in a second pass, under kvm.ignore_msrs=1"]


def observations(cases: Sequence[CaseRecord], fingerprint: str, verbose: int = 0) -> list[str]:
    """Return the digest of what the ``observe`` cases saw; with ``verbose``, all of it."""
    seen = [case for case in cases if "observation" in case]
    if not seen:
        return []
    more = "" if verbose else "; -v shows them"
    lines = ["", f"fingerprint {fingerprint} of {plural(len(seen), 'observation')}{more}"]
    lines += [f"  flaky: {case['id']}: {cut(often(case), 2)}" for case in seen if "varied" in case]
    shown = seen if verbose else ()
    return lines + [f"  {case['id']}: {cut(case['observation'], verbose)}" for case in shown]


def plural(number: int, noun: str) -> str:
    """Return "1 case" or "2 cases"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def names(ids: Sequence[str], verbose: int = 0) -> str:
    """Return the first few ids, or all of them with ``verbose``."""
    rest = 0 if verbose else max(0, len(ids) - NAMES)
    shown = ", ".join(ids[: len(ids) - rest])
    return f"{shown} and {rest} more" if rest else shown


def themes(ids: Sequence[str]) -> str:
    """Return the id if it is one, or the themes with the most of them as globs."""
    if len(ids) == 1:
        return ids[0]
    counts = Counter(name.partition(".")[0] for name in ids).most_common()
    shown = ", ".join(f"{theme}.*" for theme, _ in counts[:THEMES])
    rest = len(counts) - THEMES
    return f"{shown} and {plural(rest, 'theme')} more" if rest > 0 else shown


def cut(text: str, verbose: int = 0) -> str:
    """Return the text, its end left out where it is too long for a line."""
    if verbose or len(text) <= WIDTH:
        return text
    return f"{text[:WIDTH]}... ({len(text) - WIDTH} more characters; -v shows all)"


def word(case: CaseRecord, paint: Paint) -> str:
    """Return the verdict of a case, as wide as all are, in its colour."""
    return paint(COLOUR_OF.get(case["verdict"], "yellow"), f"{case['verdict']:7}")


def _script(case: CaseRecord, paint: Paint, verbose: int) -> list[str]:
    script, step = list(case.get("script", [])), case.get("step", 0)
    script += ["(end of the script)"] if step > len(script) else []
    first, last = max(0, step - BEFORE), step + AFTER if step else len(script)
    if verbose or len(script) <= BEFORE + AFTER:
        first, last = 0, len(script)
    lines = [f"  {'':3} ... {first} steps before"] if first else []
    for number, action in enumerate(script[first:last], start=first + 1):
        mark = ">" if number == step else " "
        lines.append(f"  {mark} {number:3} {cut(action, verbose)}")
        lines += _difference(case, paint, verbose) if number == step else []
    rest = len(script) - last
    return lines + ([f"  {'':3} ... {rest} steps after"] if rest > 0 else [])


def _difference(case: CaseRecord, paint: Paint, verbose: int) -> list[str]:
    def events(step: list[str]) -> str:
        return cut(", ".join(step) or "nothing", verbose)

    return [
        f"        expected {paint('green', events(case['expected']))}",
        f"        seen     {paint('red', events(case['seen']))}",
    ]
