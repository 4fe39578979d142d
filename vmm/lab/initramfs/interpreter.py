"""The Python of a lab guest: this interpreter, a lean standard library, and what msrward needs.

Files keep the paths they have on the host, so that the interpreter finds its prefix and shared
objects find each other; only the vmm package moves, to /msrward.
"""

from __future__ import annotations

import contextlib
import importlib.util
import py_compile
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from vmm.conformance.host import parameters
from vmm.conformance.host.facts import facts
from vmm.lab.errors import LabError
from vmm.lab.initramfs import cpio

PACKAGE_ROOT = "/msrward"
_SYSTEM = Path("/usr")
NEEDED = ("_cffi_backend",)
_LEFT_OUT = frozenset(
    (
        *("test", "tests", "tkinter", "idlelib", "ensurepip", "lib2to3", "turtledemo", "venv"),
        *("pydoc_data", "distutils", "site-packages", "dist-packages", "__pycache__"),
        *("wsgiref", "sqlite3", "curses", "dbm", "xmlrpc", ".mypy_cache"),
    )
)
# Modules whose libraries are large (libcrypto, sqlite, ncurses) and that no check uses.
_EXTENSIONS_LEFT_OUT = re.compile(
    r"_(ssl|hashlib|sqlite3|tkinter|curses\w*|dbm|gdbm|test\w*|ctypes_test|xx\w*)\.|readline\.|nis\."
)


def members() -> list[cpio.Member]:
    """Collect the interpreter, its library, the packages it needs, and all their libraries."""
    packages = [member for name in NEEDED for member in _package(name)]
    found = [*_binary(), *_tree(_library(_prefix())), *packages]
    return [*found, *_shared_objects(found)]


def own_members() -> Iterator[cpio.Member]:
    """Return the vmm package as it is importable here, with its compiled shim and guest images."""
    yield from _version()
    for relative, content in own_files():
        inside = f"{PACKAGE_ROOT}/{relative}".lstrip("/")
        yield cpio.file(inside, content, executable=relative.endswith(".so"))
        if relative.endswith(".py"):
            # Python's own message for a module that does not compile is the best one.
            with contextlib.suppress(py_compile.PyCompileError):
                bytecode = _bytecode(content, f"{PACKAGE_ROOT}/{relative}")
                yield cpio.file(importlib.util.cache_from_source(inside), bytecode)


def _version() -> Iterator[cpio.Member]:
    """Return what tells the guest, and so its records, which msrward it has."""
    yield cpio.directory(f"{PACKAGE_ROOT}/msrward-{facts()['msrward']}.dist-info".lstrip("/"))


def own_files() -> Iterator[tuple[str, bytes]]:
    """(path from vmm/ on, content) of every file of the package, sorted."""
    return _walk(resources.files("vmm"), "vmm")


def own_stamp() -> str:
    """Return a text that changes when anything that :func:`own_members` returns does."""
    return repr((facts()["msrward"], list(own_files())))


def environment() -> dict[str, str]:
    """Return the variables that the guest's Python is started with."""
    places = dict.fromkeys(str(_origin(name).parents[_depth(name)]) for name in NEEDED)
    return {
        "PYTHONHOME": str(_prefix()),
        "PYTHONPATH": ":".join((PACKAGE_ROOT, *places)),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONNOUSERSITE": "1",
        # A fixed seed spares the guest the wait for entropy.
        "PYTHONHASHSEED": "0",
        parameters.OWN_GUEST: "1",
    }


def _prefix() -> Path:
    """Return where the guest's Python lies: the distribution's, if it is of our minor version.

    Extensions fit both, and a distribution's is optimized: emulated, that counts.
    """
    for prefix in (_SYSTEM, Path(sys.base_prefix)):
        if all(part.is_file() for part in (_program(prefix), _library(prefix) / "dataclasses.py")):
            return prefix
    raise LabError(f"cannot find the interpreter of {sys.base_prefix} to put it into a guest")


def _program(prefix: Path) -> Path:
    return prefix / "bin" / f"python3.{sys.version_info.minor}"


def _library(prefix: Path) -> Path:
    return Path(sysconfig.get_path("stdlib", vars={"installed_base": str(prefix)}))


def _binary() -> Iterator[cpio.Member]:
    real = _program(_prefix())
    yield _copied(real)
    yield cpio.link("bin/python3", str(real))


def _tree(top: Path) -> Iterator[cpio.Member]:
    for path in sorted(top.iterdir()):
        if path.name in _LEFT_OUT or path.name.startswith("config-"):
            continue
        if path.is_dir():
            yield from _tree(path)
        elif path.suffix == ".py":
            yield _compiled(path)
        elif path.suffix == ".so" and not _EXTENSIONS_LEFT_OUT.match(path.name):
            yield _copied(path)


def _compiled(source: Path) -> cpio.Member:
    """Return a module without its source: half the bytes, and nothing for Python to compare."""
    return cpio.file(f"{source}c".lstrip("/"), _bytecode(source.read_bytes(), str(source)))


def _bytecode(source: bytes, name: str) -> bytes:
    with tempfile.TemporaryDirectory() as scratch:
        text, code = Path(scratch, "module.py"), Path(scratch, "module.pyc")
        text.write_bytes(source)
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        py_compile.compile(str(text), str(code), name, doraise=True, invalidation_mode=mode)
        return code.read_bytes()


def _package(name: str) -> Iterator[cpio.Member]:
    origin = _origin(name)
    if origin.name == "__init__.py":
        yield from _tree(origin.parent)
    elif origin.suffix == ".py":
        yield _compiled(origin)
    else:
        yield _copied(origin)


def _origin(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise LabError(f"{sys.executable} has no {name}; run pip install {name.strip('_')}")
    return Path(spec.origin)


def _depth(name: str) -> int:
    return 1 if _origin(name).name == "__init__.py" else 0


def _walk(top: Traversable, prefix: str) -> Iterator[tuple[str, bytes]]:
    for item in sorted(top.iterdir(), key=lambda item: item.name):
        if item.is_dir() and item.name not in _LEFT_OUT:
            yield from _walk(item, f"{prefix}/{item.name}")
        elif item.is_file() and not item.name.endswith(".pyc"):
            yield f"{prefix}/{item.name}", item.read_bytes()


def _shared_objects(found: list[cpio.Member]) -> Iterator[cpio.Member]:
    """Return the libraries that the given programs and extensions need, at the loader's paths."""
    programs = [f"/{m.path}" for m in found if m.content.startswith(b"\x7fELF")]
    here = [program for program in programs if Path(program).exists()]
    said = subprocess.run(["ldd", *here], capture_output=True, text=True, check=False)
    if missing := re.search(r"(\S+) => not found", said.stdout):
        raise LabError(f"the library {missing[1]} that Python needs is not installed here")
    for path in sorted(set(re.findall(r"(/\S+) \(0x", said.stdout))):
        yield _copied(Path(path))


def _copied(path: Path) -> cpio.Member:
    return cpio.file(str(path).lstrip("/"), _stripped(path), executable=True)


def _stripped(path: Path) -> bytes:
    """Return a program or library without debug information where binutils are here to remove it.

    A self-built interpreter carries 25 MB of it, which every boot would copy.
    """
    if shutil.which("strip") is None:
        return path.read_bytes()
    with tempfile.NamedTemporaryFile() as scratch:
        command = ["strip", "--strip-unneeded", "-o", scratch.name, str(path)]
        done = subprocess.run(command, capture_output=True, check=False)
        return path.read_bytes() if done.returncode else Path(scratch.name).read_bytes()


def stamp() -> str:
    """Return a text that changes when the interpreter or one of the packages does."""
    origins = [(_origin(name), _origin(name).stat()) for name in NEEDED]
    facts = [f"{path} {status.st_size} {status.st_mtime_ns}" for path, status in origins]
    program = _program(_prefix())
    facts.append(f"{program} {program.stat().st_size} {program.stat().st_mtime_ns}")
    return " ".join((sys.version, *facts, str(sorted(_LEFT_OUT))))
