"""Runs as one self-contained HTML page: every cell leads to its record. It needs no script."""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import sha256
from html import escape

from vmm.conformance.contract.requirements import REQUIREMENTS
from vmm.conformance.records.schema import CaseRecord
from vmm.conformance.records.verdict import Verdict
from vmm.conformance.report import history, pictures, rerun, table
from vmm.conformance.report.style import SCRIPT, STYLE
from vmm.conformance.report.table import Column, Row
from vmm.conformance.report.text import judged_again, plural

_SYMBOLS = {
    Verdict.PASS: "✓",
    Verdict.FAIL: "✗",
    Verdict.TIMEOUT: "⏱",
    Verdict.UNSTEADY: "≁",
    Verdict.ERROR: "!",
    Verdict.SKIP: "–",
    history.SHOWN: "✗",
    history.ABSENT: "✓",
    "": "",
}


def page(columns: Sequence[Column]) -> str:
    """Return the whole page."""
    return "".join((*_head(columns), *_body(columns), "</body></html>\n"))


def _head(columns: Sequence[Column]) -> Iterator[str]:
    script = b64encode(sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{script}'"
    yield '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
    yield f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    yield '<meta name="viewport" content="width=device-width"><title>msrward: kernels by vendor'
    yield f"</title><style>{STYLE}</style></head><body>"
    yield '<a class="skip" href="#main">Skip to what is wrong</a>'
    yield "<header><h1>KVM's MSR filter, kernel by kernel</h1>"
    releases = len({column.release for column in columns})
    vendors = len({column.vendor for column in columns})
    yield f'<p class="soft">Kernels: {releases}. Machines: {vendors}. '
    yield "An amber edge marks a cell that differs from the kernel before it; every cell leads to "
    yield "its record.</p></header>"
    yield '<p class="filter" hidden><label for="filter">Show only what has these words: </label>'
    yield '<input type="search" id="filter" autocomplete="off" spellcheck="false"> '
    yield '<output id="found" for="filter" aria-live="polite"></output></p><main id="main">'


def _body(columns: Sequence[Column]) -> Iterator[str]:
    yield "<h2>Causes</h2>"
    yield from _grid(columns, history.rows(columns), "cause")
    yield from _explained(columns)
    yield from _history(columns)
    rows = table.requirements(columns)
    yield "<h2>Requirements that do not hold everywhere</h2>"
    yield from _grid(columns, [row for row in rows if not row.even], "requirement")
    even = [row for row in rows if row.even]
    yield '<details class="rest">'
    yield f"<summary>{len(even)} that pass, or are skipped, everywhere</summary>"
    yield from _grid(columns, even, "requirement")
    yield "</details>"
    yield "<h2>Cases that do not pass everywhere</h2>"
    cases = table.cases(columns)
    yield from _grid(columns, [row for row in cases if not row.even], "case")
    yield "<h2>Fingerprints</h2><p>What may legitimately differ: equal letters in a row are equal "
    yield "observations.</p>"
    yield from _grid(columns, table.observations(columns), "observation")
    yield "<h2>Machines</h2>"
    yield from _machines(columns)
    yield "<h2>Records</h2>"
    for row in cases:
        if not row.even:
            yield from _section(columns, row)
    yield '<details class="rest"><summary>'
    yield "What passes or is skipped everywhere, and what is observed</summary>"
    for row in (*(row for row in cases if row.even), *table.observations(columns)):
        yield from _section(columns, row)
    yield '</details><nav class="index" aria-labelledby="index">'
    yield '<h2 id="index">Cases by requirement</h2>'
    for name, requirement in REQUIREMENTS.items():
        ids = [row.name for row in cases if _checks(columns, row.name, name)]
        if ids:
            yield f'<p id="{name}"><b>{name}</b> {escape(requirement.sentence)}: '
            yield " ".join(f'<a href="#{each}">{each}</a>' for each in map(escape, ids)) + "</p>"
    yield f"</nav></main><script>{SCRIPT}</script>"


def _history(columns: Sequence[Column]) -> Iterator[str]:
    machines = history.history([column.saved for column in columns if column.saved])
    long = [machine for machine in machines if len(machine.kernels) > 1]
    if long:
        yield "<h2>History</h2>"
    for machine in long:
        yield f"<h3>{escape(machine.name)}</h3>"
        changed = [line for line in machine.observations if len(line.events) > 1]
        for line in (*machine.causes, *changed):
            yield f'<p class="line">{pictures.strip(line, machine.kernels)}'
            yield f"<b>{escape(line.name)}</b>: {escape(history.told(line))}</p>"


def _checks(columns: Sequence[Column], case: str, requirement: str) -> bool:
    record = next((c.cases[case] for c in columns if case in c.cases), None)
    return bool(record and requirement in record["requirements"])


def _explained(columns: Sequence[Column]) -> Iterator[str]:
    troubles = [f"{c.name} {c.vendor}: {c.trouble}" for c in columns if c.trouble]
    if lines := [*table.explanations(columns), *troubles]:
        yield "<h2>What is wrong, and what explains it</h2><ul>"
        yield from (f"<li>{escape(line)}</li>" for line in lines)
        yield "</ul>"


def _grid(columns: Sequence[Column], rows: Sequence[Row], title: str) -> Iterator[str]:
    if not rows:
        yield "<p>None.</p>"
        return
    label = f"Each {title} by kernel and machine"
    yield f'<div class="wide" role="region" tabindex="0" aria-label="{label}">'
    yield f"<table><caption>{label}</caption><colgroup></colgroup>"
    spans = Counter(column.vendor for column in columns)
    yield "".join(f'<colgroup span="{span}"></colgroup>' for span in spans.values())
    yield "<thead><tr><td></td>"
    for vendor, span in spans.items():
        yield f'<th class="first" scope="colgroup" colspan="{span}">{escape(vendor)}</th>'
    yield f'</tr><tr><th scope="col">{title}</th>'
    for number, column in enumerate(columns):
        head = f'<a href="#machine-{number}">{escape(column.name)}</a>'
        yield f'<th scope="col"{_edge(columns, number)}>{head}</th>'
    yield "</tr></thead><tbody>"
    for row in rows:
        yield f'<tr><th scope="row"><b>{escape(row.name)}</b>{escape(row.sentence)}'
        yield f"{_folded(row)}</th>"
        yield from (_cell(columns, row, number) for number in range(len(columns)))
        yield "</tr>"
    yield "</tbody></table></div>"


def _folded(row: Row) -> str:
    """Return the cases of a cause, folded; the row of a case has none."""
    if not row.cases:
        return ""
    links = " ".join(f'<a href="#{each}">{each}</a>' for each in map(escape, row.cases))
    number = plural(len(row.cases), "case")
    return f"<details><summary>{number}</summary>{links}</details>"


def _edge(columns: Sequence[Column], number: int, *classes: str) -> str:
    first = number == 0 or columns[number].vendor != columns[number - 1].vendor
    names = [*(["first"] if first else []), *classes]
    return f' class="{" ".join(names)}"' if names else ""


def _cell(columns: Sequence[Column], row: Row, number: int) -> str:
    word = row.words[number]
    style = word if word in _SYMBOLS or word == "A" else "other"
    edge = _edge(columns, number, *(["changed"] if row.changes[number] else []))
    link = f"#{row.name}" if row.name in REQUIREMENTS else f"#{row.name}--{number}"
    if row.cases:
        there = [each for each in row.cases if each in columns[number].cases]
        link = f"#{(there or row.cases)[0]}"
    shown = _SYMBOLS.get(word, word)
    title = f"{row.name} on {_full(columns[number])} {columns[number].vendor}: {word}"
    said = f'title="{escape(title)}" aria-label="{escape(title)}"'
    where = f'class="{escape(style)}" href="{escape(link)}" {said}'
    inside = f"<a {where}>{escape(shown)}</a>" if word else ""
    return f"<td{edge}>{inside}</td>"


def _full(column: Column) -> str:
    """Return the release of a column, and what tells it from other runs of that release."""
    return f"{column.release} ({column.note})" if column.note else column.release


def _machines(columns: Sequence[Column]) -> Iterator[str]:
    for number, column in enumerate(columns):
        host = column.saved.host if column.saved else {}
        ended = column.saved.lab if column.saved else {}
        facts = {name: host.get(name) for name in ("version", "cpu_model", "vendor_module")}
        lab = {**host.get("lab", {}), **ended}
        lab.pop("console", None)
        yield f'<p id="machine-{number}"><b>{escape(_full(column))}</b> '
        yield f"{escape(column.vendor)}: "
        yield escape(", ".join(f"{k} {v}" for k, v in {**facts, **lab}.items() if v)) + "</p>"
        if console := ended.get("console"):
            yield f"<pre>{escape(chr(10).join(console))}</pre>"


def _section(columns: Sequence[Column], row: Row) -> Iterator[str]:
    title = escape(row.name)
    yield f'<section id="{title}"><h3>{title}</h3><p>{escape(row.sentence)}</p>'
    for number, column in enumerate(columns):
        if record := column.cases.get(row.name):
            yield f'<div class="record" id="{title}--{number}">'
            yield f'<span class="{record["verdict"]}">'
            yield f"&nbsp;{record['verdict']}&nbsp;</span> "
            yield escape(f"{column.name} {column.vendor} ")
            yield f'<span class="soft">{record["ms"]:.1f} ms</span>'
            yield f"{_evidence(column, record)}</div>"
    yield "</section>"


def _evidence(column: Column, record: CaseRecord) -> str:
    lines = [record[name] for name in ("reason", "observation", "error") if name in record]
    if "expected" in record:
        lines += [f"step {record['step']}: {record['action']}"]
        lines += [f"expected {', '.join(record['expected']) or 'nothing'}"]
        lines += [f"seen     {', '.join(record['seen']) or 'nothing'}"]
    lines += [line.strip() for line in judged_again(record)]
    host = column.saved.host if column.saved else {}
    lines += [rerun.line(rerun.of_run(host), record)] if lines and "lab" in host else []
    script = "\n".join(record.get("script", ()))
    text = f"<pre>{escape(chr(10).join(lines))}</pre>" if lines else ""
    more = f"<details><summary>script</summary><pre>{escape(script)}</pre></details>"
    shown = "".join(pictures.curve(*each) for each in record.get("series", {}).items())
    shown += "".join(pictures.histogram(*each) for each in record.get("histograms", {}).items())
    return text + shown + (more if script else "")
