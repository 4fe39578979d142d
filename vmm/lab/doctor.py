"""What the lab finds on this machine, in the doctor's words."""

from __future__ import annotations

from vmm.conformance.host.finding import Finding, Health
from vmm.lab import cache, vendors
from vmm.lab.kernels import kernels
from vmm.lab.machines import emulators, machine


def examine() -> dict[str, Finding]:
    """Return a finding for each emulator and one for the cache; nothing is fetched."""
    names = dict.fromkeys(row.emulator for row in vendors.VENDORS.values())
    return {**{f"lab: {name}": _emulator(name) for name in names}, **_room()}


def _room() -> dict[str, Finding]:
    return {"lab: memory": _memory(), "lab: kernels": _kernels()}


def _memory() -> Finding:
    from vmm.conformance.host.processes import memory_available

    guests = memory_available() // machine.GUEST_BYTES
    if guests:
        return Finding(Health.PASS, f"enough for {guests} guest{'s' * (guests > 1)} at once")
    return Finding(
        Health.WARN, "not enough for a guest without swapping", "end what takes the memory"
    )


def _emulator(name: str) -> Finding:
    machines = [row.gives for row in vendors.VENDORS.values() if row.emulator == name]
    gives = f"other kernels on {' and on '.join(machines)}"
    here = [emulator for emulator in emulators.emulators() if emulator.name == name]
    if not here:
        return Finding(Health.WARN, f"not here: it would judge {gives}", "msrward lab install")
    if not here[0].good:
        return Finding(
            Health.WARN, f"{here[0].title} is old and loses guests", "msrward lab install"
        )
    return Finding(Health.PASS, f"{here[0].title}: judges {gives}")


def _kernels() -> Finding:
    names = [kernel.name for kernel in kernels.cached()]
    if not names:
        return Finding(Health.PASS, f"none cached in {cache.root()}; fetched when asked for")
    return Finding(Health.PASS, f"{len(names)} cached in {cache.root()}, the newest {names[-1]}")
