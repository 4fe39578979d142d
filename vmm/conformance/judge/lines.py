"""What the lines of a trace may hold: the first, escaped text, and the texts that steps name."""

from __future__ import annotations

import re
from typing import Any

from vmm.conformance.c.notation import read_events
from vmm.conformance.c.tape import VERSION
from vmm.conformance.host.klog import unescaped
from vmm.conformance.language.script import Step, Trace

MOST_LINE, MOST_BYTES = 1 << 18, 1 << 26
MOST_TEXTS = 1 << 14
STEPS = re.compile(r"(\d{1,5})(?:\*(\d{1,5}))?")


class TraceError(ValueError):
    """It is no trace of the tape that was to be played; the text is one line that says why."""


def shown(text: str) -> str:
    """Return the beginning of what a trace said as it can be printed."""
    return ascii(text)[1:-1][:80]


def greet(word: str, rest: str, crc: int) -> None:
    """Take the first line; TraceError unless it is of our player and of the tape with ``crc``."""
    if word != "msrward-player" or not rest:
        raise TraceError(f"it does not begin as a trace: {shown(f'{word} {rest}')}")
    version, theirs = (*rest.split(" "), "")[:2]
    if version != f"{VERSION:08x}":
        raise TraceError(
            f"its player is of version {shown(version)}, and this one of {VERSION:08x}:"
            " take the player from this msrward"
        )
    if theirs != f"{crc:08x}":
        raise TraceError(
            "it was made of another tape: judge by the msrward, the globs and the timeout"
            " that wrote the tape"
        )


class Texts:
    """What steps left, by the number that the trace gives to each."""

    def __init__(self) -> None:
        """Begin without any."""
        self._texts: list[Step | str] = []

    def add(self, rest: str) -> None:
        """Take the next text; one that is no events is remembered with what is wrong with it."""
        number, _, text = rest.partition(" ")
        if number != str(len(self._texts) + 1) or len(self._texts) >= MOST_TEXTS:
            raise TraceError(f"a text out of its turn: {shown(rest)}")
        try:
            self._texts.append(read_events(unescaped(text)))
        except ValueError as error:
            self._texts.append(str(error))

    def trace(self, steps: str, most: int) -> tuple[Trace, str]:
        """Return the events of the steps, and what is wrong with what should name them."""
        events: list[Any] = []
        for word in steps.split():
            if not (ref := STEPS.fullmatch(word)):
                return (), f"no steps: {shown(steps)}"
            text, times = int(ref[1]), int(ref[2] or 1)
            if not 0 < text <= len(self._texts) or times > most:
                return (), f"a step that nothing says: {shown(word)}"
            if isinstance(step := self._texts[text - 1], str):
                return (), f"a step that no word leaves: {step}"
            most -= times
            events += step * times
        return tuple(events), ""
