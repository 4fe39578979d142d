"""Whether this host's own virtualization can carry the lab: hardware nesting instead of emulation.

What runs in such a guest runs on the host kernel's nested KVM as well, so its mistakes can show in
the verdict; the emulator's title in every record says that it was used. MSRWARD_EMULATE=1 turns it
off. Nesting: Documentation/virt/kvm/x86/running-nested-guests.rst.
"""

from __future__ import annotations

import os
from pathlib import Path

from vmm.lab import vendors

_KVM = Path("/dev/kvm")
_PARAMETERS = Path("/sys/module")


def offers(vendor: str) -> bool:
    """Whether a guest of this host's KVM would have the vendor's extensions of its own."""
    if os.environ.get("MSRWARD_EMULATE"):
        return False
    nested = _PARAMETERS / vendors.of(vendor).module / "parameters" / "nested"
    try:
        on = nested.read_text().strip() in ("1", "Y")
    except OSError:
        return False
    return on and os.access(_KVM, os.R_OK | os.W_OK)
