"""Bochs, built on this machine: it takes half of the packaged one's time.

Debian's is a debugger too, which keeps it from chaining the handlers of its instructions. The
machines are the same: what configures a processor is what the package has, and so is the BIOS.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from vmm.lab import cache, processes
from vmm.lab.apt import AptRoot
from vmm.lab.errors import LabError

_KIND, _KEY, _PROGRAM = "emulators", "bochs-built", "bochs"
_CPU = (
    "--enable-cpu-level=6",
    "--enable-x86-64",
    "--enable-fpu",
    "--enable-a20-pin",
    "--enable-vmx=2",
    "--enable-svm",
    "--enable-avx",
    "--enable-evex",
    "--enable-amx",
    "--enable-cet",
    "--enable-uintr",
    "--enable-3dnow",
    "--enable-memtype",
    "--enable-protection-keys",
    "--enable-x86-debugger",
)
_REST = (
    "--enable-pci",
    "--enable-all-optimizations",
    "--disable-debugger",
    "--disable-debugger-gui",
    "--disable-docbook",
    "--disable-plugins",
    "--with-nogui",
)
# The cache may be shared by machines of other processors and older C++ libraries.
_FLAGS = ("CFLAGS=-O2", "CXXFLAGS=-O2", "LDFLAGS=-static-libstdc++ -static-libgcc")
_TOOLS = ("make", "g++")


def program() -> Path | None:
    """Return the Bochs that was built here; None where none was."""
    directory = cache.root() / _KIND / _KEY
    return directory / _PROGRAM if (directory / cache.MANIFEST).exists() else None


def build(suite: str) -> None:
    """Build the Bochs of a Debian suite into the cache (four minutes of CPU), or verify it.

    :class:`LabError` says what is missing, or the compiler's first error.
    """
    cache.entry(_KIND, _KEY, lambda into: _build(suite, into))


def _build(suite: str, into: Path) -> None:
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        raise LabError(
            f"no {' and no '.join(missing)} here, which building Bochs takes: "
            "apt-get install g++ make"
        )
    with tempfile.TemporaryDirectory(dir=into.parent, prefix=".bochs-") as scratch:
        tree = Path(scratch)
        AptRoot().source("bochs", suite, tree)
        _run(tree, "./configure", *_CPU, *_REST, *_FLAGS)
        _run(tree, "make", f"-j{len(os.sched_getaffinity(0))}", _PROGRAM)
        shutil.copy2(tree / _PROGRAM, into / _PROGRAM)


def _run(tree: Path, *command: str) -> None:
    done = processes.run(command, cwd=tree, env={**os.environ, "LC_ALL": "C"})
    if done.returncode:
        raise LabError(f"Bochs does not build here: {processes.first_error(done.stderr)}")
