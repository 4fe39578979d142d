"""QEMU as a lab machine: TCG and its SVM emulation (without NRIPS), or the host's own nesting."""

from __future__ import annotations

from pathlib import Path

from vmm.lab import vendors
from vmm.lab.kernels import images
from vmm.lab.machines.emulation import Boot, Command
from vmm.lab.machines.emulators import Emulator

MEMORY_MIB = 1024
_FIRMWARE = ("usr/share/seabios", "usr/share/qemu")
# With a host thread a vCPU, one guest entry in about 600,000 under its SVM (7.2 to 11.1) reads its
# page tables at the physical addresses of L1: the guest triple faults or hangs, or what it writes
# kills L1. All vCPUs in one thread have never shown it (docs/hosts.md).
_TCG = "tcg,thread=single"


def command(emulator: Emulator, boot: Boot, work: Path) -> Command:
    """Return the command that boots it; writes the initramfs below `work`."""
    (work / "initramfs").write_bytes(boot.initramfs)
    image = images.pvh(boot.kernel.image, work) or boot.kernel.image
    firmware = [w for place in _FIRMWARE for w in ("-L", str(emulator.root / place))]
    accelerated = ("host", "kvm")
    emulated = (boot.cpu or vendors.of(boot.vendor).cpu, _TCG)
    cpu, accelerator = accelerated if emulator.accelerated else emulated
    return Command(
        (
            *(*emulator.command, *firmware, "-nodefaults", "-no-user-config"),
            *("-display", "none", "-no-reboot", "-machine", "q35"),
            *("-cpu", cpu, "-accel", accelerator, "-m", str(MEMORY_MIB), "-smp", str(boot.smp)),
            *("-kernel", str(image), "-initrd", str(work / "initramfs")),
            *("-serial", f"file:{work / 'ttyS0'}", "-serial", f"file:{work / 'ttyS1'}"),
            *("-append", boot.cmdline),
        )
    )
