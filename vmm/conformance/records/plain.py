"""Text from a guest, a file or a terminal, made such that showing it does nothing but show it."""

from __future__ import annotations

import re

_ODD = (
    r"\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
    r"\ufeff\ufffe\uffff\ud800-\udfff"
)
"""What moves a cursor, changes a terminal, turns the direction of a text or cannot be encoded."""

_IN_TEXT = re.compile(f"[{_ODD}]")
_IN_LINE = re.compile(f"[{_ODD}\t\n]")
_PAINTED = re.compile(f"(\x1b\\[(?:31|32|33|1)?m)|[{_ODD}\t\n]")


def plain(text: str) -> str:
    r"""Return the text on one line, every control character as an escape such as ``\x1b``.

    What is plain stays as it is.
    """
    return text if text.isprintable() else _IN_LINE.sub(_escape, text)


def plain_lines(text: str) -> str:
    """Do as ``plain``, and keep the line ends and tabs."""
    return text if text.isprintable() else _IN_TEXT.sub(_escape, text)


def plain_painted(line: str) -> str:
    """Do as ``plain``, and keep the four colours that reports are painted with."""
    if line.isprintable():
        return line
    return _PAINTED.sub(lambda match: match[1] or _escape(match), line)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    known = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
    return known.get(match[0]) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")
