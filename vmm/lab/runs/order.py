"""What is to be run in the lab and where: the kernel, the vendor, the cases and the options."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from vmm.conformance.c.tape import is_playable
from vmm.conformance.host.told import lacks_of
from vmm.conformance.judge.recording import Options
from vmm.conformance.judge.selection import Chosen
from vmm.conformance.language import codec
from vmm.conformance.report.rerun import in_the_lab
from vmm.lab import vendors
from vmm.lab.errors import LabError
from vmm.lab.initramfs import player
from vmm.lab.kernels.kernels import Kernel
from vmm.lab.machines import machine
from vmm.lab.runs.spread import machines_for

WORKERS_A_CPU = 2
"""Workers sleep in the kernel's grace periods, and an emulated CPU has no time to give away."""
CASE_SECONDS = 60.0
"""Seconds for a case, where everything is emulated."""
CHECK = ("python3", "-m", "vmm", "check", "--json", "-q")


@dataclass(frozen=True, slots=True)
class Inner:
    """The options of the check in a guest, other than its cases; None is the guest's default."""

    xfail: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    jobs: int | None = None
    timeout: float | None = None
    shard: str = ""
    """Which part of a run it is; the cases are chosen already."""
    repeat: int = 1
    """How often each case is judged."""

    @property
    def words(self) -> tuple[str, ...]:
        """The options as words of a command line."""
        words = [f"-j{self.jobs}"] if self.jobs else []
        words += [f"--timeout={self.timeout:g}"] if self.timeout else []
        words += [f"--known={','.join(self.known)}"] if self.known else []
        words += [f"--repeat={self.repeat}"] if self.repeat > 1 else []
        return (*words, *(f"--xfail={glob}" for glob in self.xfail))

    def of(self, jobs: int) -> Options:
        """Return the same as a runner has them, for ``jobs`` cases at once."""
        seconds = self.timeout or CASE_SECONDS
        return Options(jobs, seconds, self.xfail, self.known, repeat=self.repeat)


def told(vendor: str) -> tuple[str, ...]:
    """Return the words before a command that tell it what the vendor's machine lacks."""
    lacks = "" if machine.emulator_of(vendor).accelerated else vendors.of(vendor).lacks
    return ("/bin/busybox", "env", f"MSRWARD_LACKS={lacks}") if lacks else ()


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be run where: the kernel and vendor, the cases in their order, and the options.

    `options` are those of the check, `timeout` is seconds for the guest, `append` is added to its
    command line. `executor` is what does the cases there: "player", "python", or "auto" for the
    player where it can do all of them. `again` has what failed judged once more;
    `cpu` is the emulator's CPU model ("" for the vendor's own). `machines` is how many play the
    cases side by side, each its part of them; None for as many as are worth it.
    """

    kernel: Kernel
    vendor: str
    chosen: Chosen
    options: Inner = Inner()
    timeout: float = 900.0
    append: str = ""
    executor: str = "auto"
    again: bool = True
    cpu: str = ""
    machines: int | None = 1

    @property
    def is_played(self) -> bool:
        """Whether the guest plays a tape; LabError if it cannot, and that was asked for."""
        unplayable = [case.id for case in self.chosen.cases if not is_playable(case)]
        if self.executor == "player" and unplayable:
            raise LabError(
                f"{len(unplayable)} cases have no form in C yet, the first is {unplayable[0]}:"
                " leave them out, or give --executor python"
            )
        if self.executor == "auto":
            return not unplayable and player.is_there()
        return self.executor == "player"

    @property
    def jobs(self) -> int:
        """How many cases the guest does at once."""
        return self.options.jobs or WORKERS_A_CPU * vendors.of(self.vendor).cpus

    def machines_for(self, cases: int) -> int:
        """Return how many machines play so many cases: what is asked for, or what is worth it."""
        if self.machines is not None:
            return self.machines
        return 1 if machine.emulator_of(self.vendor).accelerated else machines_for(cases)

    @property
    def lacks(self) -> dict[str, str]:
        """What is not tried there, with the reason: it would end the emulator."""
        emulated = not machine.emulator_of(self.vendor).accelerated
        return lacks_of(vendors.of(self.vendor).lacks) if emulated else {}

    @property
    def ids(self) -> list[str]:
        """The ids of the cases."""
        return self.chosen.ids

    @property
    def files(self) -> dict[str, bytes]:
        """What the guest needs besides msrward, by path: the cases that are saved ones."""
        return {saved_as(case.id): codec.dump(case).encode() for case in self.chosen.saved}

    @property
    def rerun(self) -> str:
        """The command that takes the id of a case to run it again."""
        return in_the_lab(self.kernel.name, self.vendor, self.append, self.cpu)

    def argv(self, recorded: Container[str] = ()) -> tuple[str, ...]:
        """Return the command that judges the kernel it runs on, by what is not ``recorded``."""
        saved = {case.id: saved_as(case.id) for case in self.chosen.saved}
        todo = [saved.get(name, name) for name in self.ids if name not in recorded]
        workers = f"-j{WORKERS_A_CPU * vendors.of(self.vendor).cpus}"
        asked = self.chosen.options
        if saved or asked is None or len(todo) < len(self.ids):
            asked = tuple(todo)
        return (*told(self.vendor), *CHECK, workers, *self.options.words, *asked)


def saved_as(case_id: str) -> str:
    """Return the path at which the guest finds a saved case."""
    return f"/cases/{case_id}.json"


@dataclass(frozen=True, slots=True)
class Orders:
    """The same run for many kernels: what :class:`Order` has but the kernel and the vendor."""

    chosen: Chosen
    options: Inner = Inner()
    timeout: float = 900.0
    append: str = ""
    executor: str = "auto"

    def of(self, kernel: Kernel, vendor: str) -> Order:
        """Return the order for one of them."""
        how = (self.options, self.timeout, self.append, self.executor)
        return Order(kernel, vendor, self.chosen, *how)
