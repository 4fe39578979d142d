"""Where a bug can show at all: from which release on, and by which part of KVM.

This explains why nothing shows it, and decides nothing: what a kernel is seen to do counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vmm.conformance.contract.history import HISTORY

_VERSION = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")
_OFF = ("0", "N")


@dataclass(frozen=True, slots=True)
class Reach:
    """One way in which an entry of the history can show: from ``since`` on, where all is on.

    ``parameter`` is of the vendor's KVM module, which turns it off where the CPU lacks what it is
    about; "" stands for none.
    """

    id: str
    since: str
    parameter: str = ""

    def holds(self, host: Mapping[str, Any]) -> bool:
        """Say whether the entry can show in this way on a host, as far as its facts tell."""
        since, here = _version(self.since), _version(str(host.get("release") or ""))
        modules = host.get("parameters") or {}
        module = modules.get(str(host.get("vendor_module") or "")) or {}
        is_old = bool(since and here) and here < since
        return not is_old and module.get(self.parameter, "Y") not in _OFF


REACHES = (
    # The fastpath is for the preemption timer alone; from 0a94b2042419 on it is for every timer.
    Reach("B12", "5.10", "preemption_timer"),
    Reach("B12", "6.18"),
    # Where the CPU does not tell the next RIP, kvm_amd has no fastpath.
    Reach("B13", "6.18", "nrips"),
    Reach("B34", "6.17.13", "lbrv"),
)
"""Of the entries that need more than a release; the others go by the first that is affected."""


def can_show(entry: str, host: Mapping[str, Any]) -> bool:
    """Say whether an entry of the history can show on a host, by what is known of both."""
    ways = [reach for reach in REACHES if reach.id == entry]
    return any(way.holds(host) for way in ways or [Reach(entry, HISTORY[entry].affected)])


def lacking(release: str) -> tuple[str, ...]:
    """Return the entries that upstream's ``release`` ("6.1") has no fix for, the open ones too."""
    fixes = HISTORY.values()
    return tuple(f.id for f in fixes if f.is_open or _version(f.fixed_in) > _version(release))


def _version(text: str) -> tuple[int, ...]:
    """Return the version with which a text begins, or () where it begins with none."""
    found = _VERSION.match(text)
    return tuple(int(part or 0) for part in found.groups()) if found else ()
