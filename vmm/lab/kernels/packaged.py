"""The kernels that a distribution packages: what its mirror offers, and what the cache holds."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vmm.lab import cache
from vmm.lab.apt import AptRoot, Package
from vmm.lab.errors import LabError
from vmm.lab.kernels import modules

_PACKAGE = "debian:"
_SEARCH = r"^linux-(image|binary|modules)-([0-9]+[.][0-9]+[.][0-9].*-cloud-amd64)(-unsigned)?$"
_RELEASE = re.compile(_SEARCH)
_VERSION = "version"


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


def fetch(chosen: Reachable, into: Path) -> None:
    """Download a kernel: its image, its modules, and its version, as the cache holds them."""
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
