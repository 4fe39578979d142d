"""What the lab finds on this machine, in the doctor's words."""

from __future__ import annotations

from vmm.conformance.host.diagnosis import Diagnosis, Health
from vmm.lab import cache, vendors
from vmm.lab.errors import LabError
from vmm.lab.kernels import packaged
from vmm.lab.machines import emulators, machine


def examine() -> dict[str, Diagnosis]:
    """Return a finding for each emulator and one for the cache; nothing is fetched."""
    names = dict.fromkeys(row.emulator for row in vendors.VENDORS.values())
    return {**{f"lab: {name}": _emulator(name) for name in names}, **_room()}


def _room() -> dict[str, Diagnosis]:
    return {"lab: memory": _memory(), "lab: kernels": _kernels()}


def _memory() -> Diagnosis:
    from vmm.conformance.host.processes import memory_available

    guests = memory_available() // machine.GUEST_BYTES
    if guests:
        return Diagnosis(Health.PASS, f"enough for {guests} guest{'s' * (guests > 1)} at once")
    return Diagnosis(
        Health.WARN, "not enough for a guest without swapping", "end what takes the memory"
    )


def _emulator(name: str) -> Diagnosis:
    machines = [row.gives for row in vendors.VENDORS.values() if row.emulator == name]
    gives = f"other kernels on {' and on '.join(machines)}"
    if not emulators.is_here(name):
        return Diagnosis(Health.WARN, f"not here: it would judge {gives}", "msrward lab install")
    try:
        found = emulators.find(name)
    except LabError as error:
        return Diagnosis(Health.WARN, str(error), "msrward lab install")
    if not found.good:
        return Diagnosis(
            Health.WARN, f"{found.title} is old and loses guests", "msrward lab install"
        )
    return Diagnosis(Health.PASS, f"{found.title}: judges {gives}")


def _kernels() -> Diagnosis:
    names = [kernel.name for kernel in packaged.cached()]
    if not names:
        return Diagnosis(Health.PASS, f"none cached in {cache.root()}; fetched when asked for")
    return Diagnosis(Health.PASS, f"{len(names)} cached in {cache.root()}, the newest {names[-1]}")
