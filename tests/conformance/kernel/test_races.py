import errno
import os
import random
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from vmm.conformance.cases import CASES
from vmm.conformance.kernel.backend import POOLED
from vmm.conformance.kernel.flight import CONTROLLED, LONGER_CONTROLLED, DisturbedError, Flight
from vmm.conformance.kernel.program import Program
from vmm.conformance.kernel.vcpus import Vcpus
from vmm.conformance.language.races import UntilRuns
from vmm.conformance.language.script import (
    REPLY,
    await_install,
    begin_install,
    blocked,
    close_vm,
    create_vcpu,
    done,
    enable_exits,
    install,
    meanwhile,
    never,
    park,
    parked,
    ran,
    rdmsr,
    rejected,
    release,
    released,
    resume_install,
    returned,
    spin,
    spinning,
    stalled,
    until_exits,
    until_runs,
)
from vmm.exits import RdmsrExit
from vmm.filter import default_allow, default_deny
from vmm.msr import FILTER, UNKNOWN, Msr

A, B = 0x474F4F00, 0x474F4F01
OLD, NEW = default_allow().deny(A), default_deny().deny(A).allow(B)
LONG = int(os.environ.get("MSRWARD_LONG", "0"))


@pytest.fixture
def backend(backend):
    if reason := backend.lacks("userfaultfd"):
        pytest.skip(reason)
    return backend


def threads_of_kvm():
    """Return how many threads KVM itself keeps in this process, one a VM in newer kernels."""
    count = 0
    for path in Path("/proc/self/task").glob("*/comm"):
        with suppress(OSError):  # it has ended meanwhile
            count += path.read_text().startswith("kvm-")
    return count


def possessions():
    """Return what a case could leave behind: threads, descriptors, children, mappings of VMs.

    A thread that Python has joined leaves /proc a moment later: it is waited for.
    """
    me = psutil.Process()
    deadline = time.monotonic() + 10
    while me.num_threads() != threading.active_count() + threads_of_kvm():
        if time.monotonic() > deadline:
            break
        os.sched_yield()
    return {
        "threads": me.num_threads(),
        "descriptors": me.num_fds(),
        "children": len(me.children()),
        "kvm_run areas": sum("kvm-vcpu" in each.path for each in me.memory_maps(grouped=False)),
    }


def returns_to(before):
    """Say whether all is as before."""
    now = possessions()
    return now == before or f"{before} -> {now}"


def fill_pool(backend):
    for _ in range(POOLED):
        backend.run((rdmsr(A), rdmsr(A, vcpu=1)))


IN_FLIGHT = {
    "a stalled install": (begin_install(OLD, stall_at=0),),
    "three stalled installs": tuple(begin_install(OLD, stall_at=0, name=name) for name in "abc"),
    "a parked vCPU": (park(1),),
    "a blocked install": (park(1), begin_install(OLD)),
    "a blocked resumed install": (begin_install(OLD, stall_at=0), park(1), resume_install()),
    "a spinning vCPU": (spin(rdmsr(Msr.STAR, vcpu=1)),),
    "a spinning vCPU that exits": (enable_exits(FILTER), install(OLD), spin(rdmsr(A, vcpu=1))),
    "a closed VM": (begin_install(OLD, stall_at=0), close_vm()),
    "all at once": (
        begin_install(OLD, stall_at=0),
        park(1),
        spin(rdmsr(Msr.STAR, vcpu=2)),
        meanwhile(install(NEW)),
    ),
}


@pytest.mark.parametrize("over", [True, False])
def test_a_vm_in_which_something_was_in_flight_is_not_used_again(backend, over):
    fill_pool(backend)
    script = (begin_install(OLD, stall_at=0), *([resume_install()] if over else []))
    backend.run(script)
    assert len(backend._pool) == (POOLED if over else POOLED - 1)


@pytest.mark.parametrize("name", IN_FLIGHT)
def test_what_a_script_leaves_in_flight_is_released(backend, name):
    backend.run((park(1), begin_install(OLD), release(1)))  # the control VM exists from here on
    fill_pool(backend)
    before = possessions()
    trace = backend.run(IN_FLIGHT[name])
    assert not any("Lost" in repr(event) for event in trace)
    fill_pool(backend)
    assert returns_to(before) is True
    assert backend.run((enable_exits(UNKNOWN), rdmsr(A)))[-1] == returned(REPLY)


def test_an_exception_in_the_middle_releases_too(backend, monkeypatch):
    from vmm.conformance.kernel.execution import Execution

    backend.run((park(1), begin_install(OLD), release(1)))
    before = possessions()

    def interrupted(self, action):
        raise KeyboardInterrupt

    monkeypatch.setattr(Execution, "_accesses", interrupted)
    with pytest.raises(KeyboardInterrupt):
        backend.run((begin_install(OLD, stall_at=0), park(1), rdmsr(A)))
    assert returns_to(before) is True


def test_while_an_install_is_stalled_the_old_filter_is_in_force(backend):
    script = (enable_exits(FILTER | UNKNOWN), install(OLD), begin_install(NEW, stall_at=1))
    script += (rdmsr(A), rdmsr(B), meanwhile(create_vcpu(1)), resume_install(), rdmsr(A), rdmsr(B))
    assert [event for event in backend.run(script) if event != returned(REPLY)] == [
        done,
        done,
        stalled,
        RdmsrExit(A, FILTER),
        RdmsrExit(B, UNKNOWN),
        done,
        done,
        RdmsrExit(A, FILTER),
        RdmsrExit(B, UNKNOWN),
    ]


def test_an_install_is_blocked_by_a_parked_reader_and_by_nothing_else(backend):
    script = (install(OLD), park(1), begin_install(NEW), release(1), await_install())
    assert backend.run(script) == (done, parked, blocked, released, done)
    for _ in range(20):
        assert backend.run((install(OLD), begin_install(NEW), meanwhile(install(OLD)))) == (
            done,
            done,
            done,
        )


def test_a_stalled_install_can_lose_its_bitmap(backend):
    script = (begin_install(NEW, stall_at=0), resume_install(fails=True))
    assert backend.run(script) == (stalled, rejected(14))


def test_a_spinning_vcpu_that_never_obeys_is_seen(backend):
    script = (enable_exits(FILTER), install(OLD), spin(rdmsr(Msr.STAR, vcpu=1)), until_runs(1))
    trace = backend.run((*script, until_exits(1)))
    assert repr(trace) == "(done, done, spinning, ran, never)"
    script = (enable_exits(FILTER), install(OLD), spin(rdmsr(A, vcpu=1)), until_exits(1))
    trace = backend.run((*script, until_runs(1)))
    assert trace == (done, done, spinning, RdmsrExit(A, FILTER), trace[-1])
    assert repr(trace[-1]) == "never"


class LateFault:
    """An install that is asleep, and whose fault is reported when somebody looks again."""

    event = None

    def __init__(self, looks):
        self.looks = looks

    def wait(self, *_):
        return False

    def is_asleep_in_an_ioctl(self):
        return True

    def read(self):
        self.looks -= 1
        return 4096 if self.looks == 0 else None

    def set_msr_filter_at(self, address):
        pass


@pytest.mark.parametrize(("looks", "seen"), [(1, stalled), (2, stalled), (99, blocked)])
def test_a_fault_that_is_reported_late_is_no_block(has_kvm, looks, seen):
    late = LateFault(looks)
    flight = Flight(lambda: late)
    flight._uffd = late
    assert flight.settle(late, 4096) == seen


@pytest.mark.alone("it measures time")
def test_a_block_is_said_late_where_it_is_not_expected(backend):
    script = (install(OLD), park(1), begin_install(NEW))
    seconds = {}
    for last in (done, blocked):
        begin = time.monotonic()
        assert backend.run(script, expected=(done, parked, last)) == (done, parked, blocked)
        seconds[last] = time.monotonic() - begin
    assert seconds[done] > LONGER_CONTROLLED * CONTROLLED > seconds[blocked]


class SlowSpinner:
    """A spinning vCPU that is seen to run, but only after ``seconds`` of waiting."""

    def __init__(self, seconds):
        self.seconds = seconds

    def rounds(self):
        return 0

    def exits(self):
        return 0

    def until(self, condition, seconds):
        return seconds >= self.seconds


@pytest.mark.parametrize(
    ("needs", "patient", "seen"),
    [(1, False, ran), (5, False, never), (5, True, ran), (60, True, never)],
)
def test_a_slow_vcpu_is_waited_for_where_never_is_not_expected(needs, patient, seen):
    vcpus = Vcpus(None, Flight(None))
    vcpus.flight.patient = patient
    vcpus.spinners[1] = SlowSpinner(needs)
    assert vcpus.until_runs(UntilRuns(1)) == seen


class HastySpinner:
    """A spinning vCPU that is a long way on whenever one looks: each round of it an exit."""

    def __init__(self, exits_too=True):
        self.at, self.exits_too = 0, exits_too

    def rounds(self):
        self.at += 10
        return self.at

    def exits(self):
        self.at += 10
        return self.at if self.exits_too else 0

    def until(self, condition, seconds):
        return any(condition() for _ in range(100))


@pytest.mark.parametrize(("exits_too", "seen"), [(True, never), (False, ran)])
def test_a_vcpu_that_goes_on_between_two_looks_does_not_seem_to_run_freely(exits_too, seen):
    vcpus = Vcpus(None, Flight(None))
    vcpus.spinners[1] = HastySpinner(exits_too)
    assert vcpus.until_runs(UntilRuns(1)) == seen


def test_after_the_whole_catalogue_nothing_is_left(has_kvm):
    from vmm.conformance.kernel.backend import KvmBackend

    before = possessions()
    cases = list(CASES)
    for number in range(max(1, -(-LONG // len(cases)))):
        random.Random(number).shuffle(cases)
        with KvmBackend() as backend:
            for case in cases:
                if not any(backend.lacks(need) for need in case.all_needs):
                    backend.run(case.actions)
    assert returns_to(before) is True
    assert threading.active_count() == 1


# --- signals of others ------------------------------------------------------------------------


def test_a_signal_that_takes_a_parked_vcpu_out_makes_the_race_anew(backend, monkeypatch):
    """SIGSTOP and SIGCONT interrupt KVM_RUN in a page fault: no install waits for it then."""
    enter, disturbed = Program.enter, []

    def enter_or_not(self):
        if not disturbed:
            disturbed.append(self)
            return -errno.EINTR
        return enter(self)

    monkeypatch.setattr(Program, "enter", enter_or_not)
    script = (park(1), release(1))
    assert backend.run(script) == (parked, released)
    assert len(disturbed) == 1


def test_a_race_that_is_disturbed_every_time_is_an_error_and_no_trace(backend, monkeypatch):
    monkeypatch.setattr(Program, "enter", lambda self: -errno.EINTR)
    with pytest.raises(DisturbedError, match="EINTR"):
        backend.run((park(1), release(1)))
