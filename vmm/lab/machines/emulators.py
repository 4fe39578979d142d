"""The emulators: which are found, in which version, and how to fetch newer ones.

A fetched emulator lies in the cache with every library of its suite and runs through that suite's
own loader, so that it does not care how old this machine's C library is.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from vmm.conformance.records.plain import plain
from vmm.lab import cache
from vmm.lab.apt import AptRoot
from vmm.lab.errors import LabError
from vmm.lab.machines import built

# QEMU 7.2 loses a third of its guests when the machine is busy; 10.0 lost none of 100.
# Bochs 2.7 is a debugger in bookworm, and waits at its prompt for ever.
GOOD = {"qemu": (10, 0), "bochs": (3, 0)}
_LOADER = "ld-linux-x86-64.so.2"
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_UNUSED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/icons", "var", "etc")


@dataclass(frozen=True, slots=True)
class Emulator:
    """An emulator that runs here: its command prefix and where its firmware lies.

    `accelerated`: the host's KVM and its hardware do the work, and nothing is emulated but devices.
    `built`: it was built on this machine (:mod:`vmm.lab.machines.built`).
    """

    name: str
    version: tuple[int, ...]
    command: tuple[str, ...]
    root: Path
    environment: tuple[tuple[str, str], ...] = ()
    accelerated: bool = False
    built: bool = False

    @property
    def title(self) -> str:
        """Name and version, whether it was built here, and whether KVM does the work."""
        how = " built here" * self.built + " on KVM" * self.accelerated
        return f"{self.name} {'.'.join(map(str, self.version))}{how}"

    @property
    def good(self) -> bool:
        """Whether this version is known not to lose guests and to have the CPU models."""
        return self.version >= GOOD[self.name]


@dataclass(frozen=True, slots=True)
class _Kind:
    name: str
    program: str
    package: str
    suite: str
    ask: tuple[str, ...]
    version: re.Pattern[str]


_KINDS = {
    "qemu": _Kind(
        "qemu",
        "qemu-system-x86_64",
        "qemu-system-x86",
        "trixie-backports",
        ("--version",),
        re.compile(r"version (\d+(?:\.\d+)+)"),
    ),
    "bochs": _Kind(
        "bochs",
        "bochs-bin",
        "bochs-term",
        "trixie",
        ("--help",),
        re.compile(r"Emulator (\d+(?:\.\d+)+)"),
    ),
}


def is_here(name: str) -> bool:
    """Say whether there is one, on this machine or in the cache, that may run or not."""
    return bool(_places(_KINDS[name]))


def find(name: str) -> Emulator:
    """Return the newest "qemu" or "bochs", or the Bochs that was built here.

    A :class:`LabError` says that there is none, or what one that is there says and does not run.
    """
    kind = _KINDS[name]
    answers = [_ask(kind, place) for place in _places(kind)]
    if found := [answer for answer in answers if isinstance(answer, Emulator)]:
        return max(found, key=lambda emulator: (emulator.built, emulator.version))
    if refusals := [answer for answer in answers if isinstance(answer, str)]:
        raise LabError(refusals[0])
    good = ".".join(map(str, GOOD[name]))
    fetch = f"fetch it with `msrward lab install {name}`, or install {good} or newer"
    raise LabError(f"no {kind.program} here: {fetch}")


def install(name: str) -> Emulator:
    """Fetch an emulator into the cache (85 MB for QEMU), or verify the one that is there."""
    kind = _KINDS[name]
    cache.entry("emulators", name, lambda into: _unpack(kind, into))
    if (place := _cached(kind)) and isinstance(answer := _ask(kind, place), Emulator):
        return answer
    raise LabError(f"the fetched {kind.program} does not run on this machine; install it instead")


def build() -> Emulator:
    """Build the Bochs of :func:`install` on this machine: it takes half of the time.

    :class:`LabError` says why it does not build.
    """
    install("bochs")
    built.build(_KINDS["bochs"].suite)
    return find("bochs")


def _unpack(kind: _Kind, into: Path) -> None:
    apt = AptRoot()
    if not apt.has_lists():
        apt.refresh()
    apt.unpack_closure(kind.package, kind.suite, into)
    for unused in _UNUSED:
        shutil.rmtree(into / unused, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class _Place:
    command: tuple[str, ...]
    root: Path
    environment: tuple[tuple[str, str], ...] = ()
    built: bool = False


def _places(kind: _Kind) -> list[_Place]:
    program = shutil.which(kind.program)
    system = _Place((program,), Path("/")) if program else None
    cached = _cached(kind)
    own = built.program() if kind.name == "bochs" else None
    ours = replace(cached, command=(str(own),), built=True) if own and cached else None
    return [place for place in (system, cached, ours) if place]


def _cached(kind: _Kind) -> _Place | None:
    root = cache.root() / "emulators" / kind.name
    loaders = [
        path for path in (root / "usr/lib64" / _LOADER, root / "lib64" / _LOADER) if path.exists()
    ]
    if not loaders or not (root / cache.MANIFEST).exists():
        return None
    loader = (str(loaders[0]), "--library-path", _library_path(root))
    # Bochs looks for its devices and its BIOS here; QEMU does not care.
    environment = (
        ("LTDL_LIBRARY_PATH", str(root / _LIBRARIES / "bochs/plugins")),
        ("BXSHARE", str(root / "usr/share/bochs")),
    )
    return _Place((*loader, str(root / "usr/bin" / kind.program)), root, environment)


def _library_path(root: Path) -> str:
    libraries = root / _LIBRARIES
    return ":".join(str(path) for path in (libraries, libraries / "pulseaudio"))


def _ask(kind: _Kind, place: _Place) -> Emulator | str:
    """Return the emulator if it runs here and says its version, else why there is none."""
    went = subprocess.run(
        (*place.command, *kind.ask),
        capture_output=True,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        env={**os.environ, **dict(place.environment)},
        check=False,
    )
    found = kind.version.search(went.stdout + went.stderr)
    if not found:
        lines = f"{went.stderr}\n{went.stdout}".splitlines()
        silence = f"nothing, and ended with status {went.returncode}"
        said = next((plain(line.strip()) for line in lines if line.strip()), silence)
        return f"{kind.program} is here and does not run: {place.command[-1]} said {said}"
    version = tuple(int(number) for number in found[1].split("."))
    return Emulator(
        kind.name, version, place.command, place.root, place.environment, built=place.built
    )
