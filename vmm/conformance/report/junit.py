"""JUnit XML as Jenkins, GitLab and GitHub's reporters read it: one suite a theme of each run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from vmm.conformance.records.saved import Saved
from vmm.conformance.records.schema import CaseRecord
from vmm.conformance.records.verdict import Verdict
from vmm.conformance.report.account import account, block, line, started, themes, titles

_ILLEGAL = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, not even as a reference."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
"""When a run began that does not say it: the format wants a time."""
_TALLIES = ("failures", "errors", "skipped")


def render(runs: Sequence[Saved]) -> str:
    """Return the document."""
    names = titles(runs) if len(runs) > 1 else ["msrward"]
    cases = [account(saved) for saved in runs]
    lines = ['<?xml version="1.0" encoding="UTF-8"?>']
    every = [case for each in cases for case in each]
    lines.append(f"<testsuites{_attributes(name='msrward', **_tally(every))}>")
    for number, (saved, name) in enumerate(zip(runs, names, strict=True)):
        lines += _run(saved, name, cases[number], len(runs) > 1)
    return "\n".join([*lines, "</testsuites>", ""])


def _run(saved: Saved, name: str, cases: Iterable[CaseRecord], many: bool) -> Iterator[str]:
    for word, those in themes(cases).items():
        host = str(saved.host.get("hostname") or (saved.host.get("lab") or {}).get("vendor") or "")
        known = {"name": f"{name}.{word}" if many else word, "hostname": host, **_tally(those)}
        yield f"<testsuite{_attributes(**known, timestamp=_timestamp(saved))}><properties>"
        yield from (
            f"<property{_attributes(name=fact, value=value)}/>" for fact, value in facts(saved.host)
        )
        yield "</properties>"
        for case in those:
            yield from _case(case, f"{name}.{word}", saved.host)
        yield "</testsuite>"


def facts(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Return the facts of a host as flat names and texts, without those that are not known."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from facts(value, f"{prefix}{name}.")
        elif value is not None:
            yield (prefix + name).strip() or "_", str(value)


def _case(case: CaseRecord, suite: str, host: Mapping[str, Any]) -> Iterator[str]:
    name = str(case["id"]).partition(".")[2].strip() or str(case["id"]).strip() or "_"
    seconds = f"{case['ms'] / 1000:.6f}"
    yield f"<testcase{_attributes(name=name, classname=suite, time=seconds)}>"
    said = line(case)
    match case["verdict"]:
        case Verdict.FAIL | Verdict.TIMEOUT:
            yield _element("failure", block(case, host), message=said, type=case["verdict"])
        case Verdict.ERROR | Verdict.UNSTEADY:
            yield _element("error", block(case, host), message=said, type=case["verdict"])
        case Verdict.SKIP:
            yield f"<skipped{_attributes(message=said)}/>"
        case Verdict.XFAIL:
            yield _element("skipped", block(case, host), message=f"a known failure: {said}")
        case Verdict.XPASS:
            yield _element("system-out", "expected to fail, and passes")
        case _ if said:
            yield _element("system-out", said)
    yield "</testcase>"


def _tally(cases: Iterable[CaseRecord]) -> dict[str, object]:
    verdicts = [(case["verdict"], case["ms"]) for case in cases]
    kinds = [kind(verdict) for verdict, _ in verdicts]
    seconds = sum(ms for _, ms in verdicts) / 1000
    return {
        "tests": len(kinds),
        **{name: kinds.count(name) for name in _TALLIES},
        "time": f"{seconds:.6f}",
    }


def kind(verdict: Verdict) -> str:
    """Return what JUnit counts a verdict as: failures, errors, skipped, or "" where it passed."""
    match verdict:
        case Verdict.FAIL | Verdict.TIMEOUT:
            return "failures"
        case Verdict.ERROR | Verdict.UNSTEADY:
            return "errors"
        case Verdict.SKIP | Verdict.XFAIL:
            return "skipped"
        case Verdict.PASS | Verdict.XPASS:
            return ""


def _timestamp(saved: Saved) -> str:
    return f"{started(saved) or EPOCH:%Y-%m-%dT%H:%M:%S}"


def _element(name: str, content: str, **attributes: object) -> str:
    return f"<{name}{_attributes(**attributes)}>{escape(_legal(content))}</{name}>"


def _attributes(**values: object) -> str:
    return "".join(f" {name}={quoteattr(_legal(str(value)))}" for name, value in values.items())


def _legal(text: str) -> str:
    return _ILLEGAL.sub("\ufffd", text)
