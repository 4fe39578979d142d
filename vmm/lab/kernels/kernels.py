"""Which kernel is meant by K: a bzImage, a built tree, an installed release, debian:SERIES."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vmm.lab import cache, vendors
from vmm.lab.apt import AptRoot, Package
from vmm.lab.errors import LabError
from vmm.lab.kernels import images, modules

_PACKAGE = "debian:"
_SEARCH = r"^linux-(image|binary|modules)-([0-9]+[.][0-9]+[.][0-9].*-cloud-amd64)(-unsigned)?$"
_RELEASE = re.compile(_SEARCH)
_VERSION = "version"

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


@dataclass(frozen=True, slots=True)
class Reachable:
    """A packaged kernel: release, upstream point version, its packages, and whether it is cached.

    The packages are the image first and the modules, where those are a package of their own.
    `lacks` names what the mirror no longer has: a kernel without its modules has no /dev/kvm.
    """

    release: str
    version: str
    packages: tuple[Package, ...]
    cached: bool
    lacks: str = ""

    @property
    def name(self) -> str:
        """What to call it: debian: and the version without the package revision."""
        return f"{_PACKAGE}{self.version.partition('-')[0]}"


def is_packaged(wish: str) -> bool:
    """Whether `wish` names a distribution package."""
    return wish.startswith(_PACKAGE)


def resolve(wish: str, *, refresh: bool = False) -> Kernel:
    """Return the kernel meant by `wish`, fetched first if it is a package that is not cached.

    `refresh` asks the mirror for its newest package lists before. Raises :class:`LabError`.
    """
    path = Path(wish).expanduser()
    if is_packaged(wish):
        return _packaged(wish, refresh)
    if path.is_dir():
        return _tree(wish, path)
    if path.is_file():
        return _image(wish, path)
    return _installed(wish)


def reachable(*, refresh: bool = False) -> list[Reachable]:
    """Every kernel the mirror offers in the cloud flavour or the cache holds, oldest first.

    Where the mirror cannot be asked, what is cached has to do, unless `refresh` asks for news.
    """
    try:
        offered = {kernel.release: kernel for kernel in _offered(refresh)}
    except LabError:
        if refresh or not cached():
            raise
        offered = {}
    kept = {kernel.release: kernel for kernel in cached() if kernel.release not in offered}
    return sorted((*offered.values(), *kept.values()), key=lambda kernel: _order(kernel.version))


def cached() -> list[Reachable]:
    """Return the packaged kernels in the cache, oldest first."""
    found = [
        Reachable(path.name, (path / _VERSION).read_text(), (), True)
        for path in cache.entries("kernels")
        if (path / _VERSION).is_file()
    ]
    return sorted(found, key=lambda kernel: _order(kernel.version))


def _offered(refresh: bool) -> list[Reachable]:
    root = AptRoot()
    if refresh or not root.has_lists():
        root.refresh()
    return group(root.search(_SEARCH), {kernel.release for kernel in cached()})


def group(packages: Iterable[Package], cached_releases: set[str]) -> list[Reachable]:
    """Put the packages of each release together; a release without an image is left out.

    A signed image is preferred over the unsigned one; from 6.19 on the image is in
    linux-binary-* and the modules are in linux-modules-*, which a mirror forgets sooner.
    """
    releases: dict[str, dict[str, Package]] = {}
    for package in packages:
        if found := _RELEASE.match(package.name):
            kind = found[1] + (found[3] or "")
            releases.setdefault(found[2], {})[kind] = package
    return [
        Reachable(
            release,
            chosen[0].version,
            chosen,
            release in cached_releases,
            _lacks(release, kinds) if release not in cached_releases else "",
        )
        for release, kinds in releases.items()
        if (chosen := _choose(kinds))
    ]


def _choose(kinds: dict[str, Package]) -> tuple[Package, ...]:
    images = [
        kinds[k] for k in ("binary", "image", "binary-unsigned", "image-unsigned") if k in kinds
    ]
    # From 6.19 on linux-image-* is a shell that depends on linux-binary-* and the modules.
    shells = [kinds[k] for k in ("modules", "image") if k in kinds and "binary" in kinds]
    return (*images[:1], *shells)


def _lacks(release: str, kinds: dict[str, Package]) -> str:
    split = "binary" in kinds or "binary-unsigned" in kinds
    return f"linux-modules-{release}" if split and "modules" not in kinds else ""


def _packaged(wish: str, refresh: bool) -> Kernel:
    chosen = newest(wish, refresh=refresh)
    directory = cache.entry("kernels", chosen.release, lambda into: _fetch(chosen, into))
    image = directory / "vmlinuz"
    return Kernel(wish, chosen.release, image, modules.extracted(directory))


def newest(wish: str, *, refresh: bool = False) -> Reachable:
    """Return the newest release meant by debian:SERIES; asks the mirror again before giving up."""
    matching = _matching(wish, reachable(refresh=refresh))
    if not matching and not refresh:
        matching = _matching(wish, reachable(refresh=True))
    whole = [kernel for kernel in matching if not kernel.lacks]
    if not whole:
        lacks = f" (the mirror has no {matching[-1].lacks} any more)" if matching else ""
        raise LabError(f"no package for {wish}{lacks}; `msrward lab kernels` lists what there is")
    return whole[-1]


def _matching(wish: str, kernels: Iterable[Reachable]) -> list[Reachable]:
    series = wish.removeprefix(_PACKAGE)
    if series == "newest":
        return list(kernels)
    prefix = re.compile(re.escape(series) + r"(?!\d)")
    return [k for k in kernels if prefix.match(k.version) or prefix.match(k.release)]


def _order(version: str) -> tuple[int, ...]:
    """Return a key to sort versions by; as for dpkg, one with a tilde is older than without."""
    return tuple(-1 if part == "~" else int(part) for part in re.findall(r"~|\d+", f"{version} 0"))


def _fetch(chosen: Reachable, into: Path) -> None:
    if not chosen.packages:
        raise LabError(
            f"the cached {chosen.release} is damaged and the mirror no longer has it; "
            "choose another kernel from `msrward lab kernels`"
        )
    unpacked = into / "unpacked"
    _download(chosen, unpacked)
    try:
        shutil.move(_image_below(unpacked, chosen.release), into / "vmlinuz")
        modules.extract(unpacked, into)
        if not modules.extracted(into):
            raise LabError(f"the packages of {chosen.release} hold no KVM modules")
        (into / _VERSION).write_text(chosen.version)
    finally:
        shutil.rmtree(unpacked)


def _download(chosen: Reachable, unpacked: Path) -> None:
    """Download, with newer package lists if the mirror has replaced the version we knew."""
    root = AptRoot()
    try:
        root.unpack(chosen.packages, unpacked)
    except LabError:
        root.refresh()
        root.unpack(chosen.packages, unpacked)


def _image_below(unpacked: Path, release: str) -> Path:
    places = (f"boot/vmlinuz-{release}", f"usr/lib/modules/{release}/vmlinuz")
    found = [unpacked / place for place in places if (unpacked / place).is_file()]
    if not found:
        raise LabError(f"the packages of {release} hold no kernel image; choose another kernel")
    return found[0]


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
    facts = repr([(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files])
    key = f"{release}-{hashlib.sha256(facts.encode()).hexdigest()[:16]}"
    return modules.extracted(cache.entry("modules", key, lambda into: modules.extract(tree, into)))
