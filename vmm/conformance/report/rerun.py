"""The command that runs a case again: composed here, never taken from a record."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from vmm.conformance.records.schema import CaseRecord

OTHERS = ("stress", "churn")
"""Commands whose records are of no script; their names begin the ids."""
HERE = "msrward check"
"""The command that takes the id of a case to judge it on this host."""


def in_the_lab(
    kernel: str, vendor: str, append: str = "", cpu: str = "", *, what: str = "run"
) -> str:
    """Return the command that takes the id of a case to run it in the lab; ``what`` is which."""
    added = f" --cpu {shlex.quote(cpu)}" if cpu else ""
    added += f" --append {shlex.quote(append)}" if append else ""
    return (
        f"msrward lab {what} --kernel {shlex.quote(kernel)} --vendor {shlex.quote(vendor)}{added}"
    )


def of_run(host: Mapping[str, Any]) -> str:
    """Return the command that takes the id of a case to run it as the run with these facts did."""
    lab = host.get("lab")
    if not lab:
        return HERE
    told = (lab.get(name, "") for name in ("append", "cpu"))
    return in_the_lab(lab.get("kernel", ""), lab["vendor"], *told)


def line(command: str, case: CaseRecord) -> str:
    """Return the command with the case's id, or the file that it was read from.

    What stress and churn saw is no case of a catalogue: the command that saw it is run again.
    """
    theme = str(case["id"]).partition(".")[0]
    if theme in OTHERS:
        where = command.partition("lab run ")[2]
        return f"msrward lab {theme} {where}" if where else f"msrward {theme}"
    name = str(case.get("file") or case["id"])
    return f"{command} {shlex.quote(f'./{name}' if name.startswith('-') else name)}"
