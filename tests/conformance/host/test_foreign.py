"""Whose splat it is: what may be ours stays ours, and what surely is another's does not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vmm.conformance.host import foreign
from vmm.conformance.host.foreign import Ours, foreign_taint, why_foreign
from vmm.conformance.host.splats import find_splats
from vmm.conformance.host.watch import Watch

ROOT, WORKER, THREAD, QEMU, VCPU, KWORKER, ORPHAN = 100, 101, 102, 900, 901, 30, 103
TASKS = {  # comm, parent, process group, flags
    1: ("systemd", 0, 1, 0),
    KWORKER: ("kworker/1:2", 2, 0, foreign.KERNEL_THREAD),
    ROOT: ("msrward", 50, ROOT, 0),
    WORKER: ("msrward", ROOT, ROOT, 0),
    THREAD: ("a ) (thread", ROOT, 77, 0),
    ORPHAN: ("msrward", 1, ROOT, 0),
    QEMU: ("qemu", 1, QEMU, 0),
    VCPU: ("CPU 0/KVM", QEMU, QEMU, 0),
}


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /proc of some tasks, in what counts as the initial PID namespace."""
    (tmp_path / "self/ns").mkdir(parents=True)
    (tmp_path / "self/ns/pid").touch()
    inode = (tmp_path / "self/ns/pid").stat().st_ino
    monkeypatch.setattr(foreign, "INITIAL_PID_NAMESPACE", inode)
    for pid, (comm, parent, group, flags) in TASKS.items():
        (tmp_path / str(pid)).mkdir()
        stat = f"{pid} ({comm}) S {parent} {group} {group} 0 -1 {flags} 0 0"
        (tmp_path / str(pid) / "stat").write_text(stat)
    return tmp_path


def warn(pid: int):
    (splat,) = find_splats([f"WARNING: CPU: 1 PID: {pid} at arch/x86/kvm/x86.c:1795 f+0x1/0x2"])
    return splat


@pytest.mark.parametrize("pid", [QEMU, VCPU, 1])
def test_what_another_process_did_is_foreign_and_names_it(proc, pid):
    assert why_foreign(warn(pid), Ours(ROOT, proc=proc)) == f"it names {TASKS[pid][0]} ({pid})"


@pytest.mark.parametrize("pid", [ROOT, WORKER, THREAD, ORPHAN, KWORKER, 0, 4711])
def test_what_may_be_ours_stays_ours(proc, pid):
    """Of the run, of a kernel thread, of the idle task, of one that is gone."""
    assert why_foreign(warn(pid), Ours(ROOT, proc=proc)) is None


def test_one_task_of_ours_makes_a_splat_ours(proc):
    lines = [
        "BUG: KASAN: slab-use-after-free in kvm_msr_allowed+0x5c/0x120 [kvm]",
        f"Read of size 4 at addr ffff888012345678 by task qemu/{QEMU}",
        f"Allocated by task {WORKER}:",
    ]
    (splat,) = find_splats(lines)
    assert why_foreign(splat, Ours(ROOT, proc=proc)) is None
    (splat,) = find_splats([lines[0], lines[1], f"Allocated by task {VCPU}:"])
    assert why_foreign(splat, Ours(ROOT, proc=proc))


@pytest.mark.parametrize(
    "line",
    [
        f"watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [qemu:{QEMU}]",
        f"INFO: task qemu:{QEMU} blocked for more than 120 seconds.",
        f"BUG: scheduling while atomic: qemu/{QEMU}/0x00000002",
    ],
)
def test_the_kinds_that_a_busy_host_makes(proc, line):
    (splat,) = find_splats([line])
    assert why_foreign(splat, Ours(ROOT, proc=proc)) == f"it names qemu ({QEMU})"


def test_in_another_pid_namespace_the_numbers_say_nothing(proc, monkeypatch):
    monkeypatch.setattr(foreign, "INITIAL_PID_NAMESPACE", 1)
    assert why_foreign(warn(QEMU), Ours(ROOT, proc=proc)) is None


@pytest.mark.parametrize("what", ["RDMSR from 0x1a1 at", "WRMSR to 0x1a1 (tried to write 0x0) at"])
def test_an_msr_that_no_script_uses_is_a_drivers(proc, what):
    (splat,) = find_splats([f"unchecked MSR access error: {what} rIP: 0xffffffff (f+0x1/0x2)"])
    assert why_foreign(splat, Ours(ROOT, {0x1A1}, proc)) is None
    assert why_foreign(splat, Ours(ROOT, None, proc)) is None
    assert "0x1a1" in str(why_foreign(splat, Ours(ROOT, {0x1A0}, proc)))


def test_real_processes_are_told_apart():
    """A real child of ours, and one that is no child of the process at the root."""
    sleeping = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with (
        subprocess.Popen(sleeping, stdin=subprocess.PIPE, start_new_session=True) as one,
        subprocess.Popen(sleeping, stdin=subprocess.PIPE, start_new_session=True) as other,
    ):
        if not foreign._in_initial_namespace(Path("/proc")):
            pytest.skip("not in the initial PID namespace: the kernel's pids are not ours")
        assert why_foreign(warn(one.pid), Ours(os.getpid())) is None
        assert why_foreign(warn(one.pid), Ours(one.pid)) is None
        assert str(other.pid) in str(why_foreign(warn(other.pid), Ours(one.pid)))
        for each in (one, other):
            each.stdin.close()


def test_only_the_taints_that_a_broken_kvm_sets_are_ours():
    assert foreign_taint("POEWDBLMK") == "POEK"


@pytest.fixture
def watched(tmp_path):
    """A kernel log and a taint that a test writes, and the watch over both."""
    log, tainted = tmp_path / "kmsg", tmp_path / "tainted"
    log.touch()
    tainted.write_text("0")
    with Watch(str(log), tainted) as watch:

        def says(line: str, taint: int) -> None:
            with log.open("a") as file:
                file.write(f"4,1,1,-;{line}\n")
            tainted.write_text(str(taint))

        yield watch, says


def test_a_foreign_splat_and_its_taint_are_no_complaint(watched, proc, monkeypatch):
    watch, says = watched
    monkeypatch.setattr(watch, "ours", Ours(ROOT, proc=proc))
    says(f"WARNING: CPU: 1 PID: {QEMU} at arch/x86/kvm/x86.c:1795 f+0x1/0x2", 1 << 9)
    assert watch.complaints() == ()
    assert watch.complaints() == ()
    assert watch.foreign[0].startswith(f"it names qemu ({QEMU}): WARNING: CPU: 1")
    assert watch.foreign[1:] == ["the kernel is tainted now: W"]


def test_the_taint_of_a_module_is_foreign_and_that_of_a_warning_is_not(watched):
    watch, says = watched
    says("loading out-of-tree module taints kernel.", 1 << 12 | 1 << 9)
    assert watch.complaints() == ("the kernel is tainted now: W",)
    assert watch.foreign == ["the kernel is tainted now: O"]
