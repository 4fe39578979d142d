"""All C of the project builds without a warning, whatever compiler builds it and in both dialects.

What a newer compiler refuses is an error here in the older ones too, so that the next one does not
come as a surprise. A compiler that is not here is a skip that says so.
"""

import os
import re
import shlex
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vmm.conformance.c.export import c_source
from vmm.conformance.c.tape import is_playable
from vmm.conformance.cases import CASES

ROOT = Path(__file__).parent.parent
NATIVE = ROOT / "native"
STRICT = (
    *("-Wall", "-Wextra", "-Wwrite-strings"),
    *("-Werror=incompatible-pointer-types", "-Werror=int-conversion"),
    "-Werror=implicit-function-declaration",
)
# gnu23 under the names that it has had; the first that a compiler knows is taken.
DIALECTS = {"gnu11": ("gnu11",), "gnu23": ("gnu23", "gnu2x")}
FAMILIES = {"gcc": re.compile(r"gcc(-\d+)?"), "clang": re.compile(r"clang(-\d+)?")}


def compilers(family):
    """Every compiler of a family on PATH, once: gcc and gcc-12 may be the same file."""
    found = {}
    for there in os.get_exec_path():
        for each in sorted(Path(there).glob(f"{family}*")):
            if FAMILIES[family].fullmatch(each.name) and os.access(each, os.X_OK):
                found.setdefault(each.resolve(), each)
    return list(found.values())


def cc(compiler, *arguments, source=None, cwd=None):
    command = [str(each) for each in (compiler, *arguments)]
    return subprocess.run(
        command, input=source, cwd=cwd, capture_output=True, text=True, timeout=300
    )


def known_as(compiler, dialect):
    """Return what ``compiler`` calls ``dialect``, or the skip that says it knows none."""
    for each in DIALECTS[dialect]:
        if not cc(compiler, f"-std={each}", "-E", "-xc", "-", source="").returncode:
            return f"-std={each}"
    pytest.skip(f"{compiler} knows no {dialect}")


def pytest_generate_tests(metafunc):
    if "compiler" in metafunc.fixturenames:
        each = [pytest.param(path, id=path.name) for name in FAMILIES for path in compilers(name)]
        none = [
            pytest.param(None, id=name, marks=pytest.mark.skip(f"no {name} on PATH"))
            for name in FAMILIES
            if not compilers(name)
        ]
        metafunc.parametrize("compiler", each + none)


@pytest.fixture(params=DIALECTS)
def flags(request, compiler):
    return known_as(compiler, request.param), *STRICT


@pytest.fixture(scope="session")
def extension(tmp_path_factory):
    """Return the C that cffi writes from the cdef."""
    source = tmp_path_factory.mktemp("native") / "_native.c"
    generate = (NATIVE / "generate.py", NATIVE / "kvm.cdef", source)
    subprocess.run([sys.executable, *map(str, generate)], check=True)
    return source


def quiet(compiler, *arguments):
    done = cc(compiler, *arguments)
    assert (done.returncode, done.stderr) == (0, ""), shlex.join(map(str, done.args))


OBJECT = ("-O2", "-c", "-o", "/dev/null")
PYTHON = "#define Py_LIMITED_API 0x030b0000\n#include <Python.h>\n"


def first_error(said):
    return next(line for line in said.splitlines() if "error: " in line)


def test_the_extension(compiler, flags, extension):
    headers = f"-isystem{sysconfig.get_path('include')}", f"-I{NATIVE}"
    python = cc(compiler, *flags, *OBJECT, *headers, "-xc", "-", source=PYTHON)
    if python.returncode:
        pytest.skip(f"Python's own headers are not for it: {first_error(python.stderr)}")
    for source in (extension, *(NATIVE / f"{name}.c" for name in ("shim", "stress", "entry"))):
        quiet(compiler, *flags, *OBJECT, *headers, "-DPy_LIMITED_API=0x030b0000", source)


def test_the_player(compiler, flags):
    quiet(compiler, *flags, *OBJECT, "-pthread", NATIVE / "player.c")


def test_the_bench(compiler, flags):
    quiet(compiler, *flags, *OBJECT, f"-I{NATIVE}", ROOT / "bench" / "bench.c")


def link_options():
    """The options that meson.build links the guests with."""
    block = (ROOT / "meson.build").read_text().partition("foreach guest")[2]
    script = ("-T," + str(ROOT / "guests/guest.ld"),)
    return (
        *re.findall(r"'(-[a-z]\w+|-Wl,-[^T'][^']*)'", block),
        *("-Wl," + each for each in script),
    )


@pytest.mark.parametrize("guest", sorted((ROOT / "guests").glob("*.S")), ids=lambda each: each.stem)
def test_the_guests(compiler, flags, guest, tmp_path):
    options = link_options()
    assert {"-nostdlib", "-static", "-Wl,--build-id=none"} <= set(options)
    quiet(compiler, *flags, *options, guest, "-o", tmp_path / "guest.elf")


def themes():
    """One case of every theme that has a form in C, and some more."""
    cases = list(filter(is_playable, CASES))
    first = {case.id.partition(".")[0]: case for case in reversed(cases)}
    return list({case.id: case for case in (*first.values(), *cases[::90])}.values())


def test_exported_programs(compiler, flags, tmp_path):
    sources = []
    for case in themes():
        sources.append(tmp_path / f"{case.id}.c")
        sources[-1].write_text(c_source(case))
    assert len({each.name.partition(".")[0] for each in sources}) > 15
    # What an optimizer finds does not depend on the dialect: it looks for it in one of them.
    how = ("-O2", "-c") if flags[0] == "-std=gnu11" else ("-fsyntax-only",)
    # One call for many of them: it cannot name one output, so it writes where it stands.
    cpus = os.cpu_count()
    with ThreadPoolExecutor(cpus) as pool:
        parts = [sources[n::cpus] for n in range(cpus)]
        calls = [pool.submit(cc, compiler, *flags, *how, *each, cwd=tmp_path) for each in parts]
    for call in calls:
        assert (call.result().returncode, call.result().stderr) == (0, "")


PROTOTYPE = re.compile(r"^[a-z][\w ]*[ *]\w+\([^;{]*\);", re.MULTILINE)


def test_the_cdef_declares_the_functions_that_the_headers_do(compiler, flags):
    """C refuses a second declaration that differs in one ``const``; cffi's own code does not."""
    prototypes = PROTOTYPE.findall((NATIVE / "kvm.cdef").read_text())
    assert len(prototypes) > 15
    source = '#include "shim.h"\n#include "stress.h"\n' + "\n".join(prototypes) + "\n"
    done = cc(compiler, *flags, f"-I{NATIVE}", "-fsyntax-only", "-xc", "-", source=source)
    assert (done.returncode, done.stderr) == (0, "")
