import pytest

from vmm.conformance.host.diagnosis import Health
from vmm.lab import doctor
from vmm.lab.errors import LabError
from vmm.lab.machines import emulators


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Return where a program of this machine would lie; there is none, nor a cache."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("MSRWARD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "bin"


def program(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_what_is_not_here_can_be_had(place):
    with pytest.raises(
        LabError, match="here: fetch it with `msrward lab install bochs`, or install"
    ):
        emulators.find("bochs")
    assert doctor.examine()["lab: bochs"].fact.startswith("not here: it would judge")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("echo; echo libfoo.so.1: cannot open >&2; exit 127", "libfoo.so.1: cannot open"),
        ("exit 3", "nothing, and ended with status 3"),
        ("kill -9 $$", "nothing, and ended with status -9"),
        (r"printf '\033[2J'", r"\x1b[2J"),
    ],
)
def test_what_is_here_and_does_not_run_is_said_with_its_own_words(text, said, place):
    program(place / "bochs-bin", text)
    with pytest.raises(LabError) as error:
        emulators.find("bochs")
    line = f"bochs-bin is here and does not run: {place}/bochs-bin said {said}"
    assert str(error.value) == line
    finding = doctor.examine()["lab: bochs"]
    assert (finding.verdict, finding.fact) == (Health.WARN, line)


def test_what_runs_is_found(place):
    program(place / "qemu-system-x86_64", "echo QEMU emulator version 9.1.2")
    found = emulators.find("qemu")
    assert (found.title, found.good) == ("qemu 9.1.2", False)
    assert found.command == (f"{place}/qemu-system-x86_64",)
