"""What a record must be like to be read: of its type, and no more of it than there may be.

A record may come from a kernel under test or a file of anybody. What passes here can be shown and
computed with by every reader without another look: its texts are plain (``records.plain``), and it
is what its type says (``records.schema``).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

from vmm.conformance.records.plain import plain, plain_lines
from vmm.conformance.records.reading import reads
from vmm.conformance.records.schema import (
    CaseRecord,
    EndRecord,
    HostFacts,
    Record,
    RunRecord,
    StepRecord,
)
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
KINDS: Mapping[str, type] = MappingProxyType(
    {"run": RunRecord, "first": CaseRecord, "case": CaseRecord, "end": EndRecord}
)
"""The type that a record has, by what its ``type`` says."""
_ALL_OR_NONE = StepRecord.__required_keys__
_MUST_SAY = {Verdict.SKIP: "reason", Verdict.UNSTEADY: "first"}


def checked(record: Any) -> Record:
    """Return the record of a run, or raise ValueError that says which field is wrong, and how.

    Its texts are made plain; ``traceback`` keeps its lines.
    """
    if not isinstance(record, dict) or record.get("type") not in [*KINDS]:
        raise ValueError("not a record")
    plainly = _plain(record, "", [FIELDS], DEPTH)
    read = cast(Record, reads(KINDS[record["type"]])(plainly, ""))
    if read["type"] != "run" and read["type"] != "end":
        _require_whole(read)
    if "host" not in read:
        raise ValueError("no host facts")
    _require_little(read["host"])
    return read


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


def _require_whole(case: CaseRecord) -> None:
    """Raise ValueError where a field of a case is not there that another makes necessary."""
    there = _ALL_OR_NONE & case.keys()
    if there and there != _ALL_OR_NONE:
        missing = ", ".join(sorted(_ALL_OR_NONE - there))
        raise ValueError(f"{missing} is missing beside {', '.join(sorted(there))}")
    lacks = _MUST_SAY.get(case["verdict"], "id")
    if lacks not in case:
        raise ValueError(f"{case['verdict']} without {lacks}")


def _require_little(host: HostFacts) -> None:
    _plain(host, "", [HOST], DEPTH)
    if len(repr(host)) > FACTS:
        raise ValueError(f"the host's facts are more than {FACTS >> 10} KiB")
