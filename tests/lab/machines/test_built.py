"""Bochs built here, with a source and tools of our own; the real one is built by hand (lab.md)."""

import os
import shutil

import pytest

from vmm.lab.errors import LabError
from vmm.lab.machines import built, emulators

CONFIGURE = '#!/bin/sh\necho "$@" > configured\n'
HELP = "echo Bochs x86 Emulator 3.0"


@pytest.fixture
def tree(monkeypatch, cache_root, tmp_path):
    """What the source package holds; a test may change it. A compiler is there, and not used."""
    if shutil.which("make") is None:
        pytest.skip("no make on this machine")
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools/g++").touch(0o755)
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:{tmp_path}/tools")
    files = {
        "configure": CONFIGURE,
        "Makefile": f"bochs:\n\t(echo '#!/bin/sh'; echo '{HELP}') > $@; chmod +x $@\n",
    }

    class Root:
        def source(self, name, suite, into):
            assert (name, suite) == ("bochs", "trixie")
            for each, text in files.items():
                (into / each).write_text(text)
                (into / each).chmod(0o755)

    monkeypatch.setattr(built, "AptRoot", Root)
    return files


@pytest.fixture
def fetched(cache_root):
    """The packaged Bochs in the cache, whose loader runs programs as a shell does."""
    root = cache_root / "emulators/bochs"
    (root / "usr/bin").mkdir(parents=True)
    (root / "lib64").mkdir()
    loader = root / "lib64/ld-linux-x86-64.so.2"
    loader.write_text('#!/bin/sh\nshift 2\nexec "$@"\n')
    program = root / "usr/bin/bochs-bin"
    program.write_text("#!/bin/sh\necho Bochs x86 Emulator 3.1\n")
    for each in (loader, program):
        each.chmod(0o755)
    (root / "manifest.json").write_text("{}")
    return root


def test_what_is_built_is_taken_before_a_newer_one_and_has_the_packages_bios(tree, fetched):
    assert (emulators.find("bochs").title, built.program()) == ("bochs 3.1", None)
    built.build("trixie")
    found = emulators.find("bochs")
    assert (found.title, found.built) == ("bochs 3.0 built here", True)
    assert found.command == (str(built.program()),)
    assert (found.root, dict(found.environment)["BXSHARE"]) == (
        fetched,
        str(fetched / "usr/share/bochs"),
    )


def test_it_is_built_once_and_leaves_no_tree(tree, cache_root):
    built.build("trixie")
    tree["Makefile"] = "bochs:\n\tfalse\n"
    built.build("trixie")
    assert [path.name for path in (cache_root / "emulators").iterdir()] == ["bochs-built"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("configure", "#!/bin/sh\necho configure: error: no C++ >&2; exit 1\n", "error: no C[+]"),
        ("Makefile", "bochs:\n\techo cpu.cc:1: error: bad >&2; false\n", "cpu.cc:1: error: bad"),
        ("Makefile", "bochs:\n\tfalse\n", r"\*\*\*"),
    ],
)
def test_what_does_not_build_says_the_first_error_and_leaves_nothing(
    tree, cache_root, name, text, said
):
    tree[name] = text
    with pytest.raises(LabError, match=f"Bochs does not build here: .*{said}"):
        built.build("trixie")
    assert built.program() is None
    assert not list((cache_root / "emulators").iterdir())


def test_tools_that_are_missing_are_named(tree, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match=r"^no make and no g\+\+ here, which .*: apt-get install"):
        built.build("trixie")
