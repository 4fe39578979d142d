"""The data and the texts of a program in C: filters, and what a step must leave."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from itertools import groupby
from typing import Any

from vmm.conformance.language import script as s
from vmm.conformance.language.vocabulary import word_of
from vmm.exits import RdmsrExit, WrmsrExit
from vmm.filter import AtEdge, MsrFilter, MsrRange, Pointer, bitmap_bytes
from vmm.msr import MsrExitReason

ACCESS = {1: "KVM_MSR_FILTER_READ", 2: "KVM_MSR_FILTER_WRITE"}
ACCESS[3] = f"{ACCESS[1]} | {ACCESS[2]}"
DEFAULT = {0: "KVM_MSR_FILTER_DEFAULT_ALLOW", 1: "KVM_MSR_FILTER_DEFAULT_DENY"}


def filter_data(number: int, action: s.Install) -> Iterator[str]:
    """Yield the data of the filter that step ``number`` installs, if it is read at all."""
    if action.argp is not None:
        return
    for slot, each in enumerate(action.filter.ranges):
        if not isinstance(each.bitmap, Pointer):
            yield _bitmap_data(f"bitmap_{number}_{slot}", _bits(each))
    yield from _filter(number, action.filter)


def runs_data(number: int, event: s.Event) -> Iterator[str]:
    """Yield the runs of accesses that the sweep of step ``number`` has to leave."""
    assert isinstance(event, s.Swept)
    yield f"static const struct run runs_{number}[] = {{"
    yield from (f"\t{{ {c_number(each.count)}, {each.ended} }}," for each in event.runs)
    yield "};\n"


def _filter(number: int, filter_: MsrFilter) -> Iterator[str]:
    yield f"static struct kvm_msr_filter filter_{number} = {{"
    yield f"\t.flags = {DEFAULT.get(filter_.flags, c_number(filter_.flags))},"
    if filter_.ranges:
        yield "\t.ranges = {"
        for slot, each in enumerate(filter_.ranges):
            yield "\t\t{"
            yield f"\t\t\t.flags = {ACCESS.get(each.flags, c_number(each.flags))},"
            yield f"\t\t\t.base = {c_number(each.base)},\n\t\t\t.nmsrs = {c_number(each.nmsrs)},"
            if isinstance(each.bitmap, bytes):
                yield f"\t\t\t.bitmap = bitmap_{number}_{slot},"
            yield "\t\t},"
        yield "\t},"
    yield "};\n"


def _bits(each: MsrRange) -> bytes:
    """Return what the kernel may read, padded as a well-behaved VMM pads it."""
    if isinstance(each.bitmap, AtEdge):
        return each.bitmap.bits or b"\0"
    return bitmap_bytes(each) or bytes(8)


def _bitmap_data(name: str, bits: bytes) -> str:
    head = f"static __u8 {name}[{len(bits)}]"
    runs = [(byte, len(list(run))) for byte, run in groupby(bits)]
    if runs == [(0, len(bits))]:
        return f"{head};"
    if len(runs) * 4 > len(bits) > 8:
        shown = [f"{byte:#04x}" for byte in bits]
    else:
        shown = [*_designated(runs)]
    lines = textwrap.wrap(", ".join(shown), 76) if len(bits) > 8 else [", ".join(shown)]
    body = "\n".join(f"\t{line}" for line in lines)
    return f"{head} = {{\n{body}\n}};" if len(lines) > 1 else f"{head} = {{ {lines[0]} }};"


def _designated(runs: list[tuple[int, int]]) -> Iterator[str]:
    at = 0
    for byte, size in runs:
        place = f"[{at}]" if size == 1 else f"[{at} ... {at + size - 1}]"
        if byte:
            yield f"{place} = {byte:#04x}"
        at += size


# --- what a step must leave -----------------------------------------------------------------------


def step_text(step: s.Step) -> str:
    """Return a step's events as the program prints them, or as a pattern that it understands."""
    if len(step) == 1 and isinstance(step[0], s.Either):
        return f"{step_text(step[0].old)} or {step_text(step[0].new)}"
    if any(_is_open(event) for event in step):
        return "whatever"
    return ", ".join(map(_event_text, step))


def _is_open(event: Any) -> bool:
    return any(
        getattr(event, field.name) is s.ANY and field.default is not MISSING
        for field in fields(event)
    )


def _event_text(event: Any) -> str:
    if isinstance(event, s.Rejected):
        return repr(event)
    shown = [
        _field_text(event, field.name, position, field.default is not MISSING)
        for position, field in enumerate(fields(event))
        if field.default is MISSING or getattr(event, field.name) != field.default
    ]
    text = f"{word_of(type(event))}({', '.join(shown)})"
    return {"Wrote()": "wrote", "Fault(0xd)": "gp"}.get(text, text.removesuffix("()"))


def _field_text(event: Any, name: str, position: int, is_optional: bool) -> str:
    content = getattr(event, name)
    if isinstance(content, tuple):
        text = f"({', '.join(_event_text(e) if is_dataclass(e) else c_number(e) for e in content)})"
    elif isinstance(content, bool | None):
        text = str(content)
    elif isinstance(content, str):
        text = repr(content) if isinstance(event, s.Lost) else content
    elif isinstance(content, MsrExitReason):
        text = "|".join(each.name or "" for each in MsrExitReason if each & content) or "0"
    else:
        text = str(content) if name == "skew" else c_number(content)
    is_exit = isinstance(event, RdmsrExit | WrmsrExit)
    is_named = is_optional if is_exit else position > 0
    return f"{name}={text}" if is_named else text


def c_number(content: int) -> str:
    """Return a number as C's ``%#llx`` prints it: 0, or hexadecimal digits; ANY as it is."""
    return "ANY" if content is s.ANY else f"{content:#x}" if content else "0"


def step_comment(text: str) -> str:
    """Return what a step does, as the comment above it."""
    lines = textwrap.wrap(text.replace("*/", "* /"), 84, subsequent_indent="   ")
    if len(lines) > 6:
        lines[5:] = ["   ..."]
    body = "\n".join(f"\t * {line}" for line in lines)
    return f"\t/* {lines[0]} */" if len(lines) == 1 else f"\t/*\n{body}\n\t */"
