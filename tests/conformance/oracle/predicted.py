"""What the Model predicts, where tests look at its rules one by one.

Their expectations are written from docs/contract.md and not from the cases, so that a mistake
made in both of them does not go unseen.
"""

from __future__ import annotations

from vmm.conformance.language import script as s
from vmm.conformance.language.script import done, enable_exits, install
from vmm.conformance.oracle.model import Model
from vmm.exits import RdmsrExit, WrmsrExit
from vmm.filter import MsrFilter

X, Y, Z = 0x5000_0000, 0x6000_0123, 0xFFFF_0000
"""MSRs that KVM does not know, in another place than those of the catalogue."""


def predict(*script: s.Action) -> s.Trace:
    return Model().predict(script)


def last(*script: s.Action) -> s.Event:
    return predict(*script)[-1]


def exits(filter_: MsrFilter, access: s.Access) -> list[object]:
    """Return the reasons of the exits that ``access`` takes under ``filter_`` and the mask 7."""
    trace = predict(enable_exits(7), install(filter_), access)
    assert trace[:2] == (done, done)
    return [event.reason for event in trace if isinstance(event, RdmsrExit | WrmsrExit)]
