"""What differs between two runs: verdicts, observations, facts of the hosts."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vmm.conformance.contract.requirements import explain_case
from vmm.conformance.records.saved import Saved
from vmm.conformance.report.text import cut, judged_again

INCIDENTAL = ("boot_id", "lab.boot_seconds", "lab.machines", "memory_bytes")
"""Facts that differ between two boots of the same kernel on the same machine."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What changed from the first run to the second, by case id or fact name.

    ``verdicts`` and ``facts`` have both sides; ``observations`` too; ``alone`` has the ids that
    only one run judged.
    """

    verdicts: Mapping[str, tuple[str, str]]
    observations: Mapping[str, tuple[str, str]]
    alone: tuple[tuple[str, ...], tuple[str, ...]]
    facts: Mapping[str, tuple[Any, Any]]

    @property
    def same(self) -> bool:
        """Whether both kernels behaved alike; their facts may differ."""
        return not (self.verdicts or self.observations or any(self.alone))


def difference(first: Saved, second: Saved) -> Difference:
    """Compare two runs."""
    both = [name for name in first.cases if name in second.cases]
    return Difference(
        _changes(first, second, both, "verdict"),
        _changes(first, second, both, "observation"),
        (_missing(first, second), _missing(second, first)),
        _facts(first.host, second.host),
    )


def lines(first: Saved, second: Saved) -> list[str]:
    """Return the comparison for a person to read."""
    found = difference(first, second)
    out = [f"A: {first.name}: {first.path}", f"B: {second.name}: {second.path}"]
    for name, (old, new) in found.verdicts.items():
        out += ["", f"{name}: {old} -> {new}", f"  {second.cases[name]['sentence']}"]
        out += [f"  {line}" for line in _explanation(first, second, name)]
    for name, (old, new) in found.observations.items():
        out += ["", f"{name}: observed differently", f"  A {cut(old)}", f"  B {cut(new)}"]
        out += [f"  the first event that differs: {' -> '.join(_first_event(old, new))}"]
    for which, ids in zip("AB", found.alone, strict=True):
        out += ["", f"only in {which}: {', '.join(ids)}"] if ids else []
    if found.facts:
        out += ["", "facts that differ:"]
        out += [f"  {name}: {old!r} -> {new!r}" for name, (old, new) in found.facts.items()]
    return [*out, "", _verdict(found, first, second)]


def _changes(first: Saved, second: Saved, ids: list[str], key: str) -> dict[str, tuple[str, str]]:
    pairs = {name: (first.cases[name].get(key), second.cases[name].get(key)) for name in ids}
    return {n: (str(a), str(b)) for n, (a, b) in pairs.items() if a != b and None not in (a, b)}


def _missing(here: Saved, there: Saved) -> tuple[str, ...]:
    return tuple(name for name in here.cases if name not in there.cases)


def _facts(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    ours, theirs = dict(_flat(first)), dict(_flat(second))
    names = [name for name in {**ours, **theirs} if name not in INCIDENTAL]
    pairs = {name: (ours.get(name), theirs.get(name)) for name in sorted(names)}
    return {name: (a, b) for name, (a, b) in pairs.items() if a != b}


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in facts.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _explanation(first: Saved, second: Saved, name: str) -> Iterator[str]:
    for which, run in (("A", first), ("B", second)):
        case = run.cases[name]
        if case["verdict"].is_bad and "expected" in case:
            yield f"{which} at step {case['step']}, {cut(case['action'])}:"
            yield f"  expected {cut(', '.join(case['expected']) or 'nothing')}"
            yield f"  seen     {cut(', '.join(case['seen']) or 'nothing')}"
        yield from (f"{which}: {line.strip()}" for line in judged_again(case))
        if case["verdict"].is_bad:
            yield from explain_case(case["requirements"], case.get("cause", ""))
        if "reason" in case:
            yield f"{which}: {case['reason']}"


def _first_event(old: str, new: str) -> tuple[str, str]:
    """Return the first event that differs; an event ends with its closing bracket or word."""
    events = [re.split(r", (?=[A-Za-z_]+(?:[(,]|$))", text) for text in (old, new)]
    pairs = itertools.zip_longest(*events, fillvalue="nothing")
    return next(((a, b) for a, b in pairs if a != b), ("", ""))


def _verdict(found: Difference, first: Saved, second: Saved) -> str:
    both = len(set(first.cases) & set(second.cases))
    if found.same:
        return f"the same: {both} cases have the same verdicts and observations"
    parts = (
        f"{len(found.verdicts)} verdicts and {len(found.observations)} observations differ",
        f"of {both} cases in both; {len(found.alone[0])} are only in A, {len(found.alone[1])} in B",
    )
    return "different: " + " ".join(parts)
