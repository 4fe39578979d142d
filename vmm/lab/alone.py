"""A call in a process of its own, for a worker of a cluster, which has threads and lives on.

What is judged captures stdout and is ended by a signal, which a thread can neither; and whatever
ends the process, or the worker, ends the emulator too.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import vmm
from vmm.conformance.host.facts import facts
from vmm.conformance.host.interrupts import terminable
from vmm.lab import processes
from vmm.lab.errors import LabError

_SOURCE = frozenset({".py", ".toml", ".config", ".sh"})
_running: dict[str, set[subprocess.Popen[bytes]]] = {}
_guard = Lock()


class Died(LabError):
    """The process that had the work ended without an answer."""


class Unreachable(LabError):
    """Nothing can be done there any more, whatever it is."""


class Differs(Unreachable):
    """The msrward there is not the one here."""


@cache
def identity() -> str:
    """Return which msrward this is: its version, and a digest of its Python and data."""
    digest = hashlib.sha256()
    root = Path(vmm.__path__[0])
    for path in sorted(each for each in root.rglob("*") if each.suffix in _SOURCE):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return f"{facts()['msrward']} ({digest.hexdigest()[:12]})"


def call(ours: str, run: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Return what the function returns, for the msrward that is called `ours`.

    `run` is by what :func:`stop` knows it. LabError goes through; Died says what else ended it.
    """
    if ours != identity():
        raise Differs(f"msrward is {identity()} there and {ours} here: install the same on both")
    command = (sys.executable, "-P", "-m", "vmm.lab.alone", str(os.getpid()))
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        with _guard:
            _running.setdefault(run, set()).add(process)
        try:
            told, said = process.communicate(pickle.dumps((function, arguments)))
        finally:
            with _guard:
                _running[run].discard(process)
    if not told:
        last = (said.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        raise Died(f"the process that judged it died (status {process.returncode}): {last}")
    answer, error = pickle.loads(told)
    if error is not None:
        raise LabError(error)
    return answer


def stop(run: str) -> None:
    """Tell all processes of a run in this worker to end."""
    with _guard:
        for process in _running.get(run, ()):
            process.terminate()


def _answer() -> tuple[Any, str | None]:
    function, arguments = pickle.load(sys.stdin.buffer)
    try:
        with terminable():
            return function(*arguments), None
    except LabError as error:
        return None, str(error)


def main() -> None:
    """Do what stdin says and write what came of it to stdout, to which nothing else goes."""
    processes.die_with_parent()
    if os.getppid() != int(sys.argv[1]):  # it ended before it could be said
        return
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        out.write(pickle.dumps(_answer()))


if __name__ == "__main__":
    main()
