"""The words for races: an install that stops inside the kernel, a vCPU that is parked there.

A filter's bitmap on a userfaultfd page stops its install at that bitmap, and a guest's access to a
page on userfaultfd stops its vCPU inside the kernel's SRCU read side. So a race is an ordinary
script, and every word ends with an event of the kernel: a userfaultfd message, an exit, the return
of a thread, or (``blocked``) a thread that is asleep in its ioctl while whole installs of another
VM come and go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from vmm.bits import Bits
from vmm.conformance.language.accesses import Access
from vmm.conformance.language.actions import (
    CreateIrqchip,
    CreateVcpu,
    EnableCap,
    Install,
    install_compat,
)
from vmm.conformance.language.domains import Caller, ThreadName, VcpuId
from vmm.conformance.language.word import Word
from vmm.filter import MsrFilter

Slot = Annotated[int, Bits(8)]
"""A slot of a filter, also one that it has not."""

# --- actions ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, repr=False)
class Spin(Word):
    """A thread runs the vCPU in a guest loop of ``access``, answering every exit.

    The loop is 64-bit code at CPL0: another mode is a ValueError.
    """

    access: Access

    def __post_init__(self) -> None:
        """Refuse an access that has no loop."""
        if self.access.mode != "long":
            raise ValueError(f"spin: no loop in mode {self.access.mode!r}: use 'long'")
        if self.access.after != "nothing":
            raise ValueError(f"spin: no loop after {self.access.after!r}: use 'nothing'")
        if self.access.form != "register":
            raise ValueError(f"spin: no loop of form {self.access.form!r}: use 'register'")


@dataclass(frozen=True, slots=True, repr=False)
class Meanwhile(Word):
    """Do ``action`` in a thread named ``name``: its event, or ``blocked`` if it does not return."""

    action: EnableCap | Install | CreateIrqchip | CreateVcpu
    name: ThreadName = "m"


@dataclass(frozen=True, slots=True, repr=False)
class BeginInstall(Word):
    """A thread ``name`` installs ``filter``; the bitmap of slot ``stall_at`` is not there yet.

    Leaves ``stalled`` when the kernel waits for that bitmap, ``blocked`` when it waits for
    something else, or what the install returned.
    """

    filter: MsrFilter
    stall_at: Slot | None = None
    name: ThreadName = "a"
    caller: Caller = "self"

    @property
    def install(self) -> Install:
        """The install that the thread does."""
        if self.caller == "compat":
            return install_compat(self.filter)
        return Install(self.filter, caller=self.caller)


@dataclass(frozen=True, slots=True, repr=False)
class ResumeInstall(Word):
    """Give a stalled install its bitmap, or with ``fails`` make the bitmap unreadable for good."""

    name: ThreadName = "a"
    fails: bool = False


@dataclass(frozen=True, slots=True, repr=False)
class AwaitInstall(Word):
    """Wait for an install that was ``blocked``: what it returned, or ``blocked`` still."""

    name: ThreadName = "a"


@dataclass(frozen=True, slots=True, repr=False)
class AwaitMeanwhile(Word):
    """Wait for a ``meanwhile`` that was ``blocked``: its event, or ``blocked`` still."""

    name: ThreadName = "m"


@dataclass(frozen=True, slots=True, repr=False)
class Park(Word):
    """A thread runs the vCPU until it waits, inside the kernel, for a page of guest memory."""

    vcpu: VcpuId


@dataclass(frozen=True, slots=True, repr=False)
class Release(Word):
    """Give a parked vCPU its page and wait until its guest went on."""

    vcpu: VcpuId


@dataclass(frozen=True, slots=True, repr=False)
class UntilExits(Word):
    """Wait until a spinning vCPU's accesses exit: the exit; ``never`` if not within 2 s."""

    vcpu: VcpuId


@dataclass(frozen=True, slots=True, repr=False)
class UntilRuns(Word):
    """Wait until a spinning vCPU's accesses do not exit: ``ran``; ``never`` if not within 2 s."""

    vcpu: VcpuId


@dataclass(frozen=True, slots=True, repr=False)
class StopSpin(Word):
    """End a vCPU's guest loop and its thread."""

    vcpu: VcpuId


@dataclass(frozen=True, slots=True, repr=False)
class Sleep(Word):
    """A thread runs a vCPU that waits (``set_mp_state``, INIT): ``blocked``, or what ended it."""

    vcpu: VcpuId


@dataclass(frozen=True, slots=True, repr=False)
class Wake(Word):
    """A signal takes a vCPU that sleeps out of ``KVM_RUN``: it waits as before."""

    vcpu: VcpuId


@dataclass(frozen=True, slots=True, repr=False)
class AwaitSipi(Word):
    """Wait until a vCPU that sleeps runs where its SIPI leads; ``never`` if not within 2 s."""

    vcpu: VcpuId


@dataclass(frozen=True, slots=True, repr=False)
class CloseVm(Word):
    """Close the VM's descriptor; its vCPUs keep the VM alive."""


@dataclass(frozen=True, slots=True, repr=False)
class CloseVcpu(Word):
    """Close a vCPU's descriptor."""

    vcpu: VcpuId


# --- events -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, repr=False)
class Stalled(Word):
    """The install waits in the bitmap that is not there."""

    bare = True


@dataclass(frozen=True, slots=True, repr=False)
class Blocked(Word):
    """The thread sleeps in its ioctl, and slept there while another VM's installs came and went."""

    bare = True


@dataclass(frozen=True, slots=True, repr=False)
class Parked(Word):
    """The vCPU waits inside the kernel for its page."""

    bare = True


@dataclass(frozen=True, slots=True, repr=False)
class Released(Word):
    """The vCPU's guest got its page and went on."""

    bare = True


@dataclass(frozen=True, slots=True, repr=False)
class Spinning(Word):
    """The guest's loop goes round."""

    bare = True


@dataclass(frozen=True, slots=True, repr=False)
class Ran(Word):
    """The loop went round without an exit."""

    bare = True


@dataclass(frozen=True, slots=True, repr=False)
class Never(Word):
    """What was waited for did not happen before the deadline."""

    bare = True


@dataclass(frozen=True, slots=True, repr=False)
class Stopped(Word):
    """The loop was ended."""

    bare = True


@dataclass(frozen=True, slots=True, repr=False)
class Started(Word):
    """The vCPU has run the first instructions of where its SIPI led it, in 16-bit code."""

    bare = True


spin, meanwhile = Spin, Meanwhile
sleep, wake, await_sipi, started = Sleep, Wake, AwaitSipi, Started()
begin_install, resume_install, await_install = BeginInstall, ResumeInstall, AwaitInstall
await_meanwhile, park, release = AwaitMeanwhile, Park, Release
until_exits, until_runs, stop_spin = UntilExits, UntilRuns, StopSpin
close_vm, close_vcpu = CloseVm, CloseVcpu
stalled, blocked, parked, released = Stalled(), Blocked(), Parked(), Released()
spinning, ran, never, stopped = Spinning(), Ran(), Never(), Stopped()
