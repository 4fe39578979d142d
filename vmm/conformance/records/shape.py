"""What a record must be like to be read: the types of its fields, and how much of it there may be.

A record may come from a kernel under test or a file of anybody. What passes here can be shown and
computed with by every reader without another look: its texts are plain (``records.plain``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from vmm.conformance.records import values
from vmm.conformance.records.plain import plain, plain_lines
from vmm.conformance.records.schema import Record
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
Fields = Mapping[str, Callable[[Any], bool]]
_MUST: Mapping[str, Fields] = MappingProxyType(
    {
        "run": {
            "cases": values.count,
            "catalogue": values.count,
            "resumed": values.count,
            "kernel_log": values.text,
        },
        "case": {
            **{"id": values.text, "sentence": values.text, "requirements": values.texts},
            **{"verdict": values.verdict, "ms": values.number},
        },
        "end": {
            **{
                "counts": values.counts,
                "seconds": values.number,
                "interrupted": values.flag,
                "status": values.status,
            },
            **{"fingerprint": values.text, "splats": values.blocks, "lost": values.count},
        },
        "lab": {"vendor": values.text, "emulator": values.text},
    }
)
_DIFFERENCE: Fields = {
    "step": values.count,
    "action": values.text,
    "expected": values.texts,
    "seen": values.texts,
}
_MAY: Mapping[str, Fields] = MappingProxyType(
    {
        "run": {
            **{"started": values.number, "jobs": values.count, "timeout": values.number},
            **{"shard": values.text, "merged": values.count, "repeat": values.count},
        },
        "case": {
            **_DIFFERENCE,
            **dict.fromkeys(("script", "trace", "varied", "kept"), values.texts),
            **dict.fromkeys(
                (*("observation", "reason", "need", "error", "traceback", "file"), "cause"),
                values.text,
            ),
            **{
                "splats": values.blocks,
                "ignore_msrs": values.flag,
                "first": values.verdict,
                "series": values.series,
            },
            **{"histograms": values.histograms, "found": values.found, "repeats": values.repeats},
        },
        "end": {
            **dict.fromkeys(("foreign", "broken", "unseen", "report"), values.texts),
            "baseline": values.changes,
        },
        "ended": {
            **{
                "outcome": values.text,
                "reason": values.text,
                "attempts": values.count,
                "console": values.texts,
            },
            **{f"{name}_seconds": values.maybe_number for name in ("boot", "suite", "total")},
        },
        "lab": {
            **dict.fromkeys(("kernel", "append", "cpu"), values.text),
            **{"boot_seconds": values.maybe_number, "machines": values.count},
        },
        "host": {
            **dict.fromkeys(
                (
                    *("release", "version", "hostname", "vendor_module", "cpu_model", "platform"),
                    "msrward",
                ),
                values.maybe_text,
            ),
            "parameters": values.parameters,
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


def _is(record: Record, name: str, check: Callable[[Any], bool], where: str) -> None:
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
        _has(
            case["again"], {"verdict": values.verdict, "ms": values.number}, _MAY["case"], "again."
        )
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
