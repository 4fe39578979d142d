import re
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import vmm.lab.machines
from vmm.lab.errors import LabError
from vmm.lab.kernels.images import BzImage
from vmm.lab.kernels.kernels import Kernel
from vmm.lab.machines import bochs, bochs_disk, machine
from vmm.lab.machines.emulation import Boot
from vmm.lab.machines.emulators import Emulator

KERNEL = BzImage("6.0", bytes(0x4000), b"S" * 100_000)


@pytest.mark.skipif(
    shutil.which("as") is None or shutil.which("objcopy") is None, reason="no binutils"
)
def test_the_boot_code_is_its_source_assembled(tmp_path):
    source = Path(vmm.lab.machines.__file__).with_name("bochs_boot.S")
    subprocess.run(["as", "--32", "-o", tmp_path / "o", source], check=True)
    command = ["objcopy", "-O", "binary", "-j", ".text", tmp_path / "o", tmp_path / "bin"]
    subprocess.run(command, check=True)
    assert (tmp_path / "bin").read_bytes() == bochs_disk.BOOT_CODE


def parts(disk):
    """What the boot sector's table says is loaded, by address."""
    table, found = len(bochs_disk.BOOT_CODE), {}
    while (entry := struct.unpack_from("<IIHH", disk, table))[0]:
        address, sector, per_command, commands = entry
        found[address] = disk[sector * 512 :][: per_command * commands * 512]
        table += 12
    return found


def test_the_table_leads_to_the_kernel():
    disk = bochs_disk.disk(KERNEL, b"I" * 70_000, "quiet")
    assert disk[510:512] == b"\x55\xaa"
    loaded = parts(disk)
    assert loaded[0x100000].startswith(KERNEL.system)
    assert loaded[0x8000000].startswith(b"I" * 70_000)
    assert loaded[0x90000][0xE000:].startswith(b"quiet\0")
    assert struct.unpack_from("<II", loaded[0x90000], 0x218) == (0x8000000, 70_000)


def test_the_boot_sector_has_room_for_the_table():
    disk = bochs_disk.disk(KERNEL, b"I", "")
    assert len(bochs_disk.BOOT_CODE) + 3 * 12 + 4 <= 446
    assert len(disk) % (16 * 63 * 512) == 0


def test_a_long_command_line_is_refused():
    with pytest.raises(LabError, match=re.escape("too large for Bochs")):
        bochs_disk.disk(KERNEL, b"", "x" * 5000)


@pytest.mark.parametrize(("cpu", "model"), [("", "corei7_haswell_4770"), ("ryzen", "ryzen")])
def test_bochs_has_the_cpu_that_was_asked_for(cpu, model, tmp_path, monkeypatch):
    monkeypatch.setattr(bochs.images, "read", lambda image: KERNEL)
    emulator = Emulator("bochs", (3, 0), ("bochs",), Path("/"))
    boot = Boot(Kernel("k", "6.6", tmp_path), "vmx", b"", "quiet", 1, cpu)
    bochs.command(emulator, boot, tmp_path)
    assert f"\ncpu: model={model}, " in (tmp_path / "bochsrc").read_text()


@pytest.mark.parametrize(
    ("version", "vendor", "cpu", "added"),
    [
        ((3, 0), "vmx", "", ', add_features="wrmsrns"'),
        *(((2, 7), "vmx", "", ""), ((3, 0), "vmx", "ryzen", ""), ((3, 0), "svm-nrips", "", "")),
    ],
)
def test_bochs_adds_the_features_that_its_version_knows(
    version, vendor, cpu, added, tmp_path, monkeypatch
):
    monkeypatch.setattr(bochs.images, "read", lambda image: KERNEL)
    emulator = Emulator("bochs", version, ("bochs",), Path("/"))
    boot = Boot(Kernel("k", "6.6", tmp_path), vendor, b"", "quiet", 1, cpu)
    bochs.command(emulator, boot, tmp_path)
    (line,) = re.findall(r"^cpu: .*", (tmp_path / "bochsrc").read_text(), re.M)
    assert line.partition("ignore_bad_msrs=1")[2] == added


def test_bochs_blinks_with_no_cursor_on_a_terminal_that_nobody_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(bochs.images, "read", lambda image: KERNEL)
    pytest.importorskip("curses")
    boot = Boot(Kernel("k", "6.6", tmp_path), "vmx", b"", "quiet", 1)
    command = bochs.command(Emulator("bochs", (3, 0), ("bochs",), Path("/")), boot, tmp_path)
    drawn = "import curses, os, sys; curses.setupterm(os.environ['TERM'], 1);" + (
        "print([curses.tigetstr(shape) for shape in ('civis', 'cnorm', 'cvvis', 'cup')])"
    )
    argv = (sys.executable, "-P", "-c", drawn)
    said = subprocess.run(argv, capture_output=True, text=True, env=dict(command.environment))
    assert said.stdout == "[None, None, None, None]\n"


def test_bochs_gets_no_alarm_whose_handler_waits_for_the_lock_of_its_log(tmp_path, monkeypatch):
    monkeypatch.setattr(bochs.images, "read", lambda image: KERNEL)
    boot = Boot(Kernel("k", "6.6", tmp_path), "vmx", b"", "quiet", 1)
    command = bochs.command(Emulator("bochs", (3, 0), ("bochs",), Path("/")), boot, tmp_path)
    assert command.blocked == {signal.SIGALRM}


def test_bochs_that_was_built_here_has_no_screen_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(bochs.images, "read", lambda image: KERNEL)
    boot = Boot(Kernel("k", "6.6", tmp_path), "vmx", b"", "quiet", 1)
    for built, display in ((False, "term"), (True, "nogui")):
        emulator = Emulator("bochs", (3, 0), ("bochs",), Path("/"), built=built)
        bochs.command(emulator, boot, tmp_path)
        assert f"\ndisplay_library: {display}\n" in (tmp_path / "bochsrc").read_text()


def test_why_bochs_gave_up_is_in_its_own_words(tmp_path):
    assert machine._emulator_panic(tmp_path) == ""
    log = "00000000000i[CPU0] fine\n00048e[CPU0] >>PANIC<< exception(): 3rd (13) exception\n00049i"
    (tmp_path / bochs.LOG).write_text(log)
    assert machine._emulator_panic(tmp_path) == "exception(): 3rd (13) exception"
