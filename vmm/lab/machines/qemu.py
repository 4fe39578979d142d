"""QEMU as a lab machine: TCG and its SVM emulation (without NRIPS), or the host's own nesting."""

from __future__ import annotations

from pathlib import Path

from vmm.lab.kernels import vmlinux
from vmm.lab.machines.emulation import Command, Guest
from vmm.lab.machines.emulators import Emulator

MEMORY_MIB = 1024
_FIRMWARE = ("usr/share/seabios", "usr/share/qemu")


def command(emulator: Emulator, guest: Guest, work: Path) -> Command:
    """Return the command that boots `guest`; writes the initramfs below `work`."""
    (work / "initramfs").write_bytes(guest.initramfs)
    image = vmlinux.pvh(guest.kernel.image, work) or guest.kernel.image
    firmware = [w for place in _FIRMWARE for w in ("-L", str(emulator.root / place))]
    accelerated = ("host", "kvm")
    # Five-level page tables make each of a nested guest's page walks dearer: an eighth of a suite.
    emulated = ("max,la57=off", "tcg,thread=multi")
    cpu, accelerator = accelerated if emulator.accelerated else emulated
    return Command(
        (
            *(*emulator.command, *firmware, "-nodefaults", "-no-user-config"),
            *("-display", "none", "-no-reboot", "-machine", "q35"),
            *("-cpu", cpu, "-accel", accelerator, "-m", str(MEMORY_MIB), "-smp", str(guest.smp)),
            *("-kernel", str(image), "-initrd", str(work / "initramfs")),
            *("-serial", f"file:{work / 'ttyS0'}", "-serial", f"file:{work / 'ttyS1'}"),
            *("-append", guest.cmdline),
        )
    )
