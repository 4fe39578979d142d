"""The words in C, and which of them a program needs: the files that ``native/words.c`` includes.

A file is read as pieces that blank lines before column 0 set apart. A piece declares the names of
its functions, structs, enumerators, macros and variables; includes, those in the comment above.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

NATIVE = Path(__file__).with_name("native")
INCLUDED = re.compile(r'^#include "(words/\w+\.c)"', re.MULTILINE)
PIECE = re.compile(r"\n\n(?=\S)")
COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
SPOKEN = re.compile(r'"(?:[^"\\]|\\.)*"')
NAME = re.compile(r"(?<!\.)(?<!->)\b[A-Za-z_]\w*\b")
"""A name that is no member of a struct."""
TAG = re.compile(r"\bstruct [A-Za-z_]\w*\b")
"""The name of a struct, which a variable may have too (``struct kvm_run *run``)."""
DECLARED = (
    re.compile(r"^(?:static|extern)\b[^={;]*?\b(\w+)\("),
    re.compile(r"^#define (\w+)", re.MULTILINE),
    re.compile(r"^(?:static )?(struct \w+) \{"),
    re.compile(r"^(?:static|\}) ?[^={;(]*?\b(\w+)(?:\[[^=]*\])*(?: =[^=]|;)", re.MULTILINE),
)
ENUMERATOR = re.compile(r"[{,]\s*([A-Z][A-Z0-9_]*)")


def files() -> list[Path]:
    """Return the files in their order; what a program needs that judges itself is the last."""
    names = *INCLUDED.findall((NATIVE / "words.c").read_text()), "words/expect.c"
    return [NATIVE / name for name in names]


@functools.cache
def pieces() -> tuple[str, ...]:
    """Return the pieces in their order, without the files' head comments; includes are first."""
    texts = (file.read_text() for file in files())
    return tuple(piece.strip("\n") for text in texts for piece in PIECE.split(text)[1:])


@functools.cache
def declared(piece: str) -> frozenset[str]:
    """Return the names that a piece declares."""
    code = COMMENT.sub("", piece).strip()
    if code.startswith("#include"):
        comment = COMMENT.search(piece)
        return frozenset(NAME.findall(comment[0]) if comment else ())
    if code.startswith("enum {"):
        return frozenset(ENUMERATOR.findall(code))
    return frozenset(name for each in DECLARED for name in each.findall(code))


@functools.cache
def used(code: str) -> frozenset[str]:
    """Return the names in a piece of C, but those in its comments and texts."""
    own = SPOKEN.sub("", COMMENT.sub("", code))
    return frozenset((*NAME.findall(own), *TAG.findall(own)))


def needed(main: str) -> list[str]:
    """Return the pieces that ``main`` needs, in the order of the files."""
    wanted, done = set(used(main)), set[str]()
    while new := [each for each in pieces()[1:] if each not in done and declared(each) & wanted]:
        done |= set(new)
        wanted |= {name for each in new for name in used(each)}
    return [each for each in pieces()[1:] if each in done]


def includes() -> str:
    """Return the includes that every program has."""
    return pieces()[0]
