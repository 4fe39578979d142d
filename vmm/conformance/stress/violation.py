"""What a stress found impossible, as a value and as text."""

from __future__ import annotations

from dataclasses import dataclass
from errno import errorcode

from vmm.conformance.language.script import Access, Rdmsr
from vmm.conformance.stress.plan import OUTCOMES
from vmm.msr import msr_name


@dataclass(frozen=True)
class Install:
    """One install in flight: its installer and number there, the filter, its first and last tick.

    ``returned`` 0 says that it had not returned yet. A tick is the VM's logical clock: it advances
    when an install starts and when it returns.
    """

    installer: int
    number: int
    filter: int
    started: int
    returned: int

    def __str__(self) -> str:
        end = self.returned or "still running"
        return (
            f"install {self.number} of installer {self.installer}: filter {self.filter}, "
            f"ticks {self.started} to {end}"
        )


@dataclass(frozen=True)
class Mishap:
    """A thread, an install or a vCPU that did what the contract rules out; ``text`` says what."""

    text: str


@dataclass(frozen=True)
class Impossible:
    """An access that ended as under none of the filters that could have been in force.

    It was executed between the ticks ``began`` and ``ended``; installs that had returned before
    tick ``cutoff`` were certainly replaced. ``permitted`` has the outcomes of each filter for this
    access, ``before`` the accesses of the same batch just before it and how they ended.
    """

    vcpu: int
    vm: int
    step: int
    access: Access
    outcome: int
    in_flight: tuple[Install, ...]
    permitted: tuple[frozenset[int], ...]
    began: int
    ended: int
    cutoff: int
    before: tuple[tuple[Access, int], ...]

    @property
    def text(self) -> str:
        """Return all of it, in lines."""
        lines = [
            f"vCPU {self.vcpu} of VM {self.vm}: {name(self.access)} ended with "
            f"{OUTCOMES[self.outcome]}",
            f"  executed between ticks {self.began} and {self.ended}; an install that returned "
            f"before tick {self.cutoff} was replaced by then",
        ]
        if len(set(self.permitted)) == 1:
            lines.append(f"  all filters are alike for it: {names(self.permitted[0])} (R70)")
        lines += [f"  {self._in_flight(each)}" for each in self.in_flight]
        lines += [f"  just before: {name(each)}: {OUTCOMES[how]}" for each, how in self.before]
        return "\n".join(lines)

    def _in_flight(self, install: Install) -> str:
        was = ", replaced" if 0 < install.returned < self.cutoff else ""
        return f"{install}, permits {names(self.permitted[install.filter])}{was}"


Violation = Impossible | Mishap


def name(access: Access) -> str:
    """Return ``RDMSR STAR``."""
    return f"{'RDMSR' if isinstance(access, Rdmsr) else 'WRMSR'} {msr_name(access.index)}"


def names(outcomes: frozenset[int]) -> str:
    """Return the outcomes in words."""
    return " or ".join(OUTCOMES[each] for each in sorted(outcomes)) or "nothing"


def wrong_install(installer: int, filter_: str, expected: int, seen: int) -> Mishap:
    """Return the violation of an install whose result was not the expected one."""
    return Mishap(
        f"installer {installer}: KVM_X86_SET_MSR_FILTER returned {_result(seen)}, "
        f"expected {_result(expected)}, for {filter_}"
    )


def lost(vcpu: int, vm: int, ended_by: int) -> Mishap:
    """Return the violation of a vCPU that the guest's accesses cannot have stopped."""
    how = f"with {_result(ended_by)}" if ended_by < 0 else f"with exit reason {ended_by}"
    return Mishap(f"vCPU {vcpu} of VM {vm}: KVM_RUN ended {how} in the middle of a batch")


def _result(value: int) -> str:
    return errorcode.get(-value, str(value)) if value < 0 else str(value)
