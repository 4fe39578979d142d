"""The scripts as a user runs them: from anywhere, twice, with options, and with things missing."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from told import DEADLINE, STAND_IN, Told, ended

ROOT = Path(__file__).parent.parent
CHECK = ROOT / "scripts" / "check"


def run(*command, cwd="/", env=None, timeout=300):
    return subprocess.run(
        [str(each) for each in command],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def test_check_works_from_any_directory_and_passes_options_on(tmp_path):
    listed = run(CHECK, "--list", "R14", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert "rollback." in listed.stdout
    assert not list(tmp_path.iterdir()), "it leaves nothing where it was called"


def test_check_works_through_a_link(tmp_path):
    (tmp_path / "judge").symlink_to(CHECK)
    assert run(tmp_path / "judge", "--list", "R14").returncode == 0


def test_the_second_time_sets_nothing_up(tmp_path):
    run(CHECK, "--list", "R14")
    stamps = {each: each.stat().st_mtime_ns for each in (ROOT / ".venv").iterdir()}
    began = time.monotonic()
    assert run(CHECK, "--list", "R14").returncode == 0
    second = time.monotonic() - began
    assert {each: each.stat().st_mtime_ns for each in (ROOT / ".venv").iterdir()} == stamps
    began = time.monotonic()
    assert run(ROOT / ".venv/bin/msrward", "check", "--list", "R14").returncode == 0
    assert second < 10 * (time.monotonic() - began) + 2, "setting up nothing takes no time"


def only(tmp_path, *programs):
    """Return a PATH that has only ``programs``, so that the others are missing."""
    there = tmp_path / "bin"
    there.mkdir()
    for each in programs:
        (there / each).symlink_to(shutil.which(each))
    return {"PATH": str(there)}


SHELL = ("bash", "dirname", "readlink", "id", "env")


def test_what_is_missing_is_named_where_it_cannot_be_installed(tmp_path):
    ran = run(CHECK, env=only(tmp_path, *SHELL))
    assert ran.returncode == 2
    assert ran.stderr.startswith("msrward: missing here: compiler make binutils python")
    assert ran.stderr.count("\n") == 1


def as_user(tmp_path, *programs):
    """Return a PATH with ``programs`` on which nobody is root."""
    env = only(tmp_path, *SHELL, *programs)
    (tmp_path / "bin" / "id").unlink()
    (tmp_path / "bin" / "id").write_text(f"#!{shutil.which('bash')}\necho 1000\n")
    (tmp_path / "bin" / "id").chmod(0o755)
    return env


def test_distros_says_that_it_needs_root_or_what_it_does_not_know(tmp_path):
    ran = run(ROOT / "scripts/distros", "sid", env=as_user(tmp_path))
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)
    assert ran.stderr.startswith("msrward: distros needs root")
    ran = run(ROOT / "scripts/distros", "--fast")
    assert (ran.returncode, ran.stderr.count("\n")) == (
        2,
        1,
    ) and "unknown option --fast" in ran.stderr


def test_an_ordinary_user_is_told_the_command(tmp_path):
    env = as_user(tmp_path)
    (tmp_path / "bin" / "apt-get").write_text("#!/bin/sh\nexit 99\n")
    (tmp_path / "bin" / "apt-get").chmod(0o755)
    ran = run(CHECK, env=env)
    assert ran.returncode == 2
    assert "as root: apt-get" in ran.stderr and "binutils" in ran.stderr
    assert ran.stderr.count("\n") == 1


UNENDING = {
    "flock": ("bin/flock", "*"),
    "venv": ("bin/python3", "-m"),
    "pip": (".venv/bin/python", "-m"),
}
"""What a set-up starts: a program by its place, and the first word with which it never ends."""


def end(process, told, how):
    """End a script once its last stand-in has begun; return what it said."""
    children = told.children(process, 1)
    process.send_signal(how)
    _, err = process.communicate(timeout=DEADLINE)
    assert ended(children)
    assert process.returncode == 130
    return err


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("name", UNENDING)
def test_a_set_up_that_is_ended_leaves_nothing_running(tmp_path, name, how):
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    place, word = UNENDING[name]
    program = tmp_path / place
    program.parent.mkdir(parents=True)
    does = f"case $1 in {word}) ;; *) exit 0 ;; esac\n"
    program.write_text(STAND_IN.replace("\n", f"\n{does}", 1))
    program.chmod(0o755)
    told = Told(tmp_path / "told")
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    with subprocess.Popen(
        [tmp_path / "scripts/check", "--list"],
        env={**os.environ, "PATH": path, "TOLD": str(tmp_path / "told")},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert end(process, told, how) == "msrward: interrupted\n"


@pytest.mark.parametrize("file", ["check", "test", "setup.sh", "distros", "exports"])
def test_scripts_parse(file):
    assert run("bash", "-n", ROOT / "scripts" / file).returncode == 0


def test_ci_runs_the_readme_test_command():
    assert "scripts/test" in (ROOT / ".ci" / "run").read_text()
    assert "scripts/test" in (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Return a copy of the tree that has what a build needs, but for the build; and no network."""
    source = copy_tree(tmp_path_factory.mktemp("tree") / "source")
    assert run(ROOT / ".venv/bin/python", "-m", "venv", source / ".venv").returncode == 0
    (ours,) = (ROOT / ".venv/lib").glob("python3*/site-packages")
    (site,) = (source / ".venv/lib").glob("python3*/site-packages")
    (site / "tools.pth").write_text(f"{ours}\n")
    return source


def check_in(tree, **env):
    path = f"{ROOT}/.venv/bin:{os.environ['PATH']}"
    return run(tree / "scripts/check", "--list", env={"PATH": path, "PIP_NO_INDEX": "1", **env})


OLD_HEADER = "#include_next <linux/kvm.h>\n#undef KVM_X86_SET_MSR_FILTER\n"


def test_a_failed_build_is_one_line_with_its_first_error(tree, tmp_path):
    """And flags that do no harm any more are not remembered: the build directory is made anew."""
    (tmp_path / "linux").mkdir()
    (tmp_path / "linux/kvm.h").write_text(OLD_HEADER)
    shim = tree / "native/shim.c"
    shim.write_text(shim.read_text() + "#ifdef ODD\nint odd = nowhere;\nint odder = x;\n#endif\n")
    for flags, why in {
        "-DODD": r"\S*shim\.c:\d+:\d+: error: .nowhere. undeclared[^\n]*",
        f"-I{tmp_path}": r"\S*shim\.h:\d+:\d+: error: #error linux/kvm\.h is older than[^\n]*",
        "-no-such-flag": r"[^\n]*[cC]ompiler[^\n]*",
    }.items():
        failed = check_in(tree, CFLAGS=flags)
        log = re.escape(str(tree / ".venv/build.log"))
        said = rf"msrward: the package does not build: {why}; all that was said: {log}\n"
        assert failed.returncode == 2 and re.fullmatch(said, failed.stderr), failed.stderr
    assert check_in(tree).returncode == 0, "the flags are gone, and what they configured too"


def test_who_ends_a_build_ends_its_compiler_and_the_next_build_goes_well(tree, tmp_path):
    """By way of pip and meson."""
    cc = tmp_path / "cc"
    does = f'[ "$1" != --version ] || exec {shutil.which("cc")} --version'
    cc.write_text(STAND_IN.replace("\n", f"\n{does}\n", 1))
    cc.chmod(0o755)
    (tree / "meson.build").touch()
    told = Told(tmp_path / "told")
    env = {"PATH": f"{tmp_path}:{ROOT}/.venv/bin:{os.environ['PATH']}", "PIP_NO_INDEX": "1"}
    with subprocess.Popen(
        [tree / "scripts/check", "--list"],
        env={**os.environ, **env, "TOLD": str(tmp_path / "told")},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert end(process, told, signal.SIGTERM) == "msrward: interrupted\n"
    assert check_in(tree).returncode == 0


def test_once_set_up_nothing_needs_the_network(tree):
    """Neither a touched project file nor a changed source does."""
    assert check_in(tree).returncode == 0
    (tree / "pyproject.toml").touch()
    ran = check_in(tree)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_bytecode_in_the_tree_builds_nothing_and_a_file_that_goes_does(tree):
    """A build takes the package away for a moment, from under whoever runs it."""
    (tree / "vmm/gone.py").write_text('"""Nothing."""\n')
    assert check_in(tree).returncode == 0
    stamp, (site,) = tree / ".venv/package", (tree / ".venv/lib").glob("python3*/site-packages")
    built = stamp.stat().st_mtime_ns
    bytecode = tree / "vmm/lab/__pycache__"
    bytecode.mkdir()
    (bytecode / "cache.cpython-399.pyc").touch()
    assert check_in(tree).returncode == 0 and stamp.stat().st_mtime_ns == built
    assert (site / "vmm/gone.py").exists()
    (tree / "vmm/gone.py").unlink()
    assert check_in(tree).returncode == 0 and stamp.stat().st_mtime_ns != built
    assert not (site / "vmm/gone.py").exists()


def copy_tree(there):
    ignored = shutil.ignore_patterns(
        ".venv*", "build", ".git", "__pycache__", ".*_cache", ".hypothesis"
    )
    return shutil.copytree(ROOT, there, ignore=ignored)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build a wheel as a distributor does, from a copy of the tree."""
    there = tmp_path_factory.mktemp("wheel")
    source = copy_tree(there / "source")
    env = {"PATH": f"{ROOT}/.venv/bin:{os.environ['PATH']}"}
    pip = ("-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", there, source)
    made = run(ROOT / ".venv/bin/python", *pip, env=env)
    assert made.returncode == 0, made.stderr
    return next(there.glob("msrward-*.whl"))


def test_the_wheel_is_abi3_and_carries_the_guests(wheel):
    """The tag is that of the Python that builds; meson-python knows no lower one."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert f"-{tag}-abi3-linux_x86_64" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    native = {f"vmm/{name}.abi3.so" for name in ("_native", "_entry")}
    assert {*native, "vmm/guests/access.elf", "vmm/cli/__init__.py"} <= set(names)
    assert not [name for name in names if "__pycache__" in name]


def test_the_wheel_needs_no_compiler(wheel, tmp_path):
    venv = tmp_path / "venv"
    assert run(ROOT / ".venv/bin/python", "-m", "venv", venv).returncode == 0
    # Its one dependency, as the index would bring it.
    site, there = next((ROOT / ".venv/lib").glob("python3*/site-packages")), tmp_path / "cffi"
    there.mkdir()
    for each in site.glob("_cffi_backend*"):
        (there / each.name).symlink_to(each)
    pip = ("-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel)
    made = run(venv / "bin/python", *pip)
    assert made.returncode == 0, made.stderr
    bare = only(tmp_path, "env")
    listed = run(venv / "bin/msrward", "list", "R14", env={**bare, "PYTHONPATH": str(there)})
    assert "rollback." in listed.stdout, listed.stderr
