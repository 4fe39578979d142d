"""Boot a kernel on an emulated machine and run a command inside, on that kernel's own /dev/kvm."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from vmm.conformance.host.processes import is_alive
from vmm.conformance.records.plain import plain
from vmm.lab import cache, vendors
from vmm.lab.errors import LabError
from vmm.lab.initramfs import archive as initramfs
from vmm.lab.initramfs import player
from vmm.lab.initramfs.player import Playing
from vmm.lab.kernels.kernels import Kernel
from vmm.lab.machines import bochs, nesting, pulse, qemu
from vmm.lab.machines.console import FLOOD, Console, Records
from vmm.lab.machines.emulation import Boot, Command, Listener, Run, run
from vmm.lab.machines.emulators import Emulator, find

GUEST_BYTES = 1280 << 20
"""What a guest takes of this machine: its own 1 GiB, its initramfs, and the emulator."""
_LOG_LINE = 1 << 16
# quiet: every console byte is an exit. nokaslr: backtraces that can be compared between boots.
# The blacklisted self tests of the crypto layer take a second under emulation, and a kernel
# that has no such function ignores the name.
_COMMAND_LINE = (
    "console=ttyS0,115200 quiet panic=0 rdinit=/init nokaslr tsc=reliable no_timer_check "
    "random.trust_cpu=on cryptomgr.notests=1 kvm.force_emulation_prefix=1 "
    "initcall_blacklist=crypto_kdf108_init,jent_mod_init"
)

_UNSIGNED = (
    "lockdown= and module.sig_enforce ask for a signature that this kernel takes, and the module"
    " has none: take a packaged kernel (of a cache of before, empty it: msrward lab clean), or one"
    " with KVM built in"
)
_NO_CPU = "the machine's CPU lacks what this module drives: choose another --cpu or --vendor"
_REFUSALS = {
    "Operation not permitted": _UNSIGNED,
    "Key was rejected by service": _UNSIGNED,
    "Required key not available": _UNSIGNED,
    "Operation not supported": _NO_CPU,
    "No such device": _NO_CPU,
    "Invalid argument": "a parameter that --append gives it has a value that it does not take",
    "Numerical result out of range": "a parameter that --append gives it has too large a value",
}
"""What to do about a module that the kernel refuses with this error."""


class Outcome(StrEnum):
    """How a boot ended; everything but DONE means that the payload's answer is not to be had."""

    DONE = "done"
    PANIC = "panic"
    NO_KVM = "no-kvm"
    HANG = "hang"
    TIMEOUT = "timeout"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class LabResult:
    """What came of a boot.

    `status` is the payload's exit status (DONE only), `lines` its output, `console_tail` the end
    of the kernel's console (of the emulator's own messages where the kernel said nothing).
    `boot_seconds` is the wall time to the payload's start, None if it never started; `attempts`
    is 2 where a boot was lost and repeated. `reason` says in one line why there is no answer.
    """

    outcome: Outcome
    status: int | None
    lines: tuple[str, ...]
    console_tail: tuple[str, ...]
    boot_seconds: float | None
    total_seconds: float
    emulator: str
    attempts: int = 1
    reason: str = ""


def boot(
    kernel: Kernel,
    vendor: str,
    argv: Sequence[str],
    *,
    on_line: Callable[[str], None] | None = None,
    timeout: float = 300.0,
    append: str = "",
    files: Mapping[str, bytes] | None = None,
    smp: int | None = None,
    cpu: str = "",
    listener: Listener | None = None,
) -> LabResult:
    """Boot `kernel` with the vendor's virtualization extensions and run `argv` inside.

    `on_line` gets each line of the payload's standard output as it comes. `timeout` is seconds of
    wall time per attempt; a boot that is lost before the payload starts is repeated once.
    `append` is added to the kernel's command line, and given to the modules it is for; `files`
    are in the guest, by their paths;
    `smp` is the number of QEMU's CPUs, `cpu` the emulator's CPU model ("" for the vendor's own).
    `listener` is
    told more than `on_line`, and goes before it.
    Raises :class:`LabError` where nothing can be booted at all.
    """

    def what() -> Boot:
        archive = initramfs.build(kernel, vendor, argv, append, files)
        return _of(kernel, vendor, archive, append, smp, cpu)

    told = listener or (Listener(on_line) if on_line else Listener())
    return _boot(vendor, what, timeout, told)


def play(
    kernel: Kernel,
    vendor: str,
    playing: Playing,
    *,
    timeout: float = 300.0,
    append: str = "",
    smp: int | None = None,
    cpu: str = "",
    listener: Listener | None = None,
) -> LabResult:
    """Boot `kernel` as :func:`boot` does, with nothing in it but the player and its tape.

    `status` of the result is the player's, `lines` are those of its trace.
    """

    def what() -> Boot:
        archive = player.build(kernel, vendor, playing, append)
        return _of(kernel, vendor, archive, append, smp, cpu)

    return _boot(vendor, what, timeout, listener or Listener())


def _of(  # noqa: PLR0917 - what a boot is made of
    kernel: Kernel, vendor: str, archive: bytes, append: str, smp: int | None, cpu: str
) -> Boot:
    cpus = smp or vendors.of(vendor).cpus
    return Boot(kernel, vendor, archive, f"{_COMMAND_LINE} {append}", cpus, cpu)


def _boot(vendor: str, boot: Callable[[], Boot], timeout: float, told: Listener) -> LabResult:
    accelerated = emulator_of(vendor).accelerated
    with cache.in_use(), cache.no_space_in_one_line():
        what = boot()
        if what.cpu and accelerated:
            why = "--cpu is for an emulator, and here KVM does the work: set MSRWARD_EMULATE=1"
            raise LabError(why)
        first = _attempt(what, timeout, told)
        if first.outcome not in (Outcome.PANIC, Outcome.HANG, Outcome.LOST) or _started(first):
            return first
        return replace(_attempt(what, timeout, told), attempts=2)


def _started(result: LabResult) -> bool:
    # What happens once the payload runs may be its doing, and is never swept away by a repeat.
    return result.boot_seconds is not None


def _prepare(boot: Boot, work: Path) -> tuple[Command, str]:
    emulator = emulator_of(boot.vendor)
    build = qemu.command if emulator.name == "qemu" else bochs.command
    return build(emulator, boot, work), emulator.title


def emulator_of(vendor: str) -> Emulator:
    """Return the emulator that has the vendor's extensions; LabError if it is not here."""
    row = vendors.of(vendor)
    if nesting.offers(vendor):
        return replace(find("qemu"), accelerated=True)
    return find(row.emulator)


def _attempt(boot: Boot, timeout: float, listener: Listener) -> LabResult:
    console, records = Console(), Records(listener.line)
    with _work_directory() as work:  # Bochs leaves a lock beside its disk
        command, emulator = _prepare(boot, work)
        went = run(command, work, console, records, timeout, listener=listener)
        outcome, reason = _judge(console, records, went)
        if outcome is Outcome.LOST and (panic := _emulator_panic(work)):
            reason += f": {panic}"
    return LabResult(
        outcome,
        records.status,
        tuple(records.lines),
        console.tail or tuple(map(plain, went.said.splitlines()[-20:])),
        went.boot_seconds,
        went.total_seconds,
        emulator,
        reason=reason,
    )


def _emulator_panic(work: Path) -> str:
    """Return why Bochs gave up, in its own words, or ""."""
    log = work / bochs.LOG
    with suppress(FileNotFoundError), log.open(errors="replace") as file:
        while line := file.readline(_LOG_LINE):
            if ">>PANIC<<" in line:
                return plain(line.partition(">>PANIC<<")[2].strip())
    return ""


def _judge(console: Console, records: Records, went: Run) -> tuple[Outcome, str]:
    seconds = f"{went.total_seconds:.0f} s"
    if records.status is not None:
        return Outcome.DONE, ""
    if records.no_kvm:
        return Outcome.NO_KVM, _why_no_kvm(records.refused)
    if console.panicked:
        return Outcome.PANIC, "the guest kernel panicked"
    if not went.expired or console.flooded:
        return Outcome.LOST, records.damaged or _why_lost(console, went)
    if went.boot_seconds is None:
        return Outcome.HANG, f"the guest kernel did not start the command within {seconds}"
    return Outcome.TIMEOUT, f"the command did not end within {seconds}"


def _why_lost(console: Console, went: Run) -> str:
    if console.flooded:
        return f"the guest kernel wrote more than {FLOOD >> 20} MiB to its console"
    if went.frozen:
        return f"the emulator froze: it used no CPU for {pulse.FROZEN:.0f} s"
    return f"the emulator exited after {went.total_seconds:.0f} s without a result"


def _why_no_kvm(refused: tuple[str, str] | None) -> str:
    if not refused:
        return "the kernel booted, but has no /dev/kvm: is KVM built for it?"
    module, why = refused
    hint = next((f": {hint}" for text, hint in _REFUSALS.items() if text in why), "")
    return f"the kernel booted, but has no /dev/kvm, for it refused {module}: {why}{hint}"


@contextmanager
def _work_directory() -> Iterator[Path]:
    """Return a directory for one boot; those of runs that were killed are swept away."""
    runs = cache.root() / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    for abandoned in runs.iterdir():
        owner = abandoned.name.partition("-")[0]
        if owner.isdecimal() and not is_alive(int(owner)):
            shutil.rmtree(abandoned, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{os.getpid()}-", dir=runs) as name:
        yield Path(name)
