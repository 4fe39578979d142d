"""A run, or many, as a mail for a kernel list: plain text of 72 columns, the C program attached."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from email.message import EmailMessage
from email.policy import SMTP

from vmm.conformance.records.causes import Cause, causes
from vmm.conformance.records.saved import Saved
from vmm.conformance.records.schema import CaseRecord
from vmm.conformance.report.account import account, block, line, unfinished
from vmm.conformance.report.markdown import verdict
from vmm.conformance.report.text import machine, plural

WIDTH = 72
SUBJECT = 200
"""The characters that a subject may have: it stays on one line."""
NAME = 100
"""The characters that the name of an attachment may have, before its ending."""
ATTACHED = 4
"""The causes whose first case is shown in full and attached as a program: lists take no heaps."""
_POLICY = SMTP.clone(linesep="\n", cte_type="8bit", max_line_length=998)

Program = Callable[[CaseRecord, str], str]
"""What returns the C program of a case's record, which is to be in a file of that name; ValueError
says why there is none.
"""


def render(runs: Sequence[Saved], program: Program) -> str:
    """Return the mail, with a subject and without an address: a file for a mail program to open."""
    found = [(saved, cause) for saved in runs for cause in _causes(saved)]
    programs = _programs([cause for _, cause in found][:ATTACHED], program)
    message = EmailMessage(policy=_POLICY)
    message["Subject"] = _subject(runs, [cause for _, cause in found])
    body = [line for saved in runs for line in _run(saved, programs)]
    message.set_content("\n".join(body).strip("\n") + "\n", cte="8bit")
    for name, (source, _) in programs.items():
        if source:
            message.add_attachment(source, subtype="x-csrc", cte="8bit", filename=_file(name))
    return message.as_bytes().decode()


def _causes(saved: Saved) -> list[Cause]:
    return causes([case for case in account(saved) if case["verdict"].is_bad], saved.host)


def _subject(runs: Sequence[Saved], found: Sequence[Cause]) -> str:
    names = list(dict.fromkeys(str(saved.host.get("release")) for saved in runs))
    where = names[0] if len(names) == 1 else plural(len(names), "kernel")
    if not found:
        return f"KVM MSR filter on {where}: nothing is wrong"
    first = found[0]
    what = f"{first.entry or first.first['id']}: {first.first['sentence'].rstrip('.')}"
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return textwrap.shorten(f"KVM MSR filter on {where}: {what}{more}", SUBJECT)


def _programs(found: Sequence[Cause], program: Program) -> dict[str, tuple[str, str]]:
    """Return by case id the program, and why there is none where it is "": cases shown in full."""
    programs: dict[str, tuple[str, str]] = {}
    for case in (cause.first for cause in found):
        try:
            has_form = "script" in case
            programs[case["id"]] = (program(case, _file(case["id"])) if has_form else "", "")
        except ValueError as error:
            programs[case["id"]] = ("", str(error))
    return programs


def _file(name: str) -> str:
    """Return what the program of a case is called: a name that every mail program takes."""
    return re.sub(r"[^A-Za-z0-9_.+=-]", "_", name)[:NAME] + ".c"


def _run(saved: Saved, programs: dict[str, tuple[str, str]]) -> Iterator[str]:
    host = saved.host
    yield from _folded(verdict(saved))
    yield ""
    yield from _folded(f"kernel:  {host.get('version') or host.get('release')}", "         ")
    yield from _folded(f"CPU:     {machine(host) or 'unknown'}", "         ")
    yield from _folded(f"msrward: {host.get('msrward') or 'unknown'}")
    if why := unfinished(saved):
        yield from _folded(f"no verdict: {why}")
    for cause in _causes(saved):
        yield ""
        yield from _folded(cause.title, "  ")
        if cause.first["id"] not in programs:
            yield from _folded(f"  {line(cause.first)}", "    ")
            continue
        for each in block(cause.first, host).split("\n"):
            yield from _folded(each, " " * (len(each) - len(each.lstrip()) + 4))
        if len(cause.cases) > 1:
            names = ", ".join(case["id"] for case in cause.cases[1:])
            yield from _folded(f"  also: {names}", "    ")
        source, why = programs.get(cause.first["id"], ("", ""))
        if source:
            yield from _folded(f"  {_file(cause.first['id'])}, attached, shows it by itself.")
        elif why:
            yield from _folded(f"  No program in C: {why}")
    yield ""


def _folded(words: str, indent: str = "") -> list[str]:
    if len(words) <= WIDTH:
        return [words.rstrip()]
    return textwrap.wrap(
        *(words, WIDTH),
        subsequent_indent=indent[: WIDTH // 2],
        break_on_hyphens=False,
    )
