"""The kernel of a source tree, built for the lab."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from vmm.lab import cache, processes
from vmm.lab.kernels import build, images, kernels
from vmm.lab.kernels.kernels import Kernel


def kernel(tree: Path, command: str | None = None, *, debug: bool = False) -> Kernel:
    """Build the tree and return its kernel; BuildError if it does not build.

    `command` is run by the shell in the tree and leaves an image there; without one, the minimal
    configuration is built in an object directory of the cache, kept for the next step: with
    `debug`, one that has the kernel check itself (KASAN, lockdep, RCU, kmemleak).
    """
    if command:
        _run(tree, command)
        return kernels.resolve(str(tree))
    image = build.build(tree, objects(tree, debug=debug), debug=debug)
    return Kernel(str(image), images.read(image).release, image)


def objects(tree: Path, *, debug: bool = False) -> Path:
    """Return the object directory of a tree and flavour."""
    return cache.root() / "objects" / f"{key(tree)}{'-debug' * debug}"


def key(tree: Path) -> str:
    """Return what a tree is called in the cache."""
    return hashlib.sha256(str(tree.resolve()).encode()).hexdigest()[:16]


def _run(tree: Path, command: str) -> None:
    done = processes.run(["sh", "-c", command], cwd=tree, stdout=subprocess.DEVNULL)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise build.BuildError(f"{command!r} failed: {last}")
