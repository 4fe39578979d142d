"""What makes KVM pass more MSRs through, before a filter and after it: R72, R33.

An APIC in the kernel, exits that are disabled, CPUID, and features that the guest itself turns on.
Each brings MSRs of its own; a filter says no to all of them, whichever came first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from vmm.conformance.cases.fastpath import NO_INTERRUPT, X2APIC
from vmm.conformance.cases.sweep import WHOLE, Part, T, denies
from vmm.conformance.cases.words import TELL_FILTER, A, Row, denied, done_install, play
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import (
    DISABLE_EXITS,
    Kind,
    create_irqchip,
    create_vcpu,
    disable_exits,
    done,
    set_cpuid,
    set_cpuid_bits,
    set_msr,
    sweep,
    unfiltered,
    wrmsr,
    wrote,
)
from vmm.filter import WRITE, default_deny
from vmm.msr import Msr

ALWAYS: tuple[Part, ...] = ((Msr.IA32_TSC, 1), (Msr.IA32_SYSENTER_CS, 3), (Msr.STAR, 4))
ALWAYS = (*ALWAYS, (Msr.FS_BASE, 3))
"""What one vendor or the other always passes through."""

LBR: Part = (Msr.IA32_LASTBRANCHFROMIP, 4)
"""SVM's records of branches: kernels are known to leave them passed through (B34)."""

IRQCHIP: Row = (create_irqchip(), done)
IBRS, LBR_ON, TRACE_ON, AMX = 1, 1, 1, 1 << 18
"""What a guest writes to turn a feature on: SPEC_CTRL, DEBUGCTL, RTIT_CTL, XFD."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition, in words and in rows; ``opens`` is the MSR and value that the guest writes.

    With ``by_host`` the host sets it instead, as it does for a guest that has come from elsewhere.
    ``early`` comes before the vCPU, ``late`` after it. ``parts`` are the MSRs that it is about.
    """

    words: str
    parts: tuple[Part, ...]
    early: tuple[Row, ...] = ()
    late: tuple[Row, ...] = ()
    opens: tuple[Msr, int] | None = None
    needs: tuple[str, ...] = ()
    by_host: bool = False

    @property
    def made(self) -> tuple[Row, ...]:
        """The rows that bring it about."""
        written: tuple[Row, ...] = ()
        if self.opens:
            sets: Row = (set_msr(*self.opens), done)
            written = (sets,) if self.by_host else ((wrmsr(*self.opens), unfiltered),)
        return (*self.early, (create_vcpu(0), done), TELL_FILTER, *self.late, *written)


DISABLED: dict[str, tuple[Part, ...]] = {
    "cstate": ((0x3F8, 0x10), (0x660, 0x10)),
    "aperfmperf": ((0xE0, 0x10),),
}
PMU: tuple[Part, ...] = (
    *((0xC1, 8), (0x186, 8), (0x309, 4), (0x38D, 4), (0x4C1, 8)),
    *((0xC000_0300, 4), (0xC001_0000, 8), (0xC001_0200, 12)),
)

CONDITIONS = {
    "xapic": Condition(
        "an in-kernel APIC",
        ((0x6D0, 0x20), (0x7F0, 0x10)),
        (IRQCHIP,),
        ((set_cpuid("tsc_deadline", on=True), done),),
    ),
    "x2apic": Condition(
        "an x2APIC whose timer is in TSC-deadline mode",
        ((0x6D0, 0x20), (0x7F0, 0x120)),
        (IRQCHIP,),
        (
            (set_cpuid("tsc_deadline", on=True), done),
            (set_msr(Msr.IA32_APICBASE, X2APIC[0]), done),
            (wrmsr(Msr.APIC_LVTT, NO_INTERRUPT), wrote),
        ),
    ),
    **{
        f"no_{name}_exits": Condition(
            f"{name.upper()} exits disabled", DISABLED.get(name, ()), ((disable_exits(bit), done),)
        )
        for name, bit in DISABLE_EXITS.items()
    },
    "no_exits": Condition(
        "all exits disabled that can be",
        (*DISABLED["cstate"], *DISABLED["aperfmperf"]),
        ((disable_exits(sum(DISABLE_EXITS.values())), done),),
    ),
    "no_cpuid": Condition(
        "a CPUID without features",
        ((Msr.IA32_SPEC_CTRL, 2), (Msr.IA32_FLUSH_CMD, 1), (Msr.IA32_XFD, 2)),
        late=((set_cpuid("everything", on=False), done),),
    ),
    "cpuid": Condition(
        "all that the host supports in CPUID",
        ((Msr.IA32_SPEC_CTRL, 2), (Msr.IA32_FLUSH_CMD, 1), (Msr.IA32_XFD, 2)),
        late=((set_cpuid("everything", on=True), done),),
    ),
    "shstk": Condition(
        "shadow stacks in CPUID",
        ((0x6A0, 0x10),),
        late=((set_cpuid_bits(7, "ecx", 1 << 7), done),),
        needs=("shstk",),
    ),
    "mediated_pmu": Condition("a mediated PMU", PMU, (IRQCHIP,), needs=("mediated_pmu",)),
    "spec_ctrl": Condition(
        "SPEC_CTRL written",
        ((Msr.IA32_SPEC_CTRL, 2),),
        opens=(Msr.IA32_SPEC_CTRL, IBRS),
        needs=("spec_ctrl",),
    ),
    "xfd": Condition(
        "XFD written", ((Msr.IA32_XFD, 2),), opens=(Msr.IA32_XFD, AMX), needs=("xfd",)
    ),
    "lbr": Condition(
        "DEBUGCTL.LBR written",
        ((0x1C8, 2), (0x1D8, 0x10), (0x680, 0x60), (0x6C0, 0x20), (0xDC0, 0x40)),
        opens=(Msr.IA32_DEBUGCTLMSR, LBR_ON),
        needs=("lbr",),
    ),
    "pt": Condition(
        "RTIT_CTL.TraceEn written",
        ((0x560, 2), (0x570, 0x20)),
        opens=(Msr.IA32_RTIT_CTL, TRACE_ON),
        needs=("pt",),
    ),
}
CONDITIONS |= {
    f"{name}_by_the_host": replace(
        condition, words=f"{condition.words} by KVM_SET_MSRS", by_host=True
    )
    for name, condition in CONDITIONS.items()
    if condition.opens
}


def _cut(kind: Kind, part: Part, opened: int) -> Iterator[Part]:
    """Yield ``part`` without what stands alone (T, LBR) or cannot be denied (the written MSR)."""
    first, end = part[0], part[0] + part[1]
    out = [LBR, *([(T, 1), (opened, 1)] if kind == "wrmsr" else [])]
    for at, count in sorted(each for each in out if first <= each[0] < end):
        yield first, at - first
        first = at + count
    yield first, end - first


def _swept(condition: Condition, parts: tuple[Part, ...]) -> Iterator[Row]:
    """Yield the rows that read and write every MSR of ``parts``, all of which are denied."""
    opened = condition.opens[0] if condition.opens and not condition.by_host else -1
    for kind in ("rdmsr", "wrmsr"):
        pieces = [piece for part in parts for piece in _cut(kind, part, opened) if piece[1] > 0]
        has_lbr = any(first <= LBR[0] < first + count for first, count in parts)
        for first, count in (*pieces, *([LBR] if has_lbr else [])):
            yield denies(sweep(kind, first, count))


def _rows(condition: Condition, filter_first: bool, parts: tuple[Part, ...]) -> tuple[Row, ...]:
    deny = default_deny().allow(A)
    if not filter_first:
        return (*condition.made, done_install(deny), *_swept(condition, parts), denied(A + 1))
    if condition.opens and not condition.by_host:
        deny = deny.allow(condition.opens[0], access=WRITE)
    return (done_install(deny), *condition.made, *_swept(condition, parts), denied(A + 1))


CASES = tuple(
    Case(
        f"conditions.{name}_{'after' if filter_first else 'before'}_the_filter{tail}",
        f"{'After' if filter_first else 'Before'} a filter that denies all, "
        f"{condition.words}: {what} exits as FILTER.",
        "R72 R33" if not filter_first else "R33 R72",
        *play(*_rows(condition, filter_first, WHOLE if tail else (*ALWAYS, *condition.parts))),
        needs=condition.needs,
        thorough=bool(tail),
    )
    for (name, condition), filter_first, (tail, what) in product(
        CONDITIONS.items(),
        (False, True),
        (("", "what that passes through"), ("_whole", "every MSR")),
    )
)
