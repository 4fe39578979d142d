"""Cases, scripts and traces as JSON: saved by one machine, replayed by another.

A document is one object::

    {"msrward": 1, "id": "theme.name", "sentence": "...", "checks": "R23 R24", "needs": [],
     "script": [ACTION, ...], "trace": [EVENT, ...]}

``msrward`` is the version of this format; a reader refuses any other. ``script`` alone is needed.
``trace`` null (or absent) means that the case only observes. An action or event is an object whose
``word`` is the one a case writes, beside its fields; a field that has its default is left out::

    {"word": "rdmsr", "index": "0x474f4f00", "reply": {"word": "Reply", "error": 1}}

Values: a number is a string of hexadecimal digits ("0x3000", "-0x2") or, below 10, a JSON number
(a reader takes either); bytes are {"bytes": "00ff"}; one of a few names is {"name": "Pointer.NULL"}
or, for exit reasons, {"name": "UNKNOWN|FILTER"}; {"any": true}, in a trace alone, is a value that
is the host's business. The words and their fields are those of the language, and what a field may
hold is its domain: a new word of it needs nothing here. A reader also takes the short forms that
cases write: ``wrote``, ``gp``, ``value``, ``fault``, ``enable_exits``, ``disable_exits``,
``install_compat``.
"""

from __future__ import annotations

import re
from typing import Any

from vmm.conformance.language import script as language
from vmm.conformance.language.case import OBSERVE, Case
from vmm.conformance.language.soundness import first_unsound
from vmm.conformance.language.vocabulary import (
    bad,
    decode,
    encode,
    listed,
    no_others,
    shown,
    text,
    word_of,
)

VERSION = 1
CASE_ID = re.compile(r"[a-z0-9_.-]+")


def dump(case: Case) -> str:
    """Return the document of a case, one action or event a line."""
    import json

    script = [json.dumps(encode(action)) for action in case.actions]
    trace = None if case.observes else [json.dumps(encode(event)) for event in case.expected]
    head = {"msrward": VERSION, "id": case.id, "sentence": case.sentence, "checks": case.checks}
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    lines += [f'"needs": {json.dumps(case.needs)}', f'"script": {_lines(script)}']
    lines += [f'"trace": {"null" if trace is None else _lines(trace)}']
    return "{\n " + ",\n ".join(lines) + "\n}\n"


def load(data: str | bytes) -> Case:
    """Return the case of a document; ValueError with one line that names the bad element."""
    import json

    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(document, dict) or "msrward" not in document:
        raise ValueError('not a case: it is no object with "msrward"')
    if document["msrward"] != VERSION:
        raise ValueError(f"msrward: version {document['msrward']!r}, and this one reads {VERSION}")
    try:
        return _case(document)
    except RecursionError:
        raise bad("script", "nested without end") from None


def _lines(words: list[str]) -> str:
    return "[\n  " + ",\n  ".join(words) + "\n ]" if words else "[]"


def _case(document: dict[str, Any]) -> Case:
    no_others(document, ("msrward", "id", "sentence", "checks", "needs", "script", "trace"), "")
    texts = {"id": "file.case", "sentence": "", "checks": ""}
    head = {key: text(document.get(key, default), key) for key, default in texts.items()}
    if not CASE_ID.fullmatch(head["id"]):
        raise bad("id", f"{shown(head['id'])} has other characters than a-z 0-9 _ . -")
    script = _words(document.get("script"), "script", language.Action, pattern=False)
    if (at := first_unsound(script)) is not None:
        raise bad(f"script[{at}]", f"{script[at]!r} goes on with what no action before it began")
    needs = tuple(text(each, "needs") for each in listed(document.get("needs", []), "needs"))
    named = head["id"], head["sentence"], head["checks"]
    if document.get("trace") is None:
        return Case(*named, script, OBSERVE, needs)
    trace = _words(document["trace"], "trace", language.Event, pattern=True)
    return Case(*named, script, trace, needs)


def _words(data: Any, path: str, allowed: Any, *, pattern: bool) -> tuple[Any, ...]:
    words = []
    for number, each in enumerate(listed(data, path)):
        word = decode(each, f"{path}[{number}]", pattern=pattern)
        if not isinstance(word, allowed):
            raise bad(f"{path}[{number}]", f"{word_of(type(word))} does not belong here")
        words.append(word)
    return tuple(words)
