"""The C side: built when it is not there, then a process that does one command at a time."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Self

from vmm.guest import IMAGES, Guest

ROOT = Path(__file__).resolve().parent.parent


class BareC:
    """The C program: a process that does one command at a time."""

    def __init__(self, build: Path) -> None:
        """Build the program if it is not there or older than its source, and start it."""
        command = [str(_built(build)), _image("spin"), hex(read_forever()), _image("access")]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, command: str) -> list[int]:
        """Return the numbers that answer a command: ns, count, and more."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        answer = [int(word) for word in self._process.stdout.readline().split()]
        if not answer:
            raise RuntimeError(f"the C program ended at {command!r}")
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def _built(build: Path) -> Path:
    sources = [ROOT / "bench" / "bench.c", ROOT / "native" / "shim.h"]
    program = build / "bench"
    if not program.exists() or any(
        each.stat().st_mtime > program.stat().st_mtime for each in sources
    ):
        compiler = shutil.which("cc") or shutil.which("gcc")
        if not compiler:
            raise RuntimeError("no C compiler (cc) to build bench/bench.c with")
        subprocess.run(
            [compiler, "-O2", "-I", str(ROOT / "native"), str(sources[0]), "-o", str(program)],
            check=True,
        )
    return program


def _image(name: str) -> str:
    return str(IMAGES / f"{name}.elf")


def read_forever() -> int:
    """Return where the guest that reads its MSR for ever starts."""
    return Guest.load("spin").symbols["read_forever"]
