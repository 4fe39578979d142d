"""msrward: a userspace KVM VMM that judges whether a kernel keeps its MSR filter's promises.

What this module exports is the public API of floor 1, the VMM: ``Kvm -> Vm -> Vcpu``, filters,
guests and exits. ``vmm.conformance`` is what judges, ``vmm.cli`` the ``msrward`` command.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmm.errors import Busy, Closed, KvmError
    from vmm.exits import (
        DebugExit,
        Exit,
        FailEntryExit,
        HltExit,
        InternalErrorExit,
        IoExit,
        MmioExit,
        OtherExit,
        RdmsrExit,
        ShutdownExit,
        WrmsrExit,
    )
    from vmm.filter import READ, READ_WRITE, WRITE, AtEdge, MsrFilter, MsrRange, Pointer, bitmap_of
    from vmm.guest import Guest
    from vmm.kvm import Kvm, Vm
    from vmm.memory import GuestMemory
    from vmm.msr import Msr, MsrExitReason
    from vmm.vcpu import Vcpu

__all__ = [
    "READ",
    "READ_WRITE",
    "WRITE",
    "AtEdge",
    "Busy",
    "Closed",
    "DebugExit",
    "Exit",
    "FailEntryExit",
    "Guest",
    "GuestMemory",
    "HltExit",
    "InternalErrorExit",
    "IoExit",
    "Kvm",
    "KvmError",
    "MmioExit",
    "Msr",
    "MsrExitReason",
    "MsrFilter",
    "MsrRange",
    "OtherExit",
    "Pointer",
    "RdmsrExit",
    "ShutdownExit",
    "Vcpu",
    "Vm",
    "WrmsrExit",
    "bitmap_of",
]

_HOMES = {
    "errors": "Busy Closed KvmError",
    "filter": "READ READ_WRITE WRITE AtEdge MsrFilter MsrRange Pointer bitmap_of",
    "guest": "Guest",
    "kvm": "Kvm Vm",
    "memory": "GuestMemory",
    "msr": "Msr MsrExitReason",
    "vcpu": "Vcpu",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """Import on first use: the oracle and the command line must not need the native module."""
    import importlib

    if name not in __all__:
        raise AttributeError(f"module 'vmm' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"vmm.{_HOME.get(name, 'exits')}"), name)
    globals()[name] = value
    return value
