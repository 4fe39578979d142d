"""A run, or many, as Markdown for a ticket: what is wrong first, by cause."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vmm.conformance.records.causes import Cause, causes
from vmm.conformance.records.saved import Saved
from vmm.conformance.records.schema import run_of
from vmm.conformance.records.verdict import Verdict
from vmm.conformance.report import closing, text
from vmm.conformance.report.account import account, block, line, unfinished

SHOWN = 12
"""Skipped cases that are named for a reason, and the causes whose first case is shown in full."""


def render(runs: Sequence[Saved]) -> str:
    """Return the page."""
    parts = [part for saved in runs for part in _run(saved)]
    return "\n\n".join(["# msrward: KVM's MSR filter", *_table(runs), *parts]) + "\n"


def verdict(saved: Saved) -> str:
    """Return the last line of a run's report."""
    if not saved.end:
        return f"no verdict on {text.kernel(saved.host)}: {unfinished(saved)}"
    run = saved.run or run_of(len(saved.cases), len(saved.cases))
    return closing.verdict(run, saved.end, saved.host, lambda _, words: words)


def _table(runs: Sequence[Saved]) -> Iterator[str]:
    if len(runs) < 2:
        return
    rows = [
        "| run | failed | explained | skipped | passed | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for saved in runs:
        cases = account(saved)
        bad = [case for case in cases if case["verdict"].is_bad]
        known = sum(len(cause.cases) for cause in causes(bad, saved.host) if cause.entry)
        counts = [sum(case["verdict"] is each for case in cases) for each in _COUNTED]
        numbers = " | ".join(str(number) for number in (len(bad), known, *counts))
        rows.append(f"| {plain(saved.name)} | {numbers} | {plain(verdict(saved))} |")
    yield "\n".join(rows)


_COUNTED = (Verdict.SKIP, Verdict.PASS)


def _run(saved: Saved) -> Iterator[str]:
    cases = account(saved)
    yield f"## {plain(saved.name)}"
    yield f"**{plain(verdict(saved))}**"
    yield "\n".join(f"* {plain(each)}" for each in _host(saved))
    bad = [case for case in cases if case["verdict"].is_bad]
    for number, cause in enumerate(causes(bad, saved.host)):
        yield from _cause(cause, saved.host if number < SHOWN else None)
    if skips := text.skips(cases)[2:]:
        yield "Not tested:"
        yield "\n".join(f"* {plain(each.strip())}" for each in skips)


def _host(saved: Saved) -> Iterator[str]:
    host = saved.host
    yield f"build: {host.get('version') or 'unknown'}"
    yield f"CPU: {text.machine(host) or 'unknown'}"
    yield f"msrward {host.get('msrward') or 'unknown'}"
    if host.get("taint_letters"):
        yield f"tainted: {host['taint_letters']}"


def _cause(cause: Cause, host: Mapping[str, Any] | None) -> Iterator[str]:
    yield f"### {plain(cause.title)}"
    if host is None:
        yield plain(line(cause.first))
        return
    yield fenced(block(cause.first, host))
    if rest := cause.cases[1:]:
        names = ", ".join(code(case["id"]) for case in rest)
        more = f"<details><summary>{text.plural(len(rest), 'case')} more</summary>"
        yield f"{more}\n\n{names}\n\n</details>"


def fenced(code: str) -> str:
    """Return the text as a block that shows it as it is, whatever backticks it has."""
    longest = max((len(run) for run in re.findall("`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{code}\n{fence}"


def code(name: str) -> str:
    """Return a name as code, or as it is where a name would end what marks it as that."""
    return f"`{name}`" if re.fullmatch(r"[\w.-]+", name) else plain(name)


def plain(words: str) -> str:
    """Return words that Markdown shows as they are, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>#|~!&])", r"\\\1", " ".join(words.split()))
