"""What the contract says of instructions that use MSRs and are neither RDMSR nor WRMSR (R35)."""

from __future__ import annotations

from vmm.conformance.language import script as s
from vmm.conformance.oracle.state import VmState


class EffectRules:
    """Each instruction does what it does without a filter. Holds no state of its own."""

    def executed(self, vm: VmState, action: s.Execute) -> s.Step:
        """R35: what the MSRs hold, whatever the filter and the mask of exits say."""
        return (s.executed(self.value(action)),)

    def value(self, action: s.Execute) -> int:
        """R35: what the host has put there, and no default in its place."""
        return action.value
