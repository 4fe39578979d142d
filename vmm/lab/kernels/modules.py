"""The KVM modules of a kernel: found, ordered by dependency, decompressed."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path

from vmm.conformance.records import places
from vmm.lab import vendors
from vmm.lab.errors import LabError
from vmm.lab.kernels import compressed

WANTED = ("irqbypass", "kvm", *vendors.MODULES)
_SIGNATURE_MAGIC = b"~Module signature appended~\n"
_SUFFIXES = ("", ".xz", ".gz", ".zst")


def extract(tree: Path, into: Path) -> None:
    """Write the KVM modules found below `tree` as NN-name.ko, in the order to insert them.

    Writes nothing when the tree has none: KVM may be built into the image.
    """
    available = _available(tree)
    contents: dict[str, bytes] = {}
    for name in WANTED:
        _collect(name, available, contents)
    for order, (name, content) in enumerate(contents.items()):
        (into / f"{order:02}-{name}.ko").write_bytes(content)


def unsigned(module: bytes) -> bytes:
    """Return a module without the signature behind its ELF file.

    Checking it takes the emulated machine half of the time to insert kvm.ko (two seconds on
    Bochs); without one the kernel says so once and is tainted "E", which changes no behaviour
    unless the command line asks for signatures (:func:`vmm.lab.append.asks_for_signatures`).
    """
    if not module.endswith(_SIGNATURE_MAGIC):
        return module
    body = module.removesuffix(_SIGNATURE_MAGIC)
    (length,) = struct.unpack(">I", body[-4:])
    return body[: -12 - length]


def extracted(directory: Path) -> tuple[Path, ...]:
    """Return what :func:`extract` wrote there, in insertion order."""
    return tuple(sorted(directory.glob("[0-9][0-9]-*.ko")))


def name_of(path: Path) -> str:
    """Return the kernel's name for a module file: no order, no suffix, underscores."""
    stem = path.name.split(".ko")[0]
    return re.sub(r"^\d\d-", "", stem).replace("-", "_")


def _available(tree: Path) -> dict[str, Path]:
    paths: Iterator[Path] = (p for suffix in _SUFFIXES for p in tree.rglob(f"*.ko{suffix}"))
    return {name_of(path): path for path in paths}


def _collect(name: str, available: dict[str, Path], contents: dict[str, bytes]) -> None:
    """Add a module after the modules that it needs; one that is not a file is built in."""
    if name in contents or name not in available:
        return
    content = _decompress(available[name])
    for needed in _depends(content):
        _collect(needed, available, contents)
    contents[name] = content


def _depends(module: bytes) -> list[str]:
    """Return the names in the `depends=` field of the module's .modinfo section."""
    found = re.search(rb"\0depends=([\w,-]*)\0", module)
    names = found[1].decode().replace("-", "_") if found else ""
    return [name for name in names.split(",") if name]


def _decompress(path: Path) -> bytes:
    try:
        data = places.read_regular(path, compressed.MOST)
        return data if path.suffix == ".ko" else compressed.decompress(data)
    except compressed.NoTool as error:
        raise LabError(f"this kernel's modules need it: {error}; apt-get install zstd") from None
    except (OSError, compressed.Damaged) as error:
        raise LabError(f"cannot decompress the module {path}: {error}") from None
