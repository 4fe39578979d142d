"""KCIDB's I/O format 5.3, which KernelCI's common database takes: checkouts, builds and tests.

A record knows the kernel that ran, and not what it was built of: that is told by whoever knows it,
as words NAME=VALUE, and is left out where nobody does.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from enum import Enum, auto
from typing import Any

from vmm.conformance.records.results import ResultsError
from vmm.conformance.records.saved import Saved
from vmm.conformance.records.schema import CaseRecord
from vmm.conformance.records.verdict import Verdict
from vmm.conformance.report.account import WHOLE, account, block, line, started
from vmm.conformance.report.text import kernel

CHECKOUT = (
    *("tree_name", "git_repository_url", "git_repository_branch"),
    *("git_commit_hash", "git_commit_name", "patchset_hash"),
)
BUILD = ("architecture", "compiler", "config_name", "config_url", "command")
IDS = ("origin", "checkout_id", "build_id")
EXCERPT = 16384
"""The characters that an excerpt of a log may have."""
_HOST = ("release", "version", "vendor_module", "cpu_model", "platform", "taint_letters", "msrward")


Object = dict[str, Any]
"""What of KCIDB's schema is no text or number."""


class Result(Enum):
    """KCIDB's words, which mean what KCIDB says, in the order of what it takes of many."""

    FAIL = auto()
    ERROR = auto()
    MISS = auto()
    PASS = auto()
    DONE = auto()
    SKIP = auto()


class Untold(ResultsError):
    """What the database must be told is not known; the text is one line for the user."""


def words(text: str) -> dict[str, str]:
    """Return "origin=me tree_name=mainline" as a mapping; Untold says what is wrong with it."""
    import shlex

    told: dict[str, str] = {}
    try:
        split = shlex.split(text)
    except ValueError as error:
        raise Untold(f"kcidb: {error} in {text!r}") from None
    for word in split:
        name, is_one, value = word.partition("=")
        if not is_one or name not in (*IDS, *CHECKOUT, *BUILD):
            known = ", ".join((*IDS, *CHECKOUT, *BUILD))
            raise Untold(f"kcidb: {word!r} is not NAME=VALUE with a name of {known}")
        told[name] = value
    return told


def render(runs: Sequence[Saved], told: Mapping[str, str]) -> str:
    """Return the JSON document; Untold says what is missing of ``told``, or cannot be of all."""
    check(told, runs)
    origin = told["origin"]
    checkouts, builds, tests = dict[str, Object](), dict[str, Object](), list[Object]()
    for saved in runs:
        build_id = told.get("build_id") or f"{origin}:{_digest(_built(saved))}"
        checkout_id = told.get("checkout_id") or f"{origin}:{_digest(_source(saved, told))}"
        if "build_id" not in told:
            known = {name: told[name] for name in BUILD if name in told}
            links = {"id": build_id, "origin": origin, "checkout_id": checkout_id}
            builds[build_id] = {**links, **known, "comment": kernel(saved.host)}
        if "checkout_id" not in told and "build_id" not in told:
            known = {name: told[name] for name in CHECKOUT if name in told}
            checkouts[checkout_id] = {"id": checkout_id, "origin": origin, **known}
        tests += [_test(case, saved, origin, build_id) for case in account(saved)]
    document: Object = {"version": {"major": 5, "minor": 3}}
    document |= {"checkouts": [*checkouts.values()]} if checkouts else {}
    document |= {"builds": [*builds.values()]} if builds else {}
    return json.dumps({**document, "tests": tests}, indent=1) + "\n"


def status(case: CaseRecord) -> Result:
    """Return KCIDB's word for what became of a case.

    A failure that is known is still a failure: known issues are KCIDB's own. MISS is for what was
    not judged to the end since the run was cut short.
    """
    if case["type"] in ("first", "whole"):
        return Result.FAIL if "splats" in case else Result.MISS
    match case["verdict"]:
        case Verdict.PASS | Verdict.XPASS:
            return Result.DONE if "observation" in case else Result.PASS
        case Verdict.FAIL | Verdict.TIMEOUT | Verdict.XFAIL:
            return Result.FAIL
        case Verdict.SKIP:
            return Result.SKIP
        case _:
            return Result.ERROR


def check(told: Mapping[str, str], runs: Sequence[Saved] = ()) -> None:
    """Raise Untold for what is missing, or cannot be of all the runs."""
    remedy = "say --kcidb NAME=VALUE, or set MSRWARD_KCIDB to such words"
    if not re.fullmatch("[a-z0-9_]+", told.get("origin", "")):
        raise Untold(f"kcidb needs origin=NAME, the CI system that submits (a-z, 0-9, _): {remedy}")
    if not all(re.fullmatch("[a-z0-9_]+:.*", told.get(each, "a:")) for each in IDS[1:]):
        raise Untold("checkout_id and build_id begin with their origin and a colon: origin:ID")
    if not re.fullmatch("[0-9a-f]{40}", told.get("git_commit_hash", "0" * 40)):
        raise Untold("git_commit_hash has 40 hex digits")
    if not told.get("git_repository_url", "https://").startswith("https://"):
        raise Untold("git_repository_url begins with https://")
    kernels = {_built(saved) for saved in runs}
    if len(kernels) > 1 and (of_one := [each for each in ("build_id", *BUILD) if each in told]):
        raise Untold(f"{of_one[0]} is of one build, and these are runs of {len(kernels)} kernels")


def _source(saved: Saved, told: Mapping[str, str]) -> str:
    named = [told[name] for name in CHECKOUT if name in told]
    return "\n".join(named) if "git_commit_hash" in told else "\n".join([*named, _built(saved)])


def _built(saved: Saved) -> str:
    return f"{saved.host.get('release')}\n{saved.host.get('version')}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _test(case: CaseRecord, saved: Saved, origin: str, build_id: str) -> Object:
    host = saved.host
    began = saved.run.get("started") if saved.run else None
    run = f"{began} {host.get('boot_id')} {host.get('hostname')} {_built(saved)}"
    run += f" {host.get('lab')}"
    test: Object = {
        "id": f"{origin}:{_digest(run)}-{case['id']}",
        "origin": origin,
        "build_id": build_id,
        "path": "msrward" if case["id"] == WHOLE else f"msrward.{_path(case['id'])}",
        "status": status(case).name,
        "comment": str(case.get("sentence", "")).replace("\0", " "),
        "duration": case["ms"] / 1000,
        "environment": _environment(host),
    }
    if at := started(saved):
        test["start_time"] = at.isoformat()
    if excerpt := line(case) if case["verdict"].is_good else block(case, host):
        test["log_excerpt"] = excerpt.replace("\0", "\ufffd")[:EXCERPT]
    known = ("requirements", "cause", "need", "repeats")
    told: Mapping[str, Any] = case
    misc = {"verdict": case["verdict"], **{name: told[name] for name in known if told.get(name)}}
    return {**test, "misc": misc}


def _path(name: str) -> str:
    """Return a name as a path of KCIDB's: words with a dot between each two."""
    return ".".join(re.sub(r"[^A-Za-z0-9_-]", "_", word) or "_" for word in name.split("."))


def _environment(host: Mapping[str, Any]) -> Object:
    lab = host.get("lab") or {}
    facts = {name: host[name] for name in _HOST if host.get(name)}
    where = {f"lab_{name}": lab[name] for name in ("vendor", "emulator", "append") if lab.get(name)}
    return {"comment": kernel(host), "misc": {**facts, **where}}
