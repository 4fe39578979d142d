"""A host that has not enough of something gets no verdict: no FAIL, and the limit by its name."""

import ctypes
import errno
import json
import os
import resource
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from vmm.cli import main
from vmm.conformance.host.limits import ExhaustedError, exhausted, limit_of, raise_if_exhausted
from vmm.conformance.kernel import threads
from vmm.conformance.language.script import done
from vmm.errors import KvmError

THEMES = ("parked.*", "exits.registers*", "reentry.*", "locks.*", "vcpus.*")
PIDS = Path("/sys/fs/cgroup/pids")


def check(tmp_path: Path, *command: str, limit=None) -> tuple[subprocess.CompletedProcess, list]:
    """Run some cases where there is little; return the run and the records of its cases."""
    run = subprocess.run(
        [*command, sys.executable, "-P", "-m", "vmm", "check", "-j2", "-o", tmp_path, *THEMES],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        preexec_fn=limit,
        timeout=120,
    )
    file = tmp_path / "results.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return run, [case for case in map(json.loads, lines) if case["type"] == "case"]


def assert_no_verdict_but_the_limit(run, cases, *words: str) -> None:
    bad = [case["id"] for case in cases if case["verdict"] in ("FAIL", "TIMEOUT")]
    assert not bad, f"blamed on the kernel: {bad}"
    errors = [case["error"] for case in cases if case["verdict"] == "ERROR"]
    assert run.returncode == 2, run.stdout + run.stderr
    told = errors or [run.stderr]
    assert all(any(word in each for word in words) for each in told), told
    assert "Traceback" not in run.stderr


@pytest.mark.usefixtures("has_kvm", "has_userfaultfd")  # what can be skipped takes nothing
@pytest.mark.parametrize("descriptors", [8, 12, 15, 16, 17, 18])
def test_few_descriptors(tmp_path, descriptors):
    limits = (descriptors, descriptors)
    run, cases = check(tmp_path, limit=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limits))
    # A worker that has no descriptor to begin with ends; what ended it stands on its stderr.
    assert_no_verdict_but_the_limit(run, cases, "ulimit -n", "the worker exited with status 1")


def refuse(number: int) -> None:
    """Have the kernel refuse a system call to this process from now on, as a container does."""
    load, same, end = 0x20, 0x15, 0x06  # BPF_LD | BPF_W | BPF_ABS, BPF_JMP | BPF_JEQ, BPF_RET
    refused = 0x50000 | errno.EPERM  # SECCOMP_RET_ERRNO
    code = ((load, 0, 0, 0), (same, 0, 1, number), (end, 0, 0, refused), (end, 0, 0, 0x7FFF0000))
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in code))
    head = struct.pack("HxxxxxxQ", len(code), ctypes.addressof(program))
    libc = ctypes.CDLL(None)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, head) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


@pytest.mark.usefixtures("has_kvm")
def test_a_profile_without_pidfd_open_is_named(tmp_path):
    run, cases = check(tmp_path, limit=lambda: refuse(434))
    assert (run.returncode, cases) == (2, [])
    assert "pidfd_open is refused" in run.stderr and "seccomp" in run.stderr
    assert run.stderr.count("\n") == 1


@pytest.fixture
def few_pids(tmp_path):
    """A pids cgroup of our own, or a skip that says why there is none."""
    group = PIDS / f"msrward-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no pids cgroup to make: {error.strerror}")
    yield group
    group.rmdir()


@pytest.mark.usefixtures("has_kvm")
@pytest.mark.parametrize("processes", [3, 4, 5, 7])
def test_few_processes(tmp_path, few_pids, processes):
    (few_pids / "pids.max").write_text(str(processes))
    entering = f'echo $$ > {few_pids}/cgroup.procs && exec "$@"'
    run, cases = check(tmp_path, "/bin/sh", "-c", entering, "sh")
    assert_no_verdict_but_the_limit(run, cases, "ulimit -u")


@pytest.mark.usefixtures("has_kvm", "has_userfaultfd")
@pytest.mark.parametrize("megabytes", [38, 41, 44, 50, 56])
def test_little_memory(tmp_path, megabytes):
    limits = (megabytes << 20, megabytes << 20)
    run, cases = check(tmp_path, limit=lambda: resource.setrlimit(resource.RLIMIT_AS, limits))
    assert_no_verdict_but_the_limit(run, cases, "ulimit -v", "the worker exited with status 1")


def test_a_thread_that_dies_before_its_first_line_is_the_hosts_want_of_memory(monkeypatch):
    monkeypatch.setattr(threads, "BEGINS_WITHIN", 0.3)
    monkeypatch.setattr(threads._thread, "start_new_thread", lambda *_: 1)
    with pytest.raises(ExhaustedError, match="a new thread: ENOMEM, no more memory: raise ulimit"):
        threads.Task(lambda: done)


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOMEM, "no")])
def test_a_command_that_runs_out_of_memory_names_the_limit_in_one_line(error, monkeypatch, capsys):
    def fail(_):
        raise error

    monkeypatch.setattr("vmm.cli._command", fail)
    assert main(["list"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "raise ulimit -v" in said


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "memory.max"),
        (RuntimeError("can't start new thread"), "pids.max"),
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
        (KvmError(errno.ENOMEM, "KVM_CREATE_VM"), "KVM_CREATE_VM: Cannot allocate memory: no more"),
        (BlockingIOError(errno.EAGAIN, "again"), "pids.max"),
        (ExhaustedError("told"), "told"),
        (ImportError("x.so: failed to map segment from shared object"), "raise ulimit -v"),
    ],
)
def test_each_limit_has_a_name(error, words):
    assert words in (limit_of(error) or "")


NO_LIMIT = [ValueError("x"), OSError(errno.EINVAL, "x"), RuntimeError("x"), ImportError("no x")]


@pytest.mark.parametrize("error", NO_LIMIT)
def test_what_is_no_limit_has_none(error):
    assert limit_of(error) is None


def test_what_the_contract_answers_is_no_limit():
    for number in (errno.EINVAL, errno.EFAULT, errno.EIO, errno.ENOTTY, errno.EEXIST, errno.EINTR):
        assert exhausted(number, "ioctl") is None
        raise_if_exhausted(KvmError(number, "ioctl"))


def test_no_case_expects_what_a_limit_answers_but_of_the_limit_that_it_sets():
    from vmm.conformance.cases import CASES
    from vmm.conformance.host.limits import LIMITS
    from vmm.conformance.language.script import Rejected

    expected = {
        (case.id, event.errno)
        for case in CASES
        if not case.observes
        for event in case.expected
        if isinstance(event, Rejected) and event.errno in LIMITS
    }
    set_by_itself = {
        (case.id, errno.EMFILE)
        for case in CASES
        if any(getattr(action, "no_fd", False) for action in case.actions)
    }
    assert expected and expected <= set_by_itself
