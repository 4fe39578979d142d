"""How a word of the language prints: as the call that makes it, defaults left out."""

from __future__ import annotations

import errno
from dataclasses import MISSING, fields
from typing import Any

from vmm.msr import MsrExitReason, msr_code


class _Any:
    """Equal to everything: a value that is the host's business, not the contract's."""

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return "ANY"


ANY: Any = _Any()


class Word:
    """A word of the language, written in snake case but for the few values that are CAPITALISED.

    A word without fields that stands for one value (``bare``) is written without parentheses.
    """

    __slots__ = ()
    bare = False

    def __repr__(self) -> str:
        name = word_of(type(self))
        shown = [
            _argument(field.name, getattr(self, field.name), position == 0)
            for position, field in enumerate(fields(self))  # type: ignore[arg-type]
            if field.default is MISSING or _differs(getattr(self, field.name), field.default)
        ]
        return name if self.bare and not shown else f"{name}({', '.join(shown)})"


CAPITALISED = {"Reply", "Fault", "Lost", "Wrote"}


def word_of(cls: type) -> str:
    """Return the word that makes a value of ``cls``: ``enable_cap`` for EnableCap."""
    name = cls.__name__
    if name in CAPITALISED:
        return name
    return "".join(f"_{each.lower()}" if each.isupper() else each for each in name).lstrip("_")


def _differs(value: object, default: object) -> bool:
    return value is ANY or value != default


def _argument(name: str, value: object, first: bool) -> str:
    text = repr(value)
    if name == "index" and isinstance(value, int):
        text = msr_code(value)
    elif isinstance(value, MsrExitReason):
        text = str(value.name)
    elif isinstance(value, int) and not isinstance(value, bool):
        text = number(value)
    elif isinstance(value, tuple) and value and all(type(each) is int for each in value):
        text = f"({', '.join(map(number, value))}{',' * (len(value) == 1)})"
    return text if first or name == "value" else f"{name}={text}"


def number(value: int) -> str:
    """Return a number as a case writes it: in hexadecimal from ten up."""
    return f"{value:#x}" if value > 9 else repr(value)


def errno_name(number: int) -> str:
    """Return ``EINVAL`` for 22; ANY and unknown numbers as they print."""
    return errno.errorcode.get(number, str(number)) if isinstance(number, int) else repr(number)
