"""Which Python a guest is given."""

import sys
from pathlib import Path

import pytest

from vmm.lab.errors import LabError
from vmm.lab.initramfs import interpreter

NAME = f"python3.{sys.version_info.minor}"


def python_below(prefix):
    for part in (prefix / "bin" / NAME, prefix / "lib" / NAME / "dataclasses.py"):
        part.parent.mkdir(parents=True)
        part.touch()
    return prefix


def test_the_distributions_python_is_preferred_where_it_fits(tmp_path, monkeypatch):
    monkeypatch.setattr(interpreter, "_SYSTEM", tmp_path / "usr")
    assert interpreter._prefix() == Path(sys.base_prefix)
    before = interpreter.stamp()
    python_below(tmp_path / "usr")
    assert interpreter._prefix() == tmp_path / "usr"
    assert interpreter.environment()["PYTHONHOME"] == str(tmp_path / "usr")
    assert interpreter.stamp() != before, "another interpreter is another initramfs"


def test_a_distributions_python_without_its_library_does_not_do(tmp_path, monkeypatch):
    monkeypatch.setattr(interpreter, "_SYSTEM", python_below(tmp_path / "usr"))
    (tmp_path / "usr/lib" / NAME / "dataclasses.py").unlink()
    assert interpreter._prefix() == Path(sys.base_prefix)


def test_no_python_at_all_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(interpreter, "_SYSTEM", tmp_path / "usr")
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path / "opt"))
    with pytest.raises(LabError, match="cannot find the interpreter"):
        interpreter.members()
