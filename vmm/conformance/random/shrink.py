"""Make a script that shows something as small as it can be while it still shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import MISSING, fields, replace
from typing import Any

from vmm.conformance.language.domains import bits_of, domains
from vmm.conformance.language.script import (
    Action,
    Begin,
    BeginInstall,
    Finish,
    Meanwhile,
    Script,
    Sweep,
)
from vmm.conformance.language.soundness import is_sound
from vmm.filter import READ_WRITE, MsrFilter, MsrRange, bitmap_size

Shows = Callable[[Script], bool]


def shrink(script: Script, shows: Shows) -> Script:
    """Return a script that ``shows`` still holds for, and for no smaller one that was tried.

    Actions go first, then the exits in which a vCPU stops, then all that is not plain in what is
    left. ``shows`` is called a few hundred times, on scripts that a backend can run.
    """
    tried: set[Script] = set()

    def is_worth(candidate: Script) -> bool:
        if candidate in tried or not is_sound(candidate):
            return False
        tried.add(candidate)
        return shows(candidate)

    before = None
    while script != before:
        before = script
        for step in (_without_actions, _without_stops, _plainer_actions):
            script = step(script, is_worth)
    return script


def _without_actions(script: Script, shows: Shows) -> Script:
    size = len(script) // 2 or 1
    while size:
        at = len(script)
        while at > 0:
            at -= size
            candidate = script[: max(at, 0)] + script[at + size :]
            if shows(candidate):
                script = candidate
        size //= 2
    return script


def _without_stops(script: Script, shows: Shows) -> Script:
    """Try each stopped access as one that is not stopped, answered as its last answer was."""
    for at, action in enumerate(script):
        if not isinstance(action, Begin):
            continue
        vcpu = action.access.vcpu
        end = next(
            (n for n in range(at, len(script)) if script[n] in _ends(script[n], vcpu)), len(script)
        )
        rest = tuple(each for each in script[at + 1 : end + 1] if getattr(each, "vcpu", -1) != vcpu)
        candidate = (*script[:at], action.access, *rest, *script[end + 1 :])
        if shows(candidate):
            return _without_stops(candidate, shows)
    return script


def _ends(action: Action, vcpu: int) -> tuple[Action, ...]:
    return (action,) if isinstance(action, Finish) and action.vcpu == vcpu else ()


def _plainer_actions(script: Script, shows: Shows) -> Script:
    for at in range(len(script)):
        again = True
        while again:
            again = False
            for plainer in _plainer(script[at]):
                candidate = (*script[:at], plainer, *script[at + 1 :])
                if shows(candidate):
                    script, again = candidate, True
                    break
    return script


def _plainer(word: Any) -> Iterable[Any]:
    """Yield the word with one thing about it plainer: a default, a 0, a range less."""
    if isinstance(word, MsrFilter):
        yield from _plainer_filters(word)
        return
    if isinstance(word, Meanwhile):
        yield word.action
    if isinstance(word, Sweep) and word.count > 1:
        yield from _halves(word)
    if isinstance(word, BeginInstall) and word.stall_at:
        yield from _without_ranges_before(word, word.stall_at)
    for field in fields(word):
        content = getattr(word, field.name)
        plain = field.default if field.default is not MISSING else _plain(word, field.name)
        if content != plain:
            yield from _with(word, field.name, plain)
        if hasattr(content, "__dataclass_fields__"):
            for plainer in _plainer(content):
                yield replace(word, **{field.name: plainer})


def _with(word: Any, name: str, content: Any) -> Iterable[Any]:
    """Yield the word with another content of a field, unless it refuses that."""
    with suppress(ValueError):
        yield replace(word, **{name: content})


def _halves(word: Sweep) -> Iterable[Sweep]:
    """Yield the sweep's first half, and its second."""
    half = word.count // 2
    rest = word.first + half * word.stride & 0xFFFF_FFFF
    yield replace(word, count=half)
    yield replace(word, first=rest, count=word.count - half)


def _without_ranges_before(word: BeginInstall, slot: int) -> Iterable[BeginInstall]:
    """Yield the install with a range less before the slot that it stalls in."""
    ranges = word.filter.ranges
    for at in range(min(slot, len(ranges))):
        fewer = replace(word.filter, ranges=ranges[:at] + ranges[at + 1 :])
        yield replace(word, filter=fewer, stall_at=slot - 1)


def _plain(word: Any, name: str) -> Any:
    """Return what is plain in a field without a default: 0, unless it numbers something."""
    kind: Any = type(word)
    bits = bits_of(domains(kind)[name])
    return 0 if bits and not bits.of else getattr(word, name)


def _plainer_filters(filter_: MsrFilter) -> Iterable[MsrFilter]:
    ranges = filter_.ranges
    if filter_ != MsrFilter():
        yield MsrFilter()
    size = len(ranges) // 2
    while size:
        for at in range(0, len(ranges), size):
            yield replace(filter_, ranges=ranges[:at] + ranges[at + size :])
        size //= 2
    if filter_.flags:
        yield replace(filter_, flags=0)
    for at, each in enumerate(ranges):
        for plainer in _plainer_ranges(each):
            yield replace(filter_, ranges=(*ranges[:at], plainer, *ranges[at + 1 :]))


def _plainer_ranges(each: MsrRange) -> Iterable[MsrRange]:
    full = b"\xff" * min(bitmap_size(each.nmsrs), 0x600)
    if each.nmsrs > 1:
        yield MsrRange(each.flags, each.base, 1, b"\0")
    if each.bitmap not in (b"\0", full, b"\1"):
        yield replace(each, bitmap=b"\0")
        yield replace(each, bitmap=full)
    elif each.nmsrs == 1 and each.bitmap == full:
        yield replace(each, bitmap=b"\1")
    if each.flags != READ_WRITE:
        yield replace(each, flags=READ_WRITE)
