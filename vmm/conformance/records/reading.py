"""JSON values read as a type says: what is not of it is named, and what is comes out as it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache
from types import MappingProxyType, NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Required,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from vmm.conformance.records import values

Read = Callable[[Any, str], Any]
"""Takes a value and the name of its place, and returns it as its type has it; or a ValueError."""

_PLAIN: Mapping[Any, Callable[[Any], bool]] = MappingProxyType(
    {str: values.text, int: values.count, float: values.number, bool: values.flag}
)
"""What a plain type means in a record: its numbers are none below 0."""


@cache
def reads(type_: Any) -> Read:
    """Return what reads values of a type of the records (``records.schema``)."""
    origin, inner = get_origin(type_), get_args(type_)
    if is_typeddict(type_):
        return _object(type_)
    if origin is Annotated:  # beside it is what says all of it
        return _if(inner[1])
    if origin is list:
        return _list(reads(inner[0]))
    if origin is Literal:
        return _if(lambda value: value in inner)
    if origin is UnionType:
        return _maybe(reads(next(each for each in inner if each is not NoneType)))
    return _one_of(type_) if issubclass(type_, Enum) else _if(_PLAIN[type_])


def _object(type_: Any) -> Read:
    """Return what reads an object; one whose fields all must be there has no others."""
    hints = get_type_hints(type_, include_extras=True)
    must = {name for name, hint in hints.items() if _is_required(type_, name, hint)}
    fields = {name: reads(_bare(hint)) for name, hint in hints.items()}

    def read(value: Any, place: str) -> Any:
        if not isinstance(value, dict):
            raise ValueError(f"{place or 'it'} is {_shown(value)}")
        inside = f"{place}." if place else ""
        if missing := [name for name in fields if name in must and name not in value]:
            raise ValueError(f"{inside}{missing[0]} is missing")
        if len(must) == len(fields) and (others := value.keys() - must):
            raise ValueError(f"{inside}{min(others)} is none of its fields")
        for name, reads_ in fields.items():
            if name in value:
                value[name] = reads_(value[name], f"{inside}{name}")
        return value

    return read


def _is_required(type_: Any, name: str, hint: Any) -> bool:
    # what a hint says must be asked of the hint: postponed ones are not read when a type is made
    if get_origin(hint) in (Required, NotRequired):
        return get_origin(hint) is Required
    return name in type_.__required_keys__


def _bare(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) in (Required, NotRequired) else hint


def _list(each: Read) -> Read:
    def read(value: Any, place: str) -> Any:
        if not isinstance(value, list):
            raise ValueError(f"{place} is {_shown(value)}")
        return [each(item, f"{place}[{number}]") for number, item in enumerate(value)]

    return read


def _maybe(other: Read) -> Read:
    return lambda value, place: None if value is None else other(value, place)


def _one_of(kind: type[Enum]) -> Read:
    known = {member.value: member for member in kind}
    plain = {type(value) for value in known}

    def read(value: Any, place: str) -> Any:
        if type(value) not in plain or value not in known:
            raise ValueError(f"{place} is {_shown(value)}")
        return known[value]

    return read


def _if(check: Callable[[Any], bool]) -> Read:
    def read(value: Any, place: str) -> Any:
        if not check(value):
            raise ValueError(f"{place} is {_shown(value)}")
        return value

    return read


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
