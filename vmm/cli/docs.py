"""``msrward docs``: write the pages of docs/ that are made from data."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from vmm.cli.output import say
from vmm.cli.parser import add_command
from vmm.conformance.records.status import Status


def add(commands: Any, whole: argparse.ArgumentParser) -> None:
    """Add the command; ``whole`` is the parser of all commands, of which the manual is made."""
    parser = add_command(
        commands, "docs", partial(_docs, whole), "write the pages of docs/ that data makes"
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="made where it is missing")


def pages(whole: argparse.ArgumentParser) -> Mapping[str, Callable[[], str]]:
    """Return what writes each page, by its name in docs/."""
    from vmm.cli.manual import manual
    from vmm.conformance.contract.pages import contract_page, history_page
    from vmm.conformance.language.glossary import words_page

    return {
        "contract.md": contract_page,
        "history.md": history_page,
        "words.md": words_page,
        "msrward.1": lambda: manual(whole),
    }


def _docs(whole: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    args.directory.mkdir(parents=True, exist_ok=True)
    written = pages(whole)
    for name, page in written.items():
        (args.directory / name).write_text(page())
    say(f"wrote {', '.join(written)} to {args.directory}")
    return Status.CONFORMS
