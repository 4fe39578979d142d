"""Records as JSON lines (``records.schema`` documents them)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from vmm.conformance.records.schema import SCHEMA, Record
from vmm.conformance.records.verdict import Verdict

OF_A_CASE = ("first", "case")
"""The types of records that are about one case."""


def encoder(host: Mapping[str, Any]) -> Callable[[Record], str]:
    """Return what turns a record into its line, newline included; ``host`` is serialised once."""
    tail = f', "host": {json.dumps(host, sort_keys=True)}}}\n'

    def line(record: Record) -> str:
        return json.dumps({"schema": SCHEMA, **record})[:-1] + tail

    return line


def decode(line: str) -> Record:
    """Return the record of one line; ValueError says what is wrong with it."""
    record = json.loads(line)
    if not isinstance(record, dict) or record.get("type") not in ("run", "first", "case", "end"):
        raise ValueError("not a record")
    if record.get("schema") != SCHEMA:
        raise ValueError(f"schema {record.get('schema')!r}, this version reads {SCHEMA}")
    if record["type"] in OF_A_CASE:
        _decode_case(record)
    if not isinstance(record.get("host"), dict):
        raise ValueError("no host facts")
    return record


def _decode_case(record: Record) -> None:
    if not {"id", "verdict", "requirements"} <= record.keys():
        raise ValueError("a case without id, verdict or requirements")
    for holder in (record, record.get("again", {})):
        for name in ("verdict", "first") & holder.keys():
            holder[name] = Verdict(holder[name])
