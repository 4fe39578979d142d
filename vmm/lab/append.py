"""What a user adds to a guest's kernel command line, and which of it is meant for KVM's modules.

The kernel reads ``module.parameter=value`` for what is built in; a module that is inserted has to
be given its parameters (Documentation/admin-guide/kernel-parameters.rst).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping

from vmm.lab.errors import LabError

LONGEST = 1200
"""Characters: with the lab's own words, Bochs' disk has room for no more."""
_WORD = re.compile(r'(?:[^\s"]|"[^"]*")+')
_PARAMETER = re.compile(r"([\w-]+)\.([\w-]+)(?:=(.*))?", re.DOTALL)
_NAMED = 40


def normal(text: str) -> str:
    """Return the words with one space between; a :class:`LabError` for what is no command line."""
    if text.count('"') % 2 or not text.isprintable() or not text.isascii():
        raise LabError(f"--append {text!r} is no command line: a quote is open, or it is no text")
    line = " ".join(_WORD.findall(text))
    if len(line) > LONGEST:
        raise LabError(f"--append has {len(line)} characters; a guest takes {LONGEST}")
    return line


def arguments(line: str, module: str) -> list[str]:
    """Return what is to be given to `module` when it is inserted, in order: the last one counts."""
    return [word for owner, word in _parameters(line) if owner == module]


def asks_for_signatures(line: str) -> bool:
    """Say whether a kernel with this line inserts signed modules only.

    kernel_lockdown(7), and Documentation/admin-guide/module-signing.rst.
    """
    words = (word.replace('"', "").partition("=")[0] for word in _WORD.findall(line))
    return any(word in ("lockdown", "module.sig_enforce") for word in words)


def unknown(line: str, shown: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return the parameters of `line` that a guest's modules do not have.

    `shown` has each module's parameters as /sys/module shows them. The kernel itself ignores a
    name that it does not know, and what is then judged is not what was asked for.
    """
    return [
        f"{owner}.{name}"
        for owner, word in _parameters(line)
        for name in (word.partition("=")[0],)
        if owner in shown and name not in (*shown[owner], "dyndbg")
    ]


def suffix(line: str) -> str:
    """Return what to add to a directory's name: "" for none, another one for each other line."""
    if not line:
        return ""
    readable = re.sub(r"[^\w.=]+", "_", line)[:_NAMED]
    return f"-{readable}-{hashlib.sha256(line.encode()).hexdigest()[:8]}"


def _parameters(line: str) -> Iterator[tuple[str, str]]:
    """Return (module, "name=value") of each; the kernel takes a dash for an underscore."""
    for word in _WORD.findall(line):
        if found := _PARAMETER.fullmatch(word.replace('"', "")):
            module, name = (found[n].replace("-", "_") for n in (1, 2))
            yield module, name if found[3] is None else f"{name}={found[3]}"
