"""Records as JSON lines (``records.schema`` documents them)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from vmm.conformance.records.plain import plain
from vmm.conformance.records.schema import SCHEMA, Record
from vmm.conformance.records.shape import LINE, checked

OF_A_CASE = ("first", "case")
"""The types of records that are about one case."""
LIVE = 400
"""Characters of a ``live`` line that are shown, at most."""


def encoder(host: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], str]:
    """Return what turns a record into its line, newline included; ``host`` is serialised once."""
    tail = f', "host": {json.dumps(host, sort_keys=True)}}}\n'

    def line(record: Mapping[str, Any]) -> str:
        return json.dumps({"schema": SCHEMA, **record})[:-1] + tail

    return line


def live(text: str) -> str:
    """Return the line, newline included, that says in passing what a run does."""
    return json.dumps({"schema": SCHEMA, "type": "live", "line": text}) + "\n"


def decode(line: str) -> Record:
    """Return the record of one line, its texts plain; ValueError says what is wrong with it."""
    return checked(_object(line))


def decode_live(line: str) -> Record | str:
    """Return the record of a line as ``decode`` does, or the plain text of a ``live`` one."""
    record = _object(line)
    if not isinstance(record, dict) or record.get("type") != "live":
        return checked(record)
    if not isinstance(text := record.get("line"), str):
        raise ValueError(f"line is {repr(text)[:60]}")
    return plain(text[:LIVE])


def _object(line: str) -> Any:
    if len(line) > LINE:
        raise ValueError(f"a line of more than {LINE >> 20} MiB")
    try:
        record = json.loads(line, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("nested without end") from None
    if isinstance(record, dict) and record.get("schema", SCHEMA) != SCHEMA:
        raise ValueError(f"schema {str(record['schema'])[:20]!r}, this version reads {SCHEMA}")
    return record


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")
