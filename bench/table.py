"""What was measured, as a table and as JSON."""

from __future__ import annotations

from typing import Any

from bench.line import Line


def report(line: Line) -> dict[str, Any]:
    """Return the line as what ``--json`` prints."""
    return {
        "name": line.name,
        "unit": line.unit,
        "c": _quantiles(line.c),
        "python": _quantiles(line.python),
        "ratio": None if line.skipped else round(line.ratio(), 3),
        "ratio_of": "times" if line.at_most else "rates",
        "target": line.target,
        "at_most": line.at_most,
        "verdict": line.verdict(),
        "skipped": line.skipped or None,
        "rounds": len(line.python),
        "exits": {"c": line.c_exits, "python": line.python_exits},
        "install_gap_us": {"c": _quantiles(line.c_gaps), "python": _quantiles(line.python_gaps)},
    }


def _quantiles(values: list[float]) -> dict[str, float] | None:
    ordered = sorted(values)
    if not ordered:
        return None
    at = {"p50": len(ordered) // 2, "p90": len(ordered) * 9 // 10}
    return {name: round(ordered[place], 3) for name, place in at.items()}


def table(reports: list[dict[str, Any]]) -> str:
    """Return the lines as a person reads them, with what else was measured below."""
    rows = [("", "C p50", "p90", "Python p50", "p90", "ratio", "target", "")]
    for each in reports:
        if each["skipped"]:
            rows.append((each["name"], *["-"] * 5, "", f"SKIP: {each['skipped']}"))
            continue
        times = [f"{each[side][p]:.2f}" for side in ("c", "python") for p in ("p50", "p90")]
        sign = "<=" if each["at_most"] else ">="
        rows.append(
            (
                f"{each['name']}, {each['unit']}",
                *times,
                f"{each['ratio']:.3f}",
                f"{sign} {each['target']:.2f}",
                each["verdict"],
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(8)]
    lines = [
        row[0].ljust(widths[0])
        + "  "
        + "  ".join(cell.rjust(width) for cell, width in zip(row[1:7], widths[1:7], strict=True))
        + f"  {row[7]}"
        for row in rows
    ]
    return "\n".join(
        [*(line.rstrip() for line in lines), "", *filter(None, map(_notes, reports))]
    ).rstrip()


def _notes(each: dict[str, Any]) -> str:
    if not each["install_gap_us"]["c"]:
        return ""
    c, python = each["install_gap_us"]["c"], each["install_gap_us"]["python"]
    rates = [f"{1e6 / each[side]['p50']:,.0f}" for side in ("c", "python")]
    return (
        f"{each['name']}: {rates[0]} cases/s in C, {rates[1]} checked in Python; from one install "
        f"to the next, in us: C p50 {c['p50']:.1f} p90 {c['p90']:.1f}, "
        f"Python p50 {python['p50']:.1f} p90 {python['p90']:.1f}"
    )
