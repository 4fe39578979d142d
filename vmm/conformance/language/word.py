"""How a word of the language prints: as the call that makes it, defaults left out."""

from __future__ import annotations

import errno
from dataclasses import MISSING, fields
from typing import Any

from vmm.bits import Bits
from vmm.conformance.language.domains import bits_of, domains
from vmm.msr import MsrExitReason, msr_code


class _Any:
    """Equal to everything: a value that is the host's business, not the contract's."""

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return "ANY"

    def __reduce__(self) -> str:
        return "ANY"  # one object, in every process that a case goes to


ANY: Any = _Any()


class Word:
    """A word of the language, written in snake case but for the few values that are CAPITALISED.

    A word without fields that stands for one value (``bare``) is written without parentheses; the
    first ``positional`` arguments are written without their names.
    """

    __slots__ = ()
    bare = False
    positional = 1

    def __repr__(self) -> str:
        kind: Any = type(self)
        name, hints = word_of(kind), domains(kind)
        shown = [
            ("" if position < self.positional else f"{field.name}=")
            + _argument(getattr(self, field.name), bits_of(hints[field.name]))
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


def _argument(value: object, bits: Bits | None) -> str:
    if isinstance(value, MsrExitReason):
        return str(value.name)
    if isinstance(value, int) and not isinstance(value, bool):
        return msr_code(value) if bits and bits.of == "msr" else number(value)
    if isinstance(value, tuple) and value and all(type(each) is int for each in value):
        return f"({', '.join(map(number, value))}{',' * (len(value) == 1)})"
    return repr(value)


def number(value: int) -> str:
    """Return a number as a case writes it: in hexadecimal from ten up."""
    return f"{value:#x}" if value > 9 else repr(value)


def errno_name(number: int) -> str:
    """Return ``EINVAL`` for 22; ANY and unknown numbers as they print."""
    return errno.errorcode.get(number, str(number)) if isinstance(number, int) else repr(number)
