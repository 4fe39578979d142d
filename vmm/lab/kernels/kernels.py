"""Which kernel is meant by K: a bzImage, a built tree, an installed release, debian:SERIES."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from vmm.lab import cache, vendors
from vmm.lab.errors import LabError
from vmm.lab.kernels import images, modules, packaged

NEEDED = (
    *("64BIT", "BLK_DEV_INITRD", "BINFMT_ELF", "BINFMT_SCRIPT", "TTY", "SERIAL_8250_CONSOLE"),
    *("DEVTMPFS", "PROC_FS", "SYSFS", "FUTEX", "EPOLL", "POSIX_TIMERS", "KVM"),
)
"""Options without which the lab's init, Python or the suite do not get as far as a record."""
_VENDORS = tuple(module.upper() for module in vendors.MODULES)


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel that can be booted: its image, and its KVM modules in insertion order.

    `modules` is empty where KVM is built into the image; `name` is what the user called it.
    """

    name: str
    release: str
    image: Path
    modules: tuple[Path, ...] = ()


def resolve(wish: str, *, refresh: bool = False) -> Kernel:
    """Return the kernel meant by `wish`, fetched first if it is a package that is not cached.

    `refresh` asks the mirror for its newest package lists before. Raises :class:`LabError`.
    """
    path = Path(wish).expanduser()
    if packaged.is_packaged(wish):
        return _packaged(wish, refresh)
    if path.is_dir():
        return _tree(wish, path)
    if path.is_file():
        return _image(wish, path)
    return _installed(wish)


def _packaged(wish: str, refresh: bool) -> Kernel:
    chosen = packaged.newest(wish, refresh=refresh)
    directory = cache.entry("kernels", chosen.release, lambda into: packaged.fetch(chosen, into))
    image = directory / "vmlinuz"
    return Kernel(wish, chosen.release, image, modules.extracted(directory))


def _tree(wish: str, tree: Path) -> Kernel:
    image = tree / "arch/x86/boot/bzImage"
    if not image.is_file():
        raise LabError(f"{tree} has no arch/x86/boot/bzImage; build the tree first (make bzImage)")
    release = images.read(image).release
    _require_options(tree, tree / ".config")
    return Kernel(wish, release, image.absolute(), _modules_of(tree, release))


def _image(wish: str, image: Path) -> Kernel:
    release = images.read(image).release
    return Kernel(
        wish, release, image.absolute(), _modules_of(_installed_modules(release), release)
    )


def _installed(release: str) -> Kernel:
    image = Path(f"/boot/vmlinuz-{release}")
    if not image.is_file():
        raise LabError(
            f"no kernel {release}: it is neither a file, a built tree nor an installed release; "
            "debian:SERIES fetches a package"
        )
    _require_options(release, Path(f"/boot/config-{release}"))
    return _image(release, image)


def lacking(config: str) -> list[str]:
    """Return the NEEDED options that a .config has neither built in nor, for KVM, as a module."""
    set_ = dict(re.findall(r"^CONFIG_(\w+)=([ym])$", config, re.MULTILINE))
    lacks = [name for name in NEEDED if set_.get(name, "n") not in ("ym" if name == "KVM" else "y")]
    lacks += [] if any(name in set_ for name in _VENDORS) else [" or CONFIG_".join(_VENDORS)]
    return [f"CONFIG_{name}" for name in lacks]


def _require_options(wish: Path | str, config: Path) -> None:
    if config.is_file() and (lacks := lacking(config.read_text())):
        raise LabError(f"{wish} was configured without {', '.join(lacks)}: the lab needs them")


def _installed_modules(release: str) -> Path:
    return Path("/lib/modules") / release


def _modules_of(tree: Path, release: str) -> tuple[Path, ...]:
    """Return the decompressed modules of a tree, cached by the sizes and times of its files."""
    files = [p for p in sorted(tree.rglob("*.ko*")) if modules.name_of(p) in modules.WANTED]
    if not files:
        return ()
    facts = repr(["signed", *((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files)])
    key = f"{release}-{hashlib.sha256(facts.encode()).hexdigest()[:16]}"
    return modules.extracted(cache.entry("modules", key, lambda into: modules.extract(tree, into)))
