"""The words of the language as JSON has them, and back; ``codec`` says how a document is made.

Nothing here names a word: what there is, and what its fields hold, the language itself says.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from vmm.bits import Bits
from vmm.conformance.language import script as language
from vmm.conformance.language import word
from vmm.conformance.language.domains import Most, Text, domains, members, split
from vmm.conformance.language.word import ANY
from vmm.filter import Pointer
from vmm.msr import MsrExitReason

NUMBER = re.compile(r"-?0x[0-9a-f]{1,16}")
BYTES = re.compile(r"([0-9a-f]{2})*")
POINTERS = {str(each): each for each in Pointer}


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
    maker = makers().get(data["word"])
    if maker is None:
        raise bad(path, f"no word {shown(data['word'])}; there are {', '.join(sorted(makers()))}")
    known = inspect.signature(maker).parameters
    no_others(data, ("word", *known), path)
    hints = domains(maker)
    given = {
        name: _value(data[name], hints[name], f"{path}.{name}", pattern)
        for name, parameter in known.items()
        if name in data or _is_needed(parameter, path)
    }
    try:
        return maker(**given)
    except ValueError as error:
        raise bad(path, str(error)) from None


@functools.cache
def vocabulary() -> dict[str, type]:
    """Return every word of the language by its name in a case: actions, events, what is in them."""
    found: set[type] = set()
    todo = [*get_args(language.Action), *get_args(language.Event)]
    while todo:
        kind = todo.pop()
        if kind not in found:
            found.add(kind)
            todo += [inner for domain in domains(kind).values() for inner in _words_in(domain)]
    return {word_of(kind): kind for kind in found}


def _words_in(domain: Any) -> Iterator[type]:
    """Yield the words that a domain can hold."""
    kind = split(domain)[0]
    if isinstance(kind, type) and is_dataclass(kind):
        yield kind
    elif get_origin(kind) is not Literal:
        for each in get_args(kind):
            yield from _words_in(each)


SHORT = (
    *(language.value, language.fault, language.enable_exits, language.disable_exits),
    language.install_compat,
)


@functools.cache
def makers() -> dict[str, Callable[..., Any]]:
    """Return what makes a value of each word that a case writes, short forms too."""
    constants = {"gp": lambda: language.gp, "wrote": lambda: language.wrote}
    return {**vocabulary(), **{each.__name__: each for each in SHORT}, **constants}


def _encode_word(value: Any) -> dict[str, Any]:
    shown = {
        field.name: encode(content)
        for field in fields(value)
        for content in [getattr(value, field.name)]
        if content is ANY or content != field.default
    }
    return {"word": word_of(type(value)), **shown}


def word_of(kind: type) -> str:
    """Return the name that a case writes for a class of the language."""
    return word.word_of(kind) if issubclass(kind, word.Word) else kind.__name__


def _value(data: Any, domain: Any, path: str, pattern: bool) -> Any:
    if data == {"any": True} and pattern:
        return ANY
    if len(members(domain)) > 1:
        return _one_of(data, members(domain), path, pattern)
    kind, mark = split(domain)
    if get_origin(kind) is Literal:
        return _literal(data, get_args(kind), path)
    if get_origin(kind) is tuple:
        return _tuple(data, get_args(kind), mark, path, pattern)
    if is_dataclass(kind):
        word = decode(data, path, pattern=pattern)
        if isinstance(kind, type) and isinstance(word, kind):
            return word
        raise bad(path, f"{word_of(type(word))} does not belong here")
    return READERS[type(mark) if mark else kind](data, path, mark)


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


def _tuple(
    data: Any, hints: tuple[Any, ...], most: Most | None, path: str, pattern: bool
) -> tuple[Any, ...]:
    items = listed(data, path)
    kinds = [hints[0]] * len(items) if hints[-1] is Ellipsis else list(hints)
    if len(kinds) != len(items) or (most and len(items) > most.count):
        raise bad(path, f"{len(items)} elements are not what it has")
    paths = [f"{path}[{number}]" for number in range(len(items))]
    return tuple(map(_value, items, kinds, paths, [pattern] * len(items)))


def _number(data: Any, path: str, bits: Bits) -> int:
    if isinstance(data, str) and NUMBER.fullmatch(data):
        data = int(data, 16)
    if not isinstance(data, int) or isinstance(data, bool):
        raise bad(path, f"{shown(data)} is no number")
    if not bits.holds(data):
        raise bad(path, f"{data:#x} does not fit {bits.width} bits")
    return data


def text(data: Any, path: str) -> str:
    """Return ``data`` if it is a text."""
    if not isinstance(data, str):
        raise bad(path, f"{shown(data)} is no text")
    return data


def _shaped(data: Any, path: str, domain: Text) -> str:
    if not re.fullmatch(domain.pattern, text(data, path)):
        raise bad(path, f"{shown(data)} is not of the form {domain.pattern}")
    return str(data)


def _literal(data: Any, choices: tuple[Any, ...], path: str) -> Any:
    if not isinstance(data, str) or data not in choices:
        raise bad(path, f"{shown(data)} is no {'/'.join(choices)}")
    return data


def _flag(data: Any, path: str, _: None) -> bool:
    if not isinstance(data, bool):
        raise bad(path, f"{shown(data)} is neither true nor false")
    return data


def _bytes(data: Any, path: str, _: None) -> bytes:
    digits = data.get("bytes") if isinstance(data, dict) else None
    if not isinstance(digits, str) or not BYTES.fullmatch(digits):
        raise bad(path, f"{shown(data)} is no bytes")
    return bytes.fromhex(digits)


def _pointer(data: Any, path: str, _: None) -> Pointer:
    name = data.get("name") if isinstance(data, dict) else None
    if not isinstance(name, str) or name not in POINTERS:
        raise bad(path, f"{shown(data)} is none of {', '.join(POINTERS)}")
    return POINTERS[name]


def _reason(data: Any, path: str, _: None) -> MsrExitReason:
    if not isinstance(data, dict):
        return MsrExitReason(_number(data, path, Bits(32)))
    reasons = [MsrExitReason.__members__.get(name) for name in str(data.get("name")).split("|")]
    if not all(reasons):
        raise bad(path, f"{shown(data)} is no exit reason")
    return functools.reduce(MsrExitReason.__or__, [each for each in reasons if each])


READERS: dict[Any, Callable[[Any, str, Any], Any]] = {
    Bits: _number,
    Text: _shaped,
    bool: _flag,
    bytes: _bytes,
    Pointer: _pointer,
    MsrExitReason: _reason,
}
"""What reads a value that is no word, by the mark of its domain, or by its type if that is all."""


def listed(data: Any, path: str) -> list[Any]:
    """Return ``data`` if it is a list."""
    if not isinstance(data, list):
        raise bad(path, f"{shown(data)} is no list")
    return data


def _is_needed(parameter: inspect.Parameter, path: str) -> bool:
    if parameter.default is parameter.empty:
        raise bad(f"{path}.{parameter.name}", "missing")
    return False


def no_others(data: dict[str, Any], known: tuple[str, ...], path: str) -> None:
    """Refuse an object with keys that nobody reads: a slip of the pen must not go unseen."""
    for key in data:
        if key not in known:
            raise bad(f"{path}.{key}".lstrip("."), "unknown")


def bad(path: str, why: str) -> ValueError:
    """Return the error that says what is wrong with the element at ``path``."""
    return ValueError(f"{path}: {why}")


def shown(data: Any) -> str:
    """Return ``data`` for a message, cut to fit a line."""
    whole = ascii(data)
    return whole if len(whole) <= 60 else f"{whole[:57]}..."
