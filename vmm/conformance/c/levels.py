"""An L2 as the call of the word in C that enters it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vmm.conformance.c.text import c_number
from vmm.conformance.language import script as s

THROUGH = {"read": "READS", "write": "WRITES", "both": "READS | WRITES"}


def enter_l2(action: s.EnterL2, _: object) -> Iterable[str]:
    """Yield the call that enters an L2, with what of it is not 0."""
    fields = [*_l2_fields(action)]
    yield f"\tenter_l2({action.vcpu}, (struct l2){{{'' if fields else ' 0 });'}"
    if fields:
        yield from (f"\t\t{each}" for each in fields)
        yield "\t});"


def _l2_fields(action: s.EnterL2) -> Iterator[str]:
    yield from [".passes_all = 1,"] * (action.passes == "all")
    yield from [".no_bitmap = 1,"] * (not action.bitmap)
    if isinstance(action.passes, tuple) and action.passes:
        rows = [f"{{ {c_number(each.index)}, {THROUGH[each.access]} }}" for each in action.passes]
        yield f".n_through = {len(rows)},"
        yield from _rows(".through = (struct through[]){", rows, "},")
    for name in ("entry_load", "exit_store", "exit_load"):
        if msrs := getattr(action, name):
            rows = [f"{{ {c_number(each.index)}, 0, {c_number(each.value)} }}" for each in msrs]
            yield from _rows(f".{name} = {{ {len(msrs)}, (struct listed[]){{", rows, "} },")
    yield from [".fields = 1,"] * action.fields
    yield from [".clean = 1,"] * action.clean


def _rows(head: str, rows: list[str], end: str) -> Iterator[str]:
    yield head
    for at in range(0, len(rows), 3):
        yield "\t" + " ".join(f"{each}," for each in rows[at : at + 3])
    yield end
