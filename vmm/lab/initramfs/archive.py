"""The initramfs of a lab guest: busybox and Python, built once; modules and payload per boot.

Nothing is compressed: an emulator copies the archive into guest memory at the host's speed,
while unpacking would run at the guest's.
"""

from __future__ import annotations

import hashlib
import shlex
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path

from vmm.lab import append, cache, vendors
from vmm.lab.apt import AptRoot, Package
from vmm.lab.errors import LabError
from vmm.lab.initramfs import cpio, interpreter
from vmm.lab.kernels import modules
from vmm.lab.kernels.kernels import Kernel

_APPLETS = ("sh", "mount", "insmod", "stty", "cut", "cat", "awk", "poweroff", "dmesg")
# The emulator path (R40-R42) and the preemption timer's fastpath (B12) depend on these.
MODULE_ARGUMENTS = {"kvm": ("force_emulation_prefix=1",)}
_INIT = resources.files("vmm.lab.initramfs").joinpath("init.sh").read_text()


def build(
    kernel: Kernel,
    vendor: str,
    argv: Sequence[str],
    line: str = "",
    files: Mapping[str, bytes] | None = None,
) -> bytes:
    """Return the initramfs that boots `kernel`, loads the vendor's KVM and runs `argv`.

    The modules get what the command line `line` has for them; `files` are there by their paths.
    """
    return b"".join(
        (base(), module_archive(kernel, vendor, line), _payload(argv), _files(files or {}))
    )


def base() -> bytes:
    """Return what all kernels share: init, busybox, Python and msrward, from two cache entries.

    Each entry's name is a hash of what it was made from, so a changed interpreter, package or
    line of msrward makes a new one, and an edit of msrward does not rebuild Python.
    """
    own = _archive("package", interpreter.own_stamp(), interpreter.own_members)
    return _archive("python", _INIT + interpreter.stamp(), _foundation) + own


def _archive(name: str, stamp: str, members: Callable[[], Iterable[cpio.Member]]) -> bytes:
    def fill(into: Path) -> None:
        (into / "archive.cpio").write_bytes(cpio.pack(members()))

    key = hashlib.sha256(stamp.encode()).hexdigest()[:16]
    return (cache.entry("initramfs", f"{name}-{key}", fill) / "archive.cpio").read_bytes()


def _foundation() -> list[cpio.Member]:
    return [*_userland(), *interpreter.members()]


def _userland() -> list[cpio.Member]:
    return [
        cpio.file("init", _INIT.encode(), executable=True),
        cpio.file("bin/busybox", busybox().read_bytes(), executable=True),
        *(cpio.link(f"bin/{applet}", "busybox") for applet in _APPLETS),
        *(cpio.directory(name) for name in ("dev", "proc", "sys", "tmp", "modules")),
        # The kernel opens it for init before anything can mount a file system on /dev.
        cpio.character_device("dev/console", 5, 1),
    ]


def busybox() -> Path:
    """Return a static busybox: this machine's, or the distribution's fetched into the cache."""
    if (found := shutil.which("busybox")) and _is_static(Path(found)):
        return Path(found)
    return cache.entry("tools", "busybox", _fetch_busybox) / "busybox"


def _is_static(program: Path) -> bool:
    # A dynamic program names its loader near its start; a static one has nothing to name.
    start = program.read_bytes()[:4096]
    return start.startswith(b"\x7fELF") and b"/ld-linux" not in start


def _fetch_busybox(into: Path) -> None:
    apt = AptRoot()
    if not apt.has_lists():
        apt.refresh()
    unpacked = into / "unpacked"
    apt.unpack(_newest(apt.search("^busybox-static$")), unpacked)
    found = [path for path in unpacked.rglob("bin/busybox") if _is_static(path)]
    if not found:
        raise LabError("the package busybox-static holds no static busybox; install one yourself")
    shutil.move(found[0], into / "busybox")
    shutil.rmtree(unpacked)


def _newest(packages: list[Package]) -> list[Package]:
    if not packages:
        raise LabError("the mirror has no busybox-static: apt-get install busybox-static")
    return packages[:1]


def module_archive(kernel: Kernel, vendor: str, line: str) -> bytes:
    """Return the modules of the vendor's KVM, in the order of loading, and their arguments."""
    kept = bytes if append.asks_for_signatures(line) else modules.unsigned
    others = {*vendors.MODULES} - {vendors.of(vendor).module}
    wanted = [path for path in kernel.modules if modules.name_of(path) not in others]
    files = [cpio.file(f"modules/{path.name}", kept(path.read_bytes())) for path in wanted]
    arguments = [
        cpio.file(f"modules/{path.stem}.args", "\n".join(words).encode())
        for path in wanted
        if (words := _arguments(modules.name_of(path), line))
    ]
    return cpio.pack((*files, *arguments))


def _arguments(module: str, line: str) -> list[str]:
    words = [*MODULE_ARGUMENTS.get(module, ()), *append.arguments(line, module)]
    for word in words:
        if any(character in word for character in " *?["):
            raise LabError(f"the guest's shell cannot give {word!r} to the module {module}")
    return words


def _files(files: Mapping[str, bytes]) -> bytes:
    paths = {name.lstrip("/"): content for name, content in files.items()}
    parents = sorted({str(Path(name).parent) for name in paths})
    content = [cpio.file(name, content) for name, content in paths.items()]
    return cpio.pack([*map(cpio.directory, parents), *content])


def _payload(argv: Sequence[str]) -> bytes:
    variables = "".join(
        f"export {name}={shlex.quote(value)}\n" for name, value in interpreter.environment().items()
    )
    return cpio.pack([cpio.file("payload.sh", f"{variables}{shlex.join(argv)}\n".encode())])
