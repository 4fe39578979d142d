"""Every order of two of what decides which MSRs hardware passes: filter, mask, CPUID, levels.

A case has one of them first and each other in a VM of its own after it; accesses follow each step.
What comes first must neither hide what comes next from KVM's bitmaps nor undo it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from vmm.conformance.cases.words import (
    CALLS,
    ENTERS,
    OUT,
    RESTORES,
    SAVES,
    STORAGE,
    TELL_FILTER,
    Row,
    done_install,
    passes,
    play,
    write_passes,
)
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import (
    REPLY,
    create_irqchip,
    create_vcpu,
    disable_exits,
    done,
    fresh_vm,
    get_mp_state,
    got,
    gp,
    rdmsr,
    returned,
    send_init,
    set_cpuid,
    wrmsr,
    wrote,
)
from vmm.exits import RdmsrExit, WrmsrExit
from vmm.filter import default_deny
from vmm.msr import FILTER, Msr

_GS, _STAR, _EFER = Msr.KERNEL_GS_BASE, Msr.STAR, Msr.EFER
_DEBUGCTL, _SPEC_CTRL = Msr.IA32_DEBUGCTLMSR, Msr.IA32_SPEC_CTRL
DENIES = default_deny().allow(_DEBUGCTL, _SPEC_CTRL, _GS)
"""All but what a guest writes to have others passed, and one that hardware always passes."""
STARTED = STORAGE[_STAR][0]
CREATED: Row = (create_vcpu(0), done)


@dataclass(frozen=True)
class State:
    """What the steps so far have made of a VM."""

    denies: bool = False
    tells: bool = False
    in_l2: bool = False
    vcpus: tuple[int, ...] = (0,)

    def probe(self) -> Iterator[Row]:
        """Yield accesses that hardware passes, may pass, and never passes, of each vCPU."""
        for vcpu in self.vcpus:
            yield passes(_GS, vcpu)
            for index in (_STAR, Msr.IA32_LASTBRANCHFROMIP, _EFER):
                yield self._read(index, vcpu)
            yield self._write(vcpu)

    def _read(self, index: int, vcpu: int) -> Row:
        access = rdmsr(index, vcpu=vcpu)
        if not self.denies:
            return passes(index, vcpu)
        return (access, RdmsrExit(index, FILTER), returned(REPLY)) if self.tells else (access, gp)

    def _write(self, vcpu: int) -> Row:
        access = wrmsr(_STAR, STARTED, vcpu=vcpu)
        if not self.denies:
            return (access, wrote)
        return (access, WrmsrExit(_STAR, FILTER, STARTED), wrote) if self.tells else (access, gp)


@dataclass(frozen=True)
class Step:
    """One of what is ordered: its rows in a state, what it makes of it, what must come before.

    ``early`` is one that KVM takes before the vCPU has run. ``alone`` is one that needs no vCPU.
    """

    says: str
    rows: Callable[[State], tuple[Row, ...]]
    becomes: Callable[[State], State] = lambda state: state
    before: tuple[Row, ...] = ()
    early: bool = False
    alone: bool = False


STEPS: dict[str, Step] = {
    "install": Step(
        "A filter",
        lambda _: (done_install(DENIES),),
        lambda state: replace(state, denies=True),
        alone=True,
    ),
    "mask": Step(
        "The mask of exits",
        lambda _: (TELL_FILTER,),
        lambda state: replace(state, tells=True),
        alone=True,
    ),
    "disable_exits": Step(
        "KVM_CAP_X86_DISABLE_EXITS",
        lambda _: ((disable_exits(4), done),),
        early=True,
        alone=True,
    ),
    "init": Step(
        "An INIT of another vCPU",
        lambda _: ((send_init(1), done), (get_mp_state(1), got(2))),
        before=(
            (create_irqchip(), done),
            (create_vcpu(0), done),
            (create_vcpu(1), done),
        ),
    ),
    "cpuid": Step("CPUID", lambda _: ((set_cpuid("tsc_deadline", on=True), done),), early=True),
    "opening_write": Step(
        "A guest's write that has KVM pass MSRs",
        lambda _: (write_passes(_DEBUGCTL, 1), write_passes(_SPEC_CTRL, 1)),
    ),
    "vcpu": Step(
        "Another vCPU",
        lambda _: ((create_vcpu(2), done),),
        lambda state: replace(state, vcpus=(*state.vcpus, 2)),
    ),
    "entry": Step(
        "An entry of L2",
        lambda state: (CALLS, ENTERS) if state.in_l2 else (ENTERS,),
        lambda state: replace(state, in_l2=True),
    ),
    "restore": Step(
        "A restore of L2",
        lambda _: (RESTORES,),
        lambda state: replace(state, in_l2=True),
        before=(ENTERS, SAVES, OUT),
    ),
}
"""In the order in which they can prepare a VM: interrupt controllers come before vCPUs."""
NESTED = ("entry", "restore")
IMPOSSIBLE = {
    *((ran, "cpuid") for ran in ("opening_write", *NESTED)),
    ("cpuid", "restore"),
    *((made, "disable_exits") for made in ("init", "cpuid", "opening_write", "vcpu", *NESTED)),
}
"""What has the vCPU run before its CPUID is set, or be there before exits are disabled."""


def _rows(first: str, second: str) -> Iterator[Row]:
    """Yield one order of two, from a VM without anything on."""
    one, two = STEPS[first], STEPS[second]
    state, prepares = State(), [*dict.fromkeys((first, second))]
    for name in ("mask", "install"):
        if name not in prepares:
            yield from STEPS[name].rows(state)
            state = STEPS[name].becomes(state)
    has_vcpu, is_first = False, first == "disable_exits"
    yield from one.rows(state) if is_first else ()
    for name in sorted(prepares, key=[*STEPS].index):
        if STEPS[name].before and name == "restore" and not has_vcpu:
            yield CREATED
        yield from STEPS[name].before
        has_vcpu |= bool(STEPS[name].before)
    for step in (one, two):
        if not (step.alone or has_vcpu):
            yield CREATED
            has_vcpu = True
        yield from () if step is one and is_first else step.rows(state)
        state = step.becomes(state)
        if step is two or not two.early:
            yield from () if has_vcpu else (CREATED,)
            yield from state.probe()
            has_vcpu = True
    if state.in_l2:
        yield CALLS
        yield from replace(state, in_l2=False).probe()


GROUPS = {
    "": "each other step that needs no more, in a VM of its own",
    "_then_init": "an INIT of another vCPU",
    "_then_l2": "an entry of L2 or a restore of one",
}


def _case(first: str, seconds: Sequence[str], group: str) -> Case:
    rows: list[Row] = []
    for second in seconds:
        rows += [(fresh_vm(), done), *_rows(first, second)]
    return Case(
        f"orders.{first}_first{group}",
        f"{STEPS[first].says} comes before {GROUPS[group]}, and the filter is obeyed.",
        "R72 R75 R81" if group or first in NESTED else "R72 R75",
        *play(*rows),
    )


def _groups() -> Iterator[Case]:
    """Yield the cases: those that need a nested guest, or an APIC in the kernel, by themselves."""
    for first in STEPS:
        others = [each for each in STEPS if each != first and (first, each) not in IMPOSSIBLE]
        groups: dict[str, list[str]] = {
            "": [each for each in others if each not in (*NESTED, "init")],
            "_then_init": [each for each in others if each == "init"],
            "_then_l2": [each for each in others if each in NESTED],
        }
        for group, seconds in groups.items():
            if seconds:
                yield _case(first, seconds, group)


CASES = tuple(_groups())
