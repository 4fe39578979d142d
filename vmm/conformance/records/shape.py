"""What a record must be like to be read: the types of its fields, and how much of it there may be.

A record may come from a kernel under test or a file of anybody. What passes here can be shown and
computed with by every reader without another look: its texts are plain (``records.plain``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from vmm.conformance.records.plain import plain, plain_lines
from vmm.conformance.records.schema import Record
from vmm.conformance.records.status import Status
from vmm.conformance.records.verdict import Verdict

LINE = 4 << 20
"""Characters of a record's line, at most."""
DEPTH = 12
"""How deep objects and lists may lie in each other."""
FIELDS = 100_000
"""Values in one record, those of its objects and lists counted too."""
HOST = 2_000
"""Values in the facts of a host."""
FACTS = 64 << 10
"""Characters in the facts of a host: every record of a run repeats them."""
BUCKETS = 64
"""Counts of a histogram, at most."""
MOST = float(1 << 53)
"""What no number of a record reaches: further, JSON's numbers are not exact."""

Check = Callable[[Any], bool]


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _maybe_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < MOST


def _number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < MOST


def _maybe_number(value: Any) -> bool:
    return value is None or _number(value)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_text, value))


def _blocks(value: Any) -> bool:
    return isinstance(value, list) and all(map(_texts, value))


def _changes(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"path", "failing", "passing", "skipped"}
        and _text(value["path"])
        and all(_texts(ids) for word, ids in value.items() if word != "path")
    )


def _series(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(points, list)
        and all(
            isinstance(each, list) and len(each) == 2 and all(map(_number, each)) for each in points
        )
        for points in value.values()
    )


def _histograms(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(counts, list) and len(counts) <= BUCKETS and all(map(_count, counts))
        for counts in value.values()
    )


def _found(value: Any) -> bool:
    checks = {"case": _text, "seed": _whole, "examples": _count, "bulk": _flag, "steady": _flag}
    return (
        isinstance(value, dict)
        and value.keys() == checks.keys()
        and all(check(value[name]) for name, check in checks.items())
    )


def _whole(value: Any) -> bool:
    return type(value) is int and -MOST < value < MOST


def _verdict(value: Any) -> bool:
    return isinstance(value, str) and value in set(Verdict)


def _status(value: Any) -> bool:
    return type(value) is int and value in set(Status)


def _counts(value: Any) -> bool:
    columns = {*Verdict, "observed", "refused"}
    return isinstance(value, dict) and value.keys() <= columns and all(map(_count, value.values()))


def _repeats(value: Any) -> bool:
    return _counts(value) and value.keys() <= set(Verdict)


def _parameters(value: Any) -> bool:
    return value is None or (
        isinstance(value, dict) and all(isinstance(each, dict) for each in value.values())
    )


Fields = Mapping[str, Check]
_MUST: Mapping[str, Fields] = MappingProxyType(
    {
        "run": {"cases": _count, "catalogue": _count, "resumed": _count, "kernel_log": _text},
        "case": {
            **{"id": _text, "sentence": _text, "requirements": _texts},
            **{"verdict": _verdict, "ms": _number},
        },
        "end": {
            **{"counts": _counts, "seconds": _number, "interrupted": _flag, "status": _status},
            **{"fingerprint": _text, "splats": _blocks, "lost": _count},
        },
        "lab": {"vendor": _text, "emulator": _text},
    }
)
_DIFFERENCE: Fields = {"step": _count, "action": _text, "expected": _texts, "seen": _texts}
_MAY: Mapping[str, Fields] = MappingProxyType(
    {
        "run": {
            **{"started": _number, "jobs": _count, "timeout": _number},
            **{"shard": _text, "merged": _count, "repeat": _count},
        },
        "case": {
            **_DIFFERENCE,
            **dict.fromkeys(("script", "trace", "varied", "kept"), _texts),
            **dict.fromkeys(
                (*("observation", "reason", "need", "error", "traceback", "file"), "cause"), _text
            ),
            **{"splats": _blocks, "ignore_msrs": _flag, "first": _verdict, "series": _series},
            **{"histograms": _histograms, "found": _found, "repeats": _repeats},
        },
        "end": {
            **dict.fromkeys(("foreign", "broken", "unseen", "report"), _texts),
            "baseline": _changes,
        },
        "ended": {
            **{"outcome": _text, "reason": _text, "attempts": _count, "console": _texts},
            **{f"{name}_seconds": _maybe_number for name in ("boot", "suite", "total")},
        },
        "lab": {
            **dict.fromkeys(("kernel", "append", "cpu"), _text),
            **{"boot_seconds": _maybe_number, "machines": _count},
        },
        "host": {
            **dict.fromkeys(
                (
                    *("release", "version", "hostname", "vendor_module", "cpu_model", "platform"),
                    "msrward",
                ),
                _maybe_text,
            ),
            "parameters": _parameters,
        },
    }
)
_ALL_OR_NONE = frozenset(_DIFFERENCE)


def checked(record: Any) -> Record:
    """Return the record of a run, or raise ValueError that says which field is wrong, and how.

    Its texts are made plain; ``traceback`` keeps its lines.
    """
    if not isinstance(record, dict) or record.get("type") not in ("run", "first", "case", "end"):
        raise ValueError("not a record")
    plainly: Record = _plain(record, "", [FIELDS], DEPTH)
    kind = "case" if record["type"] == "first" else record["type"]
    _has(plainly, _MUST[kind], _MAY[kind], "")
    if kind == "case":
        _case(plainly)
    if kind == "end" and "lab" in plainly:
        _object(plainly["lab"], "lab")
        _has(plainly["lab"], {}, _MAY["ended"], "lab.")
    _host(plainly.get("host"))
    return plainly


def _plain(value: Any, name: str, left: list[int], depth: int) -> Any:
    left[0] -= 1
    if left[0] < 0:
        raise ValueError(f"more than {FIELDS} values")
    if isinstance(value, str):
        return plain_lines(value) if name == "traceback" else plain(value)
    if not isinstance(value, list | dict):
        return value
    if not depth:
        raise ValueError(f"nested more than {DEPTH} deep")
    if isinstance(value, list):
        return [_plain(each, name, left, depth - 1) for each in value]
    return {plain(key): _plain(each, key, left, depth - 1) for key, each in value.items()}


def _has(record: Record, must: Fields, may: Fields, where: str) -> None:
    for name, check in must.items():
        if name not in record:
            raise ValueError(f"{where}{name} is missing")
        _is(record, name, check, where)
    for name, check in may.items():
        if name in record:
            _is(record, name, check, where)


def _is(record: Record, name: str, check: Check, where: str) -> None:
    if not check(record[name]):
        raise ValueError(f"{where}{name} is {_shown(record[name])}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _object(value: Any, name: str) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {_shown(value)}")


def _case(case: Record) -> None:
    if not case["id"]:
        raise ValueError("id is ''")
    _difference(case, "")
    if "again" in case:
        _object(case["again"], "again")
        _has(case["again"], {"verdict": _verdict, "ms": _number}, _MAY["case"], "again.")
    also = case.get("also", [])
    if not isinstance(also, list):
        raise ValueError(f"also is {_shown(also)}")
    for number, each in enumerate(also):
        _object(each, f"also[{number}]")
        _has(each, _DIFFERENCE, {}, f"also[{number}].")
    for holder in (case, case.get("again", {})):
        for name in ("verdict", "first") & holder.keys():
            holder[name] = Verdict(holder[name])
    lacks = {Verdict.SKIP: "reason", Verdict.UNSTEADY: "first"}.get(case["verdict"], "id")
    if lacks not in case:
        raise ValueError(f"{case['verdict']} without {lacks}")


def _difference(case: Record, where: str) -> None:
    there = _ALL_OR_NONE & case.keys()
    if there and there != _ALL_OR_NONE:
        missing = ", ".join(sorted(_ALL_OR_NONE - there))
        raise ValueError(f"{where}{missing} is missing beside {', '.join(sorted(there))}")


def _host(host: Any) -> None:
    if not isinstance(host, dict):
        raise ValueError("no host facts")
    _has(host, {}, _MAY["host"], "host.")
    _plain(host, "", [HOST], DEPTH)
    if len(repr(host)) > FACTS:
        raise ValueError(f"the host's facts are more than {FACTS >> 10} KiB")
    if "lab" in host:
        _object(host["lab"], "host.lab")
        _has(host["lab"], _MUST["lab"], _MAY["lab"], "host.lab.")
