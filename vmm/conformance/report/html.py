"""A matrix as one self-contained HTML page: every cell leads to its record. No scripts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from vmm.conformance.contract.requirements import REQUIREMENTS
from vmm.conformance.records.schema import Record
from vmm.conformance.records.verdict import Verdict
from vmm.conformance.report import rerun, table
from vmm.conformance.report.table import Column, Row
from vmm.conformance.report.text import judged_again

_SYMBOLS = {
    Verdict.PASS: "✓",
    Verdict.FAIL: "✗",
    Verdict.TIMEOUT: "⏱",
    Verdict.UNSTEADY: "≁",
    Verdict.ERROR: "!",
    Verdict.SKIP: "–",
    "": "",
}
_STYLE = """
:root { color-scheme: light dark; --good: #2e7d32; --bad: #c62828; --odd: #b26a00;
  --line: color-mix(in srgb, currentColor 14%, transparent); --soft: color-mix(in srgb,
  currentColor 60%, transparent); --paper: Canvas }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 110rem; margin: 2.5rem auto;
  padding: 0 1rem }
h1 { font-size: 1.6rem; margin: 0 } h2 { font-size: 1.15rem; margin: 2.5rem 0 .6rem }
h3 { font-size: 1rem; margin: 2rem 0 .2rem; font-family: ui-monospace, monospace }
p, li { max-width: 62rem } .soft { color: var(--soft) } ul { padding-left: 1.2rem }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .92rem }
th, td { padding: .22rem .55rem; border-bottom: 1px solid var(--line); text-align: center }
thead th { position: sticky; top: 0; background: var(--paper); font-weight: 600 }
th[scope=row] { text-align: left; font-weight: 400; min-width: 16rem; max-width: 34rem }
th[scope=row] b { font-family: ui-monospace, monospace; margin-right: .5rem }
td a { text-decoration: none; display: block; border-radius: .3rem; font-weight: 600 }
.first { border-left: 2px solid var(--line) } .changed { box-shadow: inset 3px 0 var(--odd) }
.PASS { color: var(--good) } .SKIP { color: var(--soft) }
.FAIL, .TIMEOUT, .ERROR, .UNSTEADY { color: #fff; background: var(--bad) }
.A { color: inherit } .other { color: var(--odd) } code, pre { font-size: .85rem }
pre { overflow-x: auto; background: var(--line); padding: .6rem .8rem; border-radius: .4rem }
:target { outline: 2px solid var(--odd); outline-offset: 4px; border-radius: .2rem }
summary { cursor: pointer } .record { margin: .5rem 0 .5rem 1rem }
"""


def page(columns: Sequence[Column]) -> str:
    """Return the whole page."""
    return "".join((*_head(columns), *_body(columns), "</body></html>\n"))


def _head(columns: Sequence[Column]) -> Iterator[str]:
    yield '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width"><title>msrward: kernels by vendor'
    yield f"</title><style>{_STYLE}</style></head><body>"
    yield "<h1>KVM's MSR filter, kernel by kernel</h1>"
    releases = len({column.release for column in columns})
    vendors = len({column.vendor for column in columns})
    yield f'<p class="soft">Kernels: {releases}. Emulated machines: {vendors}. '
    yield "An amber edge marks a cell that differs from the kernel before it; every cell leads to "
    yield "its record.</p>"


def _body(columns: Sequence[Column]) -> Iterator[str]:
    yield from _explained(columns)
    rows = table.requirements(columns)
    yield "<h2>Requirements that do not hold everywhere</h2>"
    yield from _grid(columns, [row for row in rows if not row.even], "requirement")
    even = [row for row in rows if row.even]
    yield f"<details><summary>{len(even)} that pass, or are skipped, everywhere</summary>"
    yield from _grid(columns, even, "requirement")
    yield "</details>"
    yield "<h2>Cases that do not pass everywhere</h2>"
    uneven = [row for row in table.cases(columns) if not row.even]
    yield from _grid(columns, uneven, "case")
    yield "<h2>Fingerprints</h2><p>What may legitimately differ: equal letters in a row are equal "
    yield "observations.</p>"
    yield from _grid(columns, table.observations(columns), "case")
    yield "<h2>Machines</h2>"
    yield from _machines(columns)
    yield "<h2>Records</h2>"
    for name, requirement in REQUIREMENTS.items():
        ids = [row.name for row in table.cases(columns) if _checks(columns, row.name, name)]
        if ids:
            yield f'<p id="{name}"><b>{name}</b> {escape(requirement.sentence)}: '
            yield " ".join(f'<a href="#{each}">{each}</a>' for each in map(escape, ids)) + "</p>"
    for row in (*table.cases(columns), *table.observations(columns)):
        yield from _section(columns, row)


def _checks(columns: Sequence[Column], case: str, requirement: str) -> bool:
    record = next((c.cases[case] for c in columns if case in c.cases), None)
    return bool(record and requirement in record["requirements"])


def _explained(columns: Sequence[Column]) -> Iterator[str]:
    troubles = [f"{c.version} {c.vendor}: {c.trouble}" for c in columns if c.trouble]
    if lines := [*table.explanations(columns), *troubles]:
        yield "<h2>What is wrong, and what explains it</h2><ul>"
        yield from (f"<li>{escape(line)}</li>" for line in lines)
        yield "</ul>"


def _grid(columns: Sequence[Column], rows: Sequence[Row], title: str) -> Iterator[str]:
    if not rows:
        yield "<p>None.</p>"
        return
    yield '<div class="wide"><table><thead><tr><th></th>'
    vendors = list(dict.fromkeys(column.vendor for column in columns))
    for vendor in vendors:
        span = sum(column.vendor == vendor for column in columns)
        yield f'<th class="first" colspan="{span}">{escape(vendor)}</th>'
    yield f'</tr><tr><th scope="col">{title}</th>'
    for number, column in enumerate(columns):
        head = f'<a href="#machine-{number}">{escape(column.version)}</a>'
        yield f"<th{_edge(columns, number)}>{head}</th>"
    yield "</tr></thead><tbody>"
    for row in rows:
        yield f'<tr><th scope="row"><b>{escape(row.name)}</b>{escape(row.sentence)}</th>'
        yield from (_cell(columns, row, number) for number in range(len(columns)))
        yield "</tr>"
    yield "</tbody></table></div>"


def _edge(columns: Sequence[Column], number: int, *classes: str) -> str:
    first = number == 0 or columns[number].vendor != columns[number - 1].vendor
    names = [*(["first"] if first else []), *classes]
    return f' class="{" ".join(names)}"' if names else ""


def _cell(columns: Sequence[Column], row: Row, number: int) -> str:
    word = row.words[number]
    style = word if word in _SYMBOLS or word == "A" else "other"
    edge = _edge(columns, number, *(["changed"] if row.changes[number] else []))
    link = f"#{row.name}" if row.name in REQUIREMENTS else f"#{row.name}--{number}"
    shown = _SYMBOLS.get(word, word)
    title = f"{row.name} on {columns[number].release} {columns[number].vendor}: {word}"
    where = f'class="{escape(style)}" href="{escape(link)}" title="{escape(title)}"'
    inside = f"<a {where}>{escape(shown)}</a>" if word else ""
    return f"<td{edge}>{inside}</td>"


def _machines(columns: Sequence[Column]) -> Iterator[str]:
    for number, column in enumerate(columns):
        host = column.saved.host if column.saved else {}
        end = column.saved.end if column.saved else {}
        facts = {name: host.get(name) for name in ("version", "cpu_model", "vendor_module")}
        lab = {**host.get("lab", {}), **end.get("lab", {})}
        lab.pop("console", None)
        yield f'<p id="machine-{number}"><b>{escape(column.release)}</b> '
        yield f"{escape(column.vendor)}: "
        yield escape(", ".join(f"{k} {v}" for k, v in {**facts, **lab}.items() if v)) + "</p>"
        if console := end.get("lab", {}).get("console"):
            yield f"<pre>{escape(chr(10).join(console))}</pre>"


def _section(columns: Sequence[Column], row: Row) -> Iterator[str]:
    title = escape(row.name)
    yield f'<section id="{title}"><h3>{title}</h3><p>{escape(row.sentence)}</p>'
    for number, column in enumerate(columns):
        if record := column.cases.get(row.name):
            yield f'<div class="record" id="{title}--{number}">'
            yield f'<span class="{record["verdict"]}">'
            yield f"&nbsp;{record['verdict']}&nbsp;</span> "
            yield escape(f"{column.version} {column.vendor} ")
            yield f'<span class="soft">{record["ms"]:.1f} ms</span>'
            yield f"{_evidence(column, record)}</div>"
    yield "</section>"


def _evidence(column: Column, record: Record) -> str:
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
    return text + (more if script else "")
