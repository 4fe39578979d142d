"""Records as JSON lines: what ``results.jsonl`` and ``--json`` hold, schema version 1.

Every line is one object with ``schema`` (1), ``type`` and ``host`` (``vmm.conformance.host.facts``:
the kernel release, vendor module, CPU, bare metal or nested, module parameters, capabilities,
taint).

``run`` opens a run: ``started`` (seconds since 1970), ``cases`` (how many are to be judged, out of
``catalogue``), ``resumed`` (how many of them an earlier run had recorded), ``jobs``, ``timeout``
(seconds for a case) and ``kernel_log`` ("watched", or why not).

``case`` is one case: ``id``, ``sentence``, ``requirements`` (ids), ``verdict`` (PASS FAIL SKIP
XFAIL XPASS ERROR TIMEOUT), ``ms``, and, where they apply:

- ``script``, one action's code text an item: of every case that is not PASS, SKIP or XPASS;
- ``trace``, all events seen, of a case that saw others than expected; ``step`` (from 1) is where
  they first differ, with its ``action``, ``expected`` and ``seen`` events, and ``also`` the same of
  each later step that differs;
- ``cause``: the entry of the history that explains all that differs, where one does;
- ``observation``: what an ``observe`` case saw, one line;
- ``reason``: why it was skipped; ``need``: the word of ``Case.all_needs`` that this host lacks;
- ``file``: the JSON that the case was read from, if it is none of the catalogue;
- ``ignore_msrs``: true of what was judged while ``kvm.ignore_msrs`` was 1;
- ``error`` (one line) and ``traceback`` when the harness failed; ``splats``: kernel log lines of
  each splat that fell in the case.

In the lab ``host`` has ``lab`` as well: ``kernel`` (what the user called it), ``vendor``,
``emulator``, ``append`` (what its command line has besides), ``boot_seconds``, ``attempts``; a case
has ``rerun``, the command that takes its id; ``end`` has ``lab``: ``outcome``, ``reason``, seconds,
and the ``console``'s end when it matters.

``end`` closes a run: ``counts`` (by verdict, and ``observed``), ``seconds``, ``interrupted``,
``status`` (the exit status), ``fingerprint`` (12 hex digits over all observations), ``splats``
that fell in no case, and ``lost`` (kernel log records that were overwritten unread).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

SCHEMA = 1
Record = dict[str, Any]


def encoder(host: Mapping[str, Any]) -> Callable[[Record], str]:
    """Return what turns a record into its line, newline included; ``host`` is serialised once."""
    tail = f', "host": {json.dumps(host, sort_keys=True)}}}\n'

    def line(record: Record) -> str:
        return json.dumps({"schema": SCHEMA, **record})[:-1] + tail

    return line


def decode(line: str) -> Record:
    """Return the record of one line; ValueError says what is wrong with it."""
    record = json.loads(line)
    if not isinstance(record, dict) or record.get("type") not in ("run", "case", "end"):
        raise ValueError("not a record")
    if record.get("schema") != SCHEMA:
        raise ValueError(f"schema {record.get('schema')!r}, this version reads {SCHEMA}")
    if record["type"] == "case" and not {"id", "verdict", "requirements"} <= record.keys():
        raise ValueError("a case without id, verdict or requirements")
    if not isinstance(record.get("host"), dict):
        raise ValueError("no host facts")
    return record
