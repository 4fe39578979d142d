"""Which counter is this process's, and what its changes mean."""

import pytest

from vmm.conformance.host import memory_cgroup
from vmm.conformance.host.memory_cgroup import WEIGHT, charges_bitmaps, counters, said, weight

V1 = "4:memory:/jobs/7\n3:cpuset:/\n0::/\n"
MOUNTS = (
    "proc /proc proc rw 0 0\n"
    "cgroup /cg/cpu cgroup rw,cpu 0 0\n"
    "cgroup /cg/memory cgroup rw,memory 0 0\n"
    "cgroup2 /cg/unified cgroup2 rw 0 0\n"
)
KMEM, MEMORY = "memory.kmem.usage_in_bytes", "memory.usage_in_bytes"


@pytest.mark.parametrize(
    ("own", "mounts", "found"),
    [
        (V1, MOUNTS, [f"/cg/memory/jobs/7/{KMEM}", f"/cg/memory/jobs/7/{MEMORY}"]),
        ("0::/\n3:cpu,memory_x:/a\n", MOUNTS, ["/cg/unified//memory.current"]),
        ("0::/user.slice/a:b\n", MOUNTS, ["/cg/unified/user.slice/a:b/memory.current"]),
        ("0::/a\n", "proc /proc proc rw 0 0\n", []),
        (V1, "cgroup2 /cg cgroup2 rw 0 0\n", []),
        ("", MOUNTS, []),
    ],
)
def test_the_counter_is_that_of_the_own_cgroup(tmp_path, own, mounts, found):
    (tmp_path / "cgroup").write_text(own)
    (tmp_path / "mounts").write_text(mounts)
    assert counters(tmp_path) == [type(tmp_path)(each) for each in found]


def test_without_cgroups_there_is_no_counter(tmp_path):
    assert counters(tmp_path) == [] and weight([]) is None
    assert weight([tmp_path / "none"]) is None


def test_the_first_counter_that_can_be_read_counts(tmp_path):
    (tmp_path / "empty").write_text("")
    (tmp_path / "bytes").write_text("4096\n")
    assert weight([tmp_path / "none", tmp_path / "empty", tmp_path / "bytes"]) == 4096


@pytest.mark.parametrize(
    ("rounds", "charged"),
    [
        ([(WEIGHT * 4 // 3, WEIGHT * 4 // 3)] * 9, True),
        ([(0, 0)] * 9, False),
        ([(WEIGHT // 10, WEIGHT // 20)] * 9, False),
        ([(3 * WEIGHT, -WEIGHT // 2)] * 9, True),
        ([(WEIGHT, -WEIGHT)] * 9, False),
        ([(WEIGHT // 3, WEIGHT // 3)] * 9, None),
        ([(-WEIGHT, -WEIGHT)] * 9, None),
        ([(0, 0)] * 2 + [(WEIGHT, WEIGHT)] * 7, True),
        ([(WEIGHT, WEIGHT), (WEIGHT // 3, WEIGHT // 3), *[(0, 0)] * 7], False),
        ([(0, 0)] * 2 + [(WEIGHT // 3, WEIGHT // 3)] * 7, None),
    ],
)
def test_a_charge_that_follows_both_ways_says_something(rounds, charged):
    assert said(rounds) is charged


class Ledger:
    """A cgroup that is charged ``each`` byte of a VM and of a bitmap, and a Kvm that fills it."""

    def __init__(self, vm, bitmap, noise=lambda: 0):
        self.vm, self.bitmap, self.noise, self.bytes = vm, bitmap, noise, 0

    def create_vm(self):
        self.bytes += self.vm
        return _Vm(self)


class _Vm:
    def __init__(self, ledger):
        self.ledger, self.held = ledger, 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.ledger.bytes -= self.ledger.vm + self.held

    def set_msr_filter(self, new):
        held = len(new.ranges) * self.ledger.bitmap
        self.ledger.bytes += held - self.held
        self.held = held


@pytest.fixture
def weighed(monkeypatch):
    def weighed(ledger):
        monkeypatch.setattr(memory_cgroup, "weight", lambda: ledger.bytes + ledger.noise())
        return ledger

    return weighed


def test_bitmaps_are_told_from_what_is_charged_besides(weighed):
    assert charges_bitmaps(weighed(Ledger(50_000, 2048))) is True
    assert charges_bitmaps(weighed(Ledger(50_000, 0))) is False


def test_what_others_do_in_the_cgroup_is_told_apart(weighed):
    for bitmap in (0, 2048):
        grows, falls = iter(range(0, 1 << 40, WEIGHT)), iter(range(0, -1 << 40, -WEIGHT // 3))
        for moves in (grows, falls):
            ledger = weighed(Ledger(50_000, bitmap, lambda moves=moves: next(moves)))
            assert charges_bitmaps(ledger) is bool(bitmap)


def test_a_cgroup_that_no_vm_counts_in_is_none(weighed, monkeypatch):
    assert memory_cgroup.no_memory_cgroup(weighed(Ledger(50_000, 0))) is None
    assert "no VM counts" in memory_cgroup.no_memory_cgroup(weighed(Ledger(0, 0)))
    monkeypatch.setattr(memory_cgroup, "weight", lambda: None)
    assert "no counter" in memory_cgroup.no_memory_cgroup(Ledger(0, 0))


def test_what_is_given_back_late_does_not_hide_that_vms_count(weighed):
    """As what VMs took that were closed right before."""
    late = iter((3_000_000, 2_000_000))
    ledger = Ledger(50_000, 0, lambda: next(late, 0))
    assert memory_cgroup.no_memory_cgroup(weighed(ledger)) is None
