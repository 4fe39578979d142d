"""What this process's memory cgroup is charged for: Documentation/admin-guide/cgroup-*.

The root of v2 counts nothing. With ``cgroup.memory=nokmem`` no cgroup counts what the kernel has.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from vmm.conformance.host.limits import raise_if_exhausted
from vmm.errors import KvmError
from vmm.filter import READ, MsrFilter, MsrRange
from vmm.kvm import Kvm, Vm
from vmm.msr import MAX_NMSRS

PROC = Path("/proc/self")
V1, V2 = ("memory.kmem.usage_in_bytes", "memory.usage_in_bytes"), ("memory.current",)
VMS, TRIED, RANGES = 32, 16, 16
BITMAP = bytes(MAX_NMSRS // 8)
WEIGHT = VMS * RANGES * len(BITMAP)
"""What the bitmaps take, in bytes, at the least: a slab of 1.5 KiB is one of 2 KiB."""
VM_WEIGHS = 8 << 10
"""What a VM takes at the least, in bytes: every kernel charges for it."""
ROUNDS, SAME = 9, 3
"""Others of the cgroup come in between, and what was freed before is given back late: what the same
number of rounds say counts."""
FULL = MsrFilter(0, tuple(MsrRange(READ, 0x474F4F00, MAX_NMSRS, BITMAP) for _ in range(RANGES)))


def counters(proc: Path = PROC) -> list[Path]:
    """Return the files that may say what this process's memory cgroup is charged for."""
    own = [line.split(":", 2)[1:] for line in _lines(proc / "cgroup")]
    paths = dict(sorted((controllers, path) for controllers, path in own))
    kind, names = ("memory", V1) if "memory" in paths else ("", V2)
    return [
        Path(f"{place}{paths[kind]}/{name}")
        for place, type_, options in (line.split()[1:4] for line in _lines(proc / "mounts"))
        if kind in paths and _is_mount(kind, type_, options)
        for name in names
    ]


def _is_mount(kind: str, type_: str, options: str) -> bool:
    return type_ == "cgroup" and kind in options.split(",") if kind else type_ == "cgroup2"


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def weight(files: Iterable[Path] | None = None) -> int | None:
    """Return the bytes that the cgroup is charged for now; None where nothing says so."""
    for file in counters() if files is None else files:
        try:
            return int(file.read_text())
        except (OSError, ValueError):
            continue
    return None


def no_memory_cgroup(kvm: Kvm) -> str | None:
    """Look whether VMs are charged: only then it says something that bitmaps are not."""
    if weight() is None:
        return "no counter of a memory cgroup can be read here: run in a cgroup that has one"
    try:
        if any(_weigh_vms(kvm) > TRIED * VM_WEIGHS for _ in range(ROUNDS)):
            return None
    except KvmError as error:
        raise_if_exhausted(error)
        return f"{TRIED} VMs cannot be made: {error}"
    return "the memory cgroup is not charged for what the kernel has: no VM counts"


def _weigh_vms(kvm: Kvm) -> int:
    """Return what VMs add to the charge, and what others take away meanwhile."""
    before = weight() or 0
    with ExitStack() as stack:
        _vms(kvm, stack, TRIED)
        return (weight() or 0) - before


def charges_bitmaps(kvm: Kvm) -> bool | None:
    """Say whether the cgroup is charged for the bitmaps of filters; None where it is not at rest.

    Many VMs get a filter and lose it, again and again.
    """
    with ExitStack() as stack:
        vms = _vms(kvm, stack, VMS)
        return said(_weigh(vms) for _ in range(ROUNDS))


def _vms(kvm: Kvm, stack: ExitStack, count: int) -> list[Vm]:
    return [stack.enter_context(kvm.create_vm()) for _ in range(count)]


def _weigh(vms: list[Vm]) -> tuple[int, int]:
    seen = [weight() or 0]
    for each in (FULL, MsrFilter()):
        for vm in vms:
            vm.set_msr_filter(each)
        seen.append(weight() or 0)
    return seen[1] - seen[0], seen[1] - seen[2]


def said(rounds: Iterable[tuple[int, int]]) -> bool | None:
    """Say what it means by how many bytes the charge rose and fell in each round.

    What rises or falls for another reason goes into both with another sign.
    """
    seen = {True: 0, False: 0}
    for rose, fell in rounds:
        charge = (rose + fell) / 2
        if charge > WEIGHT / 2 or abs(charge) < WEIGHT / 4:
            verdict = charge > WEIGHT / 2
            seen[verdict] += 1
            if seen[verdict] == SAME:
                return verdict
    return None
