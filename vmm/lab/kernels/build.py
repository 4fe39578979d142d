"""Build a kernel tree for the lab: the smallest configuration that runs the suite."""

from __future__ import annotations

import os
import re
import shutil
from importlib import resources
from pathlib import Path

from vmm.lab import cache, processes
from vmm.lab.errors import LabError

# Fixed, so that the same source makes the same objects and ccache stays warm.
_IDENTITY = {
    "KBUILD_BUILD_TIMESTAMP": "1970-01-01",
    "KBUILD_BUILD_USER": "msrward",
    "KBUILD_BUILD_HOST": "lab",
    "KBUILD_BUILD_VERSION": "1",
}
_IMAGE = "arch/x86/boot/bzImage"
# Options that some releases do not have (or always have), and that nothing depends on then.
_OPTIONAL = frozenset(
    {
        *("CONFIG_MEMFD_CREATE", "CONFIG_RD_GZIP", "CONFIG_NO_HZ_IDLE", "CONFIG_PROC_SYSCTL"),
        *("CONFIG_KVM_XEN", "CONFIG_X86_USER_SHADOW_STACK"),
    }
)


class BuildError(LabError):
    """The tree does not build; the text has the compiler's first complaint."""


def build(tree: Path, objects: Path, *, debug: bool = False, jobs: int | None = None) -> Path:
    """Build `tree` in the directory `objects` (kept: the next build is incremental).

    Returns the bzImage. `debug` adds KASAN, lockdep, RCU checks and kmemleak. Raises
    :class:`BuildError`, and :class:`LabError` for options that this tree lacks, named one by one.
    """
    wanted = fragment(debug=debug)
    if not (tree / "Kconfig").is_file():
        raise LabError(f"{tree} is no kernel source tree: it has no Kconfig")
    objects.mkdir(parents=True, exist_ok=True)
    with cache.in_use(), cache.lock(f"objects-{objects.name}"):
        _configure(tree, objects, wanted)
        _make(tree, objects, f"-j{jobs or os.cpu_count() or 1}", "bzImage")
    return objects / _IMAGE


def fragment(*, debug: bool = False) -> str:
    """Return the configuration that is merged over the tree's tinyconfig."""
    names = ("kernel.config", "kernel-debug.config") if debug else ("kernel.config",)
    return "".join(resources.files("vmm.lab.kernels").joinpath(name).read_text() for name in names)


def missing(wanted: str, config: str) -> list[str]:
    """List the options of a fragment that did not make it into a .config."""
    lines = set(config.splitlines())
    asked = re.findall(r"^(?:# )?(CONFIG_\w+)(?:=| is not set)", wanted, re.MULTILINE)
    set_as = dict(re.findall(r"^(CONFIG_\w+)=(.*)$", wanted, re.MULTILINE))
    return [
        name
        for name in asked
        if name in set_as and f"{name}={set_as[name]}" not in lines and name not in _OPTIONAL
    ]


def _configure(tree: Path, objects: Path, wanted: str) -> None:
    """Configure, or keep the configuration: make builds again what another one changes.

    A tree that was checked out anew may know other options, which make would ask a person about.
    """
    stamp, config = objects / ".msrward-config", objects / ".config"
    if config.is_file() and stamp.is_file() and stamp.read_text() == wanted:
        _make(tree, objects, "olddefconfig")
        if not missing(wanted, config.read_text()):
            return
    stamp.unlink(missing_ok=True)
    _make(tree, objects, "tinyconfig")
    with config.open("a") as file:
        file.write(wanted)
    _make(tree, objects, "olddefconfig")
    if lacking := missing(wanted, config.read_text()):
        raise LabError(f"{tree} cannot have {', '.join(lacking)}: the suite needs them")
    stamp.write_text(wanted)


def _make(tree: Path, objects: Path, *targets: str) -> None:
    compiler = ("CC=ccache gcc",) if shutil.which("ccache") else ()
    command = ("make", "-s", "-C", tree.absolute(), f"O={objects.absolute()}", *compiler, *targets)
    try:
        done = processes.run(command, env={**os.environ, **_IDENTITY})
    except FileNotFoundError:
        raise LabError("make is missing: apt-get install make gcc flex bison bc") from None
    if done.returncode:
        raise BuildError(f"the tree does not build: {processes.first_error(done.stderr)}")
