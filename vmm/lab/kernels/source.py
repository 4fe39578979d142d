"""The source of a kernel: a copy of a tree, or of what a source package holds."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from vmm.lab import cache
from vmm.lab.apt import AptRoot, untar
from vmm.lab.errors import LabError

_STAMP = ".msrward-source"


def unpack(into: Path, package: str, source: Path | None = None) -> None:
    """Make `into` a copy of the source that `package` holds, or of the tree `source`; once.

    :class:`LabError` where there is no such package, and where `source` is no kernel's tree.
    """
    origin = str(source.absolute()) if source else package
    stamp = into / _STAMP
    if stamp.is_file() and stamp.read_text() == origin:
        return
    with cache.no_space_in_one_line():
        shutil.rmtree(into, ignore_errors=True)
        into.mkdir(parents=True)
        _copy(source, into) if source else _fetch(into, package)
        stamp.write_text(origin)


def _copy(source: Path, into: Path) -> None:
    if not (source / "Kconfig").is_file():
        raise LabError(f"{source} is no kernel source tree: it has no Kconfig")
    _run("cp", "-a", f"{source.absolute()}/.", into)


def _fetch(into: Path, package: str) -> None:
    root = AptRoot()
    if not root.has_lists():
        root.refresh()
    offered = root.search(f"^{package}$")
    if not offered:
        raise LabError(f"the mirror has no {package}; give its tree with --source")
    with tempfile.TemporaryDirectory(dir=into.parent) as unpacked:
        root.unpack(offered[:1], Path(unpacked))
        archive = next(Path(unpacked, "usr/src").glob(f"{package}.tar.*"), None)
        if archive is None:
            raise LabError(f"the package {package} holds no source archive")
        untar(archive, into)


def _run(*command: str | os.PathLike[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise LabError(f"{command[0]} failed: {last}")
