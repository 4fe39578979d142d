"""The words of the language as a page of docs/, each with what it means and an example."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from vmm.conformance.language.case import Case
from vmm.conformance.language.examples import BROKEN, EXAMPLES
from vmm.conformance.language.script import Action, Event, steps
from vmm.conformance.language.vocabulary import encode, vocabulary

_HEAD = """\
<!-- written by `msrward docs` from vmm/conformance/language: edit the words or examples.py -->

# The words of the language

A script is a list of actions; the trace is what they leave. A test runs every example through JSON,
by the Model and, where there is one, on `/dev/kvm`. In JSON a word is an object `{"word": NAME}`.
"""


def words_page() -> str:
    """Return docs/words.md; KeyError where a word has no example."""
    words = [_word(name, kind) for name, kind in sorted(vocabulary().items())]
    return "\n".join([_HEAD, *words, "# The examples\n", *map(_example, EXAMPLES)])


def words_of(values: tuple[Action | Event, ...]) -> set[str]:
    """Return the names of all words in the values, and in their fields."""
    return set(_inside([encode(each) for each in values]))


def example_of(name: str) -> str:
    """Return the id of the first example with the word, or how a broken kernel leaves it."""
    for case in EXAMPLES:
        if name in words_of((*case.actions, *case.expected)):
            return case.id
    return repr(BROKEN[name])


def _inside(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from [value["word"]] if "word" in value else []
        value = list(value.values())
    for each in value if isinstance(value, list) else []:
        yield from _inside(each)


def _word(name: str, kind: type) -> str:
    text = " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())
    example = example_of(name)
    link = (
        f"[{example}](#{example})" if example.startswith("words.") else f"only broken: `{example}`"
    )
    return f"## `{_call(name, kind)}`\n\n{text} Example: {link}.\n"


def _call(name: str, kind: type) -> str:
    given = inspect.signature(kind).parameters.values()
    fields = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in given]
    return f"{name}({', '.join(fields)})" if fields else name


def _example(case: Case) -> str:
    lines = []
    for action, events in zip(case.actions, steps(case.actions, case.expected), strict=True):
        lines += [f"{action!r}", *(f"    -> {event!r}" for event in events)]
    code = "\n".join(lines)
    return f'## <a id="{case.id}"></a>{case.id}\n\n{case.sentence}\n\n```\n{code}\n```\n'
