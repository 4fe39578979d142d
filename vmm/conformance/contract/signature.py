"""How an entry of the history shows in a failed case: patterns over what its record holds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vmm.conformance.contract.difference import Difference

_WARNING = re.compile(r"WARNING: CPU: \d+ PID: \d+ at \S+:\d+ (\w+)\+0x")
"""The first line of a WARN (__warn in kernel/panic.c), to 6.17; older entries are meant."""
VMX, SVM = "kvm_intel", "kvm_amd"
"""The KVM modules of the two vendors."""


@dataclass(frozen=True, slots=True)
class Signature:
    """How one entry shows: every pattern given must match, and no ``without``.

    ``action``, ``expected`` and ``seen`` match the whole text, ``install`` and ``before`` a part of
    the last install and of the steps before. ``vendor`` "" stands for any. ``at_top`` asks for a
    range that reaches 2^32 and holds the MSR of the access, ``halfway`` for a half-built filter
    that allows it (True) or does not. ``unfiltered`` asks that the host was refused the MSR without
    a filter too, ``unset`` that the read looks for what a write failed to leave. ``lasts`` says
    that the steps after it prove nothing: the VM's state is no more what the script made it.
    ``warns`` are the functions that warn of it in the kernel log; any other splat is unexplained.
    None explains a read that ends as a write, or an exit for another MSR.
    """

    id: str
    action: str
    expected: str
    seen: str
    install: str = ""
    before: str = ""
    without: str = ""
    vendor: str = ""
    at_top: bool = False
    halfway: bool | None = None
    unfiltered: bool = False
    unset: bool = False
    lasts: bool = False
    warns: str = ""

    def explains(self, difference: Difference) -> bool:
        """Say whether this entry makes a kernel differ in exactly this way."""
        return (
            bool(re.fullmatch(self.seen, difference.seen))
            and self.can_show_at(difference)
            and difference.is_of_its_access
        )

    def explains_splat(self, lines: Sequence[str]) -> bool:
        """Say whether a splat of the kernel log is this entry's: a WARN in one of its functions."""
        headline = next((line for line in lines if "cut here" not in line and line), "")
        warned = _WARNING.match(headline)
        return bool(self.warns and warned and re.fullmatch(self.warns, warned[1]))

    def can_show_at(self, step: Difference) -> bool:
        """Say whether this entry can make a kernel differ at this step, whatever was seen."""
        return (
            self.vendor in ("", step.vendor)
            and bool(re.fullmatch(self.action, step.action))
            and bool(re.fullmatch(self.expected, step.expected))
            and bool(re.search(self.install, step.install))
            and self._is_after(step)
            and (not self.at_top or step.at_top)
            and (self.halfway is None or step.halfway is self.halfway)
            and (not self.unfiltered or step.is_refused_unfiltered)
            and (not self.unset or step.is_of_failed_write)
        )

    def _is_after(self, step: Difference) -> bool:
        """Say whether the steps before this one are as ``before`` and ``without`` ask."""
        before = "\n".join(step.before) if self.before or self.without else ""
        return bool(re.search(self.before, before)) and not (
            self.without and re.search(self.without, before)
        )
