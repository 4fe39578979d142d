"""The results of a run on disk: one directory, one writer, one line for each record at once.

``DIR/results.jsonl`` grows by whole lines as cases end (``records.schema`` documents them), so that
killing the run loses at most the cases in flight. ``DIR/lock`` keeps a second run out.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from vmm.closing import Closing
from vmm.conformance.records import places
from vmm.conformance.records.jsonl import decode, encoder
from vmm.conformance.records.schema import CaseRecord, Record
from vmm.conformance.records.steadiness import is_open, reopened

FILE = "results.jsonl"
SAME_HOST = ("release", "version", "hostname", "vendor_module", "cpu_model")
"""The host facts that must not have changed for a run to go on with ``--resume``: these, the
parameters of KVM's modules, and of the lab the CPU and what was added to the command line."""


class ResultsError(Exception):
    """The results cannot be kept or continued; the text is one line for the user."""


class Held(ResultsError):
    """Another run is writing to the directory."""


def default_directory() -> Path:
    """Return ``$XDG_STATE_HOME/msrward/latest`` (``~/.local/state`` when it is unset)."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "msrward" / "latest"


class Results(Closing):
    """The open results of one run; a context manager.

    ``recorded`` has the case records of the run that this one continues, by case id; ``firsts``
    what other cases left that were to be judged once more.
    """

    def __init__(self, directory: Path, host: Mapping[str, Any], *, resume: bool = False) -> None:
        """Lock ``directory`` (made if need be) and open its file; ResultsError says why not.

        With ``resume`` the file there is continued, and must be of this kernel and host;
        otherwise it is kept as ``results.jsonl.old``.
        """
        self.directory, self.path = directory, directory / FILE
        self.line = encoder(host)
        self.recorded: dict[str, CaseRecord] = {}
        self.firsts: dict[str, CaseRecord] = {}
        self._file, self._size = -1, 0
        self._directory, self._lock = _lock(directory)
        try:
            self._file = self._open(host, resume)
        except BaseException:
            self.close()
            raise

    @classmethod
    def open_default(cls, host: Mapping[str, Any], *, resume: bool = False) -> Results:
        """Open the default directory, or ``latest-PID`` beside it while another run holds it."""
        directory = default_directory()
        try:
            return cls(directory, host, resume=resume)
        except Held:
            if resume:
                raise
        return cls(directory.with_name(f"{directory.name}-{os.getpid()}"), host)

    def write(self, record: Mapping[str, Any]) -> str:
        """Append the record as one line, at once, and return the line."""
        text = self.line(record)
        data = text.encode()
        self._size += len(data)
        if self._size > places.MOST:
            raise ResultsError(f"the records are more than {places.MOST >> 20} MiB: no run's are")
        if self.is_gone:
            raise ResultsError(f"{self.path} has been removed while the run wrote to it")
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            raise ResultsError(f"cannot write {self.path}: {error.strerror}") from None
        return text

    @property
    def is_gone(self) -> bool:
        """Whether somebody removed the file, and what it had is lost."""
        return self._file >= 0 and places.is_gone(self._file)

    @property
    def where(self) -> str:
        """Return "the records are in PATH", or that they are lost."""
        return "the records are lost" if self.is_gone else f"the records are in {self.path}"

    def close(self) -> None:
        """Close the file and let the next run in."""
        for fd in (self._file, self._lock, self._directory):
            if fd >= 0:
                os.close(fd)
        self._file = self._lock = self._directory = -1

    def _open(self, host: Mapping[str, Any], resume: bool) -> int:
        try:
            with suppress(FileNotFoundError):
                if resume:
                    return self._continue(host)
                places.keep(FILE, FILE + ".old", self._directory)
            return places.create(FILE, self._directory, os.O_WRONLY | os.O_APPEND)
        except OSError as error:
            raise ResultsError(f"cannot write {self.path}: {error.strerror}") from None

    def _continue(self, host: Mapping[str, Any]) -> int:
        file = places.open_regular(FILE, os.O_RDWR | os.O_APPEND, self._directory)
        try:
            whole = places.read(file)
            whole = whole[: whole.rfind(b"\n") + 1]  # a last line without its end was cut by a kill
            records = [
                _decode(self.path, number, line)
                for number, line in enumerate(whole.split(b"\n")[:-1], start=1)
            ]
            for record in records:
                _check_host(self.path, record["host"], host)
            self.recorded, self.firsts = to_go_on(*by_case(records))
            os.ftruncate(file, len(whole))
        except BaseException:
            os.close(file)
            raise
        self._size = len(whole)
        return file


def by_case(
    records: Sequence[Record],
) -> tuple[dict[str, CaseRecord], dict[str, CaseRecord]]:
    """Return by id the cases of a run, and the ``first`` records that no case followed."""
    judged = [each for each in records if each["type"] != "run" and each["type"] != "end"]
    cases, firsts = (
        {case["id"]: case for case in judged if case["type"] == type_}
        for type_ in ("case", "first")
    )
    return cases, {name: first for name, first in firsts.items() if name not in cases}


def to_go_on(
    cases: Mapping[str, CaseRecord], firsts: Mapping[str, CaseRecord]
) -> tuple[dict[str, CaseRecord], dict[str, CaseRecord]]:
    """Return of what ``by_case`` found what a run that goes on need not judge, and its firsts."""
    settled = {name: case for name, case in cases.items() if not is_open(case)}
    again = {name: reopened(case) for name, case in cases.items() if name not in settled}
    return settled, {**firsts, **{name: first for name, first in again.items() if first}}


def _lock(directory: Path) -> tuple[int, int]:
    """Return descriptors of the directory and of its lock, which is held."""
    held = -1
    try:
        held = places.open_directory(directory)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        lock = os.open("lock", flags, 0o644, dir_fd=held)
    except OSError as error:
        if held >= 0:
            os.close(held)
        raise ResultsError(
            f"cannot write to the output directory {directory}: {error.strerror}"
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        for fd in (lock, held):
            os.close(fd)
        if not isinstance(error, BlockingIOError):  # NFS without its lock daemon
            why = f"{directory} is where nothing can be locked ({error.strerror})"
            raise ResultsError(f"{why}; give a directory of another file system with -o") from None
        raise Held(f"{directory} is in use by another run; give another with -o DIR") from None
    return held, lock


def _decode(path: Path, number: int, line: bytes) -> Record:
    try:
        return decode(line.decode())
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ResultsError(
            f"{path} is damaged at line {number} ({error}); it is left as it is:"
            " run without --resume to start anew"
        ) from None


def _check_host(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    before, here = _identity(theirs), _identity(ours)
    for fact in {**before, **here}:
        if before.get(fact) != here.get(fact):
            raise ResultsError(
                f"{path} is of another kernel or host ({fact} {before.get(fact)!r}, here"
                f" {here.get(fact)!r}); run without --resume to start anew"
            )


def _identity(host: Mapping[str, Any]) -> dict[str, Any]:
    modules = host.get("parameters") or {}
    return {
        **{fact: host.get(fact) for fact in SAME_HOST},
        **{f"lab.{name}": host.get("lab", {}).get(name, "") for name in ("append", "cpu")},
        **{f"{m}.{name}": value for m in modules for name, value in modules[m].items()},
    }
