"""Bochs as a lab machine: VMX with a preemption timer, or SVM with NRIPS; one processor."""

from __future__ import annotations

import signal
from pathlib import Path

from vmm.lab import vendors
from vmm.lab.kernels import images
from vmm.lab.machines import bochs_disk
from vmm.lab.machines.emulation import Boot, Command
from vmm.lab.machines.emulators import Emulator

LOG = "bochs.log"
KNOWS_FEATURES = (3, 0)
MEMORY_MIB = 1024
# Instructions per emulated second. More make the guest's waits dearer (an idle guest is emulated
# too), fewer make its timer interrupts more frequent; measured.
_SPEED = 20_000_000
# Bochs draws its screen on a terminal that it makes itself and that nobody reads. Any that has a
# cursor gets 18 bytes each time it blinks, until the kernel holds no more and Bochs sleeps for
# ever in a write: after ten minutes or so. A dumb one gets nothing.
_TERMINAL = "dumb"
# Each second the handler of its alarm logs how fast it is. Where that interrupts what logs itself,
# it waits for ever for the lock of the log (bx_show_ips_handler; once in some 50 suites).
_BLOCKED = frozenset({signal.SIGALRM})

_CONFIGURATION = """\
config_interface: textconfig
display_library: {display}
memory: guest={memory}, host={memory}
romimage: file={share}/bochs/BIOS-bochs-latest
vgaromimage: file={share}/vgabios/vgabios.bin
ata0-master: type=disk, path=disk, mode=flat
boot: disk
cpu: model={model}, count=1, ips={speed}, reset_on_triple_fault=0, ignore_bad_msrs=1{features}
clock: sync=none, time0=local
com1: enabled=1, mode=file, dev=ttyS0
com2: enabled=1, mode=file, dev=ttyS1
log: {log}
panic: action=fatal
error: action=ignore
"""


def command(emulator: Emulator, boot: Boot, work: Path) -> Command:
    """Return the command that boots it; writes its disk and configuration below `work`."""
    image = bochs_disk.disk(images.read(boot.kernel.image), boot.initramfs, boot.cmdline)
    (work / "disk").write_bytes(image)
    (work / "bochsrc").write_text(
        _CONFIGURATION.format(
            memory=MEMORY_MIB,
            display="nogui" if emulator.built else "term",
            share=emulator.root / "usr/share",
            log=LOG,
            model=boot.cpu or vendors.of(boot.vendor).cpu,
            speed=_SPEED,
            features=_features(emulator, boot),
        )
    )
    return Command(
        (*emulator.command, "-q", "-f", "bochsrc"),
        {**dict(emulator.environment), "TERM": _TERMINAL},
        _BLOCKED,
    )


def _features(emulator: Emulator, boot: Boot) -> str:
    """Return what the machine's CPU has beside its model's, where this Bochs knows it."""
    added = vendors.of(boot.vendor).features
    is_known = emulator.version >= KNOWS_FEATURES and not boot.cpu
    return f', add_features="{added}"' if added and is_known else ""
