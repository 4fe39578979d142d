"""What the words in C print, read back: a step's text as events of the language.

The text may come from a kernel that lies: it is bounded, nothing in it is executed, and what no
word prints is a ValueError with one line.
"""

from __future__ import annotations

import errno
import re
from dataclasses import fields
from typing import Any

from vmm.conformance.language import script as s
from vmm.conformance.language.domains import choices, domains
from vmm.conformance.language.vocabulary import decode, vocabulary
from vmm.msr import MsrExitReason

MOST = 1 << 16
"""Bytes that a step can leave at most (``seen`` in saw.c)."""

TOKEN = re.compile(
    r" *(?:(?P<text>'(?:[^'\\]|\\.)*')|(?P<number>-?(?:0x[0-9a-f]{1,16}|\d{1,20})\b)"
    r"|(?P<name>[A-Za-z_]\w*(?:\|[A-Z_]+)*)|(?P<mark>[(),=]))"
)
DEEPEST = 4
CONSTANTS = {"True": True, "False": False, "None": None}
BARE = ("gp", "wrote")
"""What stands for one value of a word that has others."""


def read_events(text: str) -> s.Step:
    """Return the events that ``text`` spells; ValueError if it spells none, or more than a step."""
    if len(text) > MOST:
        raise ValueError(f"a step of {len(text)} bytes")
    tokens = _Tokens(text)
    events = [_event(tokens)]
    while tokens.peek() == ",":
        tokens.take(",")
        events.append(_event(tokens))
    if tokens.peek():
        raise ValueError(f"{tokens.peek()!r} after a step's events")
    return tuple(events)


class _Name(str):
    """A name, which is no text: a reason, an errno, how an access ended."""


class _Tokens:
    """The tokens of a text, one after the other."""

    def __init__(self, text: str) -> None:
        self.found = [*_tokens(text)]
        self.at = 0

    def peek(self) -> str:
        return self.found[self.at][1] if self.at < len(self.found) else ""

    def kind(self) -> str:
        return self.found[self.at][0] if self.at < len(self.found) else "the end"

    def take(self, expected: str = "") -> str:
        token = self.peek()
        if not token or (expected and token != expected):
            raise ValueError(f"{token or 'the end'!r} where {expected or 'more'!r} was due")
        self.at += 1
        return token


def _tokens(text: str) -> Any:
    at = 0
    while at < len(text):
        match = TOKEN.match(text, at)
        if not match:
            raise ValueError(f"no event is written like {text[at : at + 20]!r}")
        at = match.end()
        yield match.lastgroup, match[match.lastgroup or 0]


def _event(tokens: _Tokens) -> Any:
    event = decode(_word(tokens, 0), "a step", pattern=False)
    if not isinstance(event, s.Event):
        raise ValueError(f"{event!r} is no event")
    return event


def _word(tokens: _Tokens, depth: int) -> dict[str, Any]:
    """Return a word as the codec takes it, which knows the domain of every field."""
    name = tokens.take()
    given = _arguments(tokens, depth + 1) if tokens.peek() == "(" else []
    if name in BARE and not given:
        return {"word": name}
    kind = vocabulary().get(name)
    if kind is None:
        raise ValueError(f"no word {name[:40]!r}")
    names = [each.name for each in fields(kind)]
    if len(given) > len(names):
        raise ValueError(f"{name} has no {len(given)} fields")
    data = {field or names[at]: value for at, (field, value) in enumerate(given)}
    if unknown := data.keys() - {*names}:
        raise ValueError(f"{name} has no field {min(unknown)[:40]!r}")
    return {"word": name, **{field: _read(kind, field, data[field]) for field in data}}


def _read(kind: type, field: str, value: Any) -> Any:
    """Return a value that is a name as the field's domain has names."""
    if not isinstance(value, _Name):
        return value
    if domains(kind).get(field) is MsrExitReason:
        return {"name": str(value)}
    if value in CONSTANTS:
        return CONSTANTS[value]
    if field == "errno":
        return getattr(errno, value, value)
    if not choices(kind, field):
        raise ValueError(f"{field} is no name: {value[:40]!r}")
    return value


def _arguments(tokens: _Tokens, depth: int) -> list[tuple[str, Any]]:
    if depth > DEEPEST:
        raise ValueError("nested too deep")
    tokens.take("(")
    given: list[tuple[str, Any]] = []
    while tokens.peek() != ")":
        if given:
            tokens.take(",")
        field = ""
        if tokens.kind() == "name" and tokens.found[tokens.at + 1 :][:1] == [("mark", "=")]:
            field = tokens.take()
            tokens.take("=")
        given.append((field, _value(tokens, depth)))
    tokens.take(")")
    return given


def _value(tokens: _Tokens, depth: int) -> Any:
    kind = tokens.kind()
    if tokens.peek() == "(":
        return [value for _, value in _arguments(tokens, depth + 1)]
    if kind == "number":
        return hex(int(tokens.take(), 0))
    if kind == "text":
        return re.sub(r"\\(.)", r"\1", tokens.take()[1:-1])
    if kind == "name" and tokens.found[tokens.at + 1 :][:1] == [("mark", "(")]:
        return _word(tokens, depth)
    return _Name(tokens.take())
