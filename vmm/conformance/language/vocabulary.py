"""The words of the language as JSON has them, and back; ``codec`` says how a document is made.

Nothing here names a word: what there is, and what its fields hold, the language itself says.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from vmm import exits, filter
from vmm.conformance.language import script as language
from vmm.conformance.language import word
from vmm.conformance.language.word import ANY
from vmm.filter import Pointer
from vmm.msr import MsrExitReason

NUMBER = re.compile(r"-?0x[0-9a-f]{1,16}")
BYTES = re.compile(r"([0-9a-f]{2})*")
POINTERS = {str(each): each for each in Pointer}

CHOICES = {
    "on": ("vm", "vcpu", "system"),
    "via": ("ioctl", "sync"),
    "by": ("immediate_exit", "signal"),
    "caller": ("self", "child", "compat"),
}
"""Fields that are one of a few words."""

WIDTHS = {"index": 32, "rcx_high": 32, "cap": 32, "flags": 32, "number": 32, "errno": 12}
WIDTHS |= {"reason": 32, "error": 8, "pad": 56, "vcpu": 4, "rip": -32, "skew": -64}
"""The bits of a number, 64 unless it is named here; negative: it has a sign."""

MOST = {"args": 4}
"""The elements of a list that has no fixed number of them, where the kernel's struct has."""


def encode(value: Any) -> Any:
    """Return any value of the language as JSON has it."""
    if value is ANY:
        return {"any": True}
    if isinstance(value, Pointer) or (isinstance(value, MsrExitReason) and 0 < value <= 7):
        return {"name": value.name if isinstance(value, MsrExitReason) else str(value)}
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value) if 0 <= value < 10 else hex(value)
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, tuple):
        return [encode(each) for each in value]
    return _encode_word(value) if is_dataclass(value) else value


def decode(data: Any, path: str, *, pattern: bool) -> Any:
    """Return the word that ``data`` spells, with ANY in it if ``pattern``; ValueError if none."""
    if not isinstance(data, dict) or not isinstance(data.get("word"), str):
        raise bad(path, f'{shown(data)} is no object with a "word"')
    kind = vocabulary().get(data["word"])
    if kind is None:
        raise bad(path, f"no word {shown(data['word'])}")
    known = {field.name: field for field in _fields(kind)}
    no_others(data, ("word", *known), path)
    hints = _hints(kind)
    given = {
        name: _value(data[name], hints[name], f"{path}.{name}", pattern)
        for name, field in known.items()
        if name in data or _is_needed(field, path)
    }
    try:
        return kind(**given)
    except ValueError as error:
        raise bad(path, str(error)) from None


@functools.cache
def vocabulary() -> dict[str, type]:
    """Return every word of the language by its name in a case."""
    found: set[type] = {*get_args(language.Action), *get_args(language.Event)}
    for module in (language, filter, exits):
        found |= {each for each in vars(module).values() if isinstance(each, type)}
    return {word_of(kind): kind for kind in found if hasattr(kind, "__dataclass_fields__")}


def _encode_word(value: Any) -> dict[str, Any]:
    shown = {
        field.name: encode(content)
        for field in _fields(type(value))
        for content in [getattr(value, field.name)]
        if content is ANY or content != _default(field)
    }
    return {"word": word_of(type(value)), **shown}


def word_of(kind: type) -> str:
    """Return the name that a case writes for a class of the language."""
    return word.word_of(kind) if issubclass(kind, word.Word) else kind.__name__


def _fields(kind: type) -> tuple[Field[Any], ...]:
    return fields(kind)


def _default(field: Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _value(data: Any, hint: Any, path: str, pattern: bool) -> Any:
    if data == {"any": True} and pattern:
        return ANY
    if get_origin(hint) in (Union, UnionType):
        return _one_of(data, get_args(hint), path, pattern)
    if get_origin(hint) is tuple:
        return _tuple(data, get_args(hint), path, pattern)
    if is_dataclass(hint):
        word = decode(data, path, pattern=pattern)
        if isinstance(hint, type) and isinstance(word, hint):
            return word
        raise bad(path, f"{word_of(type(word))} does not belong here")
    return READERS[hint](data, path)


def _one_of(data: Any, hints: tuple[Any, ...], path: str, pattern: bool) -> Any:
    if data is None and NoneType in hints:
        return None
    errors: list[ValueError] = []
    for hint in hints:
        if hint is not NoneType:
            try:
                return _value(data, hint, path, pattern)
            except ValueError as error:
                errors.append(error)
    # The one that understood most of it got furthest down the path.
    raise max(errors, key=lambda error: len(str(error).partition(": ")[0]))


def _tuple(data: Any, hints: tuple[Any, ...], path: str, pattern: bool) -> tuple[Any, ...]:
    items = listed(data, path)
    kinds = [hints[0]] * len(items) if hints[-1] is Ellipsis else list(hints)
    if len(kinds) != len(items) or len(items) > MOST.get(_field(path), len(items)):
        raise bad(path, f"{len(items)} elements are not what it has")
    paths = [f"{path}[{number}]" for number in range(len(items))]
    return tuple(map(_value, items, kinds, paths, [pattern] * len(items)))


def _number(data: Any, path: str) -> int:
    if isinstance(data, str) and NUMBER.fullmatch(data):
        data = int(data, 16)
    if not isinstance(data, int) or isinstance(data, bool):
        raise bad(path, f"{shown(data)} is no number")
    width = WIDTHS.get(_field(path), 64)
    least, end = (0, 1 << width) if width > 0 else (-(1 << -width - 1), 1 << -width - 1)
    if not least <= data < end:
        raise bad(path, f"{data:#x} does not fit {abs(width)} bits")
    return data


def text(data: Any, path: str) -> str:
    """Return ``data`` if it is a text, and one of the CHOICES where they are limited."""
    choices = CHOICES.get(_field(path))
    if not isinstance(data, str) or (choices and data not in choices):
        raise bad(path, f"{shown(data)} is no {'/'.join(choices) if choices else 'text'}")
    return data


def _flag(data: Any, path: str) -> bool:
    if not isinstance(data, bool):
        raise bad(path, f"{shown(data)} is neither true nor false")
    return data


def _bytes(data: Any, path: str) -> bytes:
    digits = data.get("bytes") if isinstance(data, dict) else None
    if not isinstance(digits, str) or not BYTES.fullmatch(digits):
        raise bad(path, f"{shown(data)} is no bytes")
    return bytes.fromhex(digits)


def _pointer(data: Any, path: str) -> Pointer:
    name = data.get("name") if isinstance(data, dict) else None
    if not isinstance(name, str) or name not in POINTERS:
        raise bad(path, f"{shown(data)} is none of {', '.join(POINTERS)}")
    return POINTERS[name]


def _reason(data: Any, path: str) -> MsrExitReason:
    if not isinstance(data, dict):
        return MsrExitReason(_number(data, path))
    reasons = [MsrExitReason.__members__.get(name) for name in str(data.get("name")).split("|")]
    if not all(reasons):
        raise bad(path, f"{shown(data)} is no exit reason")
    return functools.reduce(MsrExitReason.__or__, [each for each in reasons if each])


READERS: dict[Any, Callable[[Any, str], Any]] = {
    int: _number,
    str: text,
    bool: _flag,
    bytes: _bytes,
    Pointer: _pointer,
    MsrExitReason: _reason,
    Any: lambda data, path: data,
}


def listed(data: Any, path: str) -> list[Any]:
    """Return ``data`` if it is a list."""
    if not isinstance(data, list):
        raise bad(path, f"{shown(data)} is no list")
    return data


def _is_needed(field: Field[Any], path: str) -> bool:
    if _default(field) is MISSING:
        raise bad(f"{path}.{field.name}", "missing")
    return False


def no_others(data: dict[str, Any], known: tuple[str, ...], path: str) -> None:
    """Refuse an object with keys that nobody reads: a slip of the pen must not go unseen."""
    for key in data:
        if key not in known:
            raise bad(f"{path}.{key}".lstrip("."), "unknown")


def _field(path: str) -> str:
    return path.rpartition(".")[2]


def bad(path: str, why: str) -> ValueError:
    """Return the error that says what is wrong with the element at ``path``."""
    return ValueError(f"{path}: {why}")


def shown(data: Any) -> str:
    """Return ``data`` for a message, cut to fit a line."""
    whole = ascii(data)
    return whole if len(whole) <= 60 else f"{whole[:57]}..."
