"""How the report that a person reads ends: what did not go as it should, and the verdict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vmm.conformance.contract.history import HISTORY
from vmm.conformance.records.causes import Cause, causes
from vmm.conformance.records.schema import CaseRecord, Changes, EndRecord, RunRecord
from vmm.conformance.records.status import Status
from vmm.conformance.records.verdict import Verdict
from vmm.conformance.report.text import Paint, kernel, names, plural, splat_lines, word


def summary(
    cases: Sequence[CaseRecord], end: EndRecord, paint: Paint, host: Mapping[str, Any] | None = None
) -> list[str]:
    """Return what did not go as it should: causes, then what none explains; broken requirements.

    A cause has a line for each verdict that its cases have, a case that no cause names its own.
    What was seen in the kernel log and is no case's follows.
    """
    listed = [case for case in cases if case["verdict"] not in (Verdict.PASS, Verdict.SKIP)]
    known = [cause for cause in causes(listed, host) if cause.entry]
    named = {case["id"] for cause in known for case in cause.cases}
    lines = [
        f"{word(those[0], paint)} {Cause(cause.entry, those).title}"
        for cause in known
        for those in _by_verdict(cause.cases)
    ]
    lines += [f"{word(case, paint)} {case['id']}" for case in listed if case["id"] not in named]
    lines += [
        f"{Verdict.XPASS:7} {entry}: known, and no case fails by it: {HISTORY[entry].title}"
        for entry in end.get("unseen", ())
        if entry in HISTORY
    ]
    lines += [f"not kept: {' '.join(ids)}" for ids in [end.get("broken", ())] if ids]
    lines += [f"foreign, of no case here: {line}" for line in end.get("foreign", ())]
    for splat in end["splats"]:
        lines += splat_lines(splat, paint)
    if end["lost"]:
        lines.append(
            f"{end['lost']} kernel log records were overwritten unread: a splat may be lost"
        )
    return ["", *lines] if lines else []


def _by_verdict(cases: Iterable[CaseRecord]) -> Iterable[tuple[CaseRecord, ...]]:
    found: dict[str, tuple[CaseRecord, ...]] = {}
    for case in cases:
        found[case["verdict"]] = (*found.get(case["verdict"], ()), case)
    return found.values()


def since(end: EndRecord, verbose: int = 0) -> list[str]:
    """Return what changed since the baseline of the run, where it had one."""
    found = end.get("baseline")
    if not found:
        return []
    lines = [
        f"  newly {word}: {plural(len(ids), 'case')}: {names(ids, verbose)}"
        for word, ids in newly(found)
        if ids
    ]
    return ["", f"since {found['path']}:", *(lines or ["  no verdict changed"])]


def newly(since: Changes) -> Sequence[tuple[str, list[str]]]:
    """Return the ids of the cases that newly are so, by what they are."""
    return [
        ("failing", since["failing"]),
        ("passing", since["passing"]),
        ("skipped", since["skipped"]),
    ]


def verdict(run: RunRecord, end: EndRecord, host: Mapping[str, Any], paint: Paint) -> str:
    """Return the one line that says it all."""
    counts = end["counts"]
    columns = {
        Verdict.PASS: "passed",
        Verdict.FAIL: "failed",
        Verdict.SKIP: "skipped",
        "observed": "observed",
    }
    rare = {
        "refused": "refused here",
        Verdict.TIMEOUT: "timed out",
        Verdict.UNSTEADY: "unsteady",
        Verdict.ERROR: "in error",
        Verdict.XFAIL: "failed as known",
        Verdict.XPASS: "passed unexpectedly",
    }
    parts = [f"{counts.get(name, 0)} {said}" for name, said in columns.items()]
    parts += [f"{counts[name]} {said}" for name, said in rare.items() if name in counts]
    good = end["status"] == Status.CONFORMS
    judged = paint("green" if good else "red", _judgement(run, end, kernel(host)))
    return f"{judged}: {', '.join(parts)} in {end['seconds']:.1f} s"


def _judgement(run: RunRecord, end: EndRecord, name: str) -> str:
    whole = run["cases"] == run["catalogue"]
    unsteady = Verdict.UNSTEADY in end["counts"]
    trouble = "what failed did not repeat" if unsteady else "the harness had trouble"
    some = f"the {plural(run['cases'], 'selected case')} of {run['catalogue']}"
    words = {
        Status.INTERRUPTED: f"interrupted before a verdict on {name}",
        Status.TROUBLE: f"no verdict on {name}, {trouble}",
        Status.UNTESTED: f"nothing could be tested on {name}",
        Status.VIOLATES: f"{name} does not keep the contract",
    }
    if since := end.get("baseline"):
        path = since["path"]
        words[Status.VIOLATES] = f"{name} fails what it did not in {path}"
        return words.get(end["status"], f"{name} fails nothing that it did not in {path}")
    kept = f"{name} keeps the contract" if whole else f"{name} passes {some}"
    return words.get(end["status"], kept)
