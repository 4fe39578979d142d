"""The scripts as a user runs them: from anywhere, twice, with options, and with things missing."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

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


def test_an_ordinary_user_is_told_the_command(tmp_path):
    env = only(tmp_path, *SHELL)
    (tmp_path / "bin" / "apt-get").write_text("#!/bin/sh\nexit 99\n")
    (tmp_path / "bin" / "apt-get").chmod(0o755)
    (tmp_path / "bin" / "id").unlink()
    (tmp_path / "bin" / "id").write_text(f"#!{shutil.which('bash')}\necho 1000\n")
    (tmp_path / "bin" / "id").chmod(0o755)
    ran = run(CHECK, env=env)
    assert ran.returncode == 2
    assert "as root: apt-get" in ran.stderr and "binutils" in ran.stderr
    assert ran.stderr.count("\n") == 1


@pytest.mark.parametrize("file", ["check", "test", "setup.sh"])
def test_scripts_parse(file):
    assert run("bash", "-n", ROOT / "scripts" / file).returncode == 0


def test_ci_runs_the_readme_test_command():
    assert "scripts/test" in (ROOT / ".ci" / "run").read_text()
    assert "scripts/test" in (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build a wheel as a distributor does, from a copy of the tree."""
    there = tmp_path_factory.mktemp("wheel")
    source = there / "source"
    ignored = shutil.ignore_patterns(
        ".venv*", "build", ".git", "__pycache__", ".*_cache", ".hypothesis"
    )
    shutil.copytree(ROOT, source, ignore=ignored)
    env = {"PATH": f"{ROOT}/.venv/bin:{os.environ['PATH']}"}
    pip = ("-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", there, source)
    made = run(ROOT / ".venv/bin/python", *pip, env=env)
    assert made.returncode == 0, made.stderr
    return next(there.glob("msrward-*.whl"))


def test_the_wheel_is_abi3_and_carries_the_guests(wheel):
    import zipfile

    assert "-cp311-abi3-linux_x86_64" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    assert {"vmm/_native.abi3.so", "vmm/guests/access.elf", "vmm/cli/__init__.py"} <= set(names)
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
