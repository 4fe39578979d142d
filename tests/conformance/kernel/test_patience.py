"""Deadlines that a stopped process does not miss."""

import os
import threading
import time

import pytest

from vmm.conformance.kernel import patience
from vmm.conformance.kernel.patience import MOST, SLICE, Patience, joined, readable


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves."""
    now = [100.0]
    monkeypatch.setattr(patience.time, "monotonic", lambda: now[0])
    return now


def test_time_that_passes_in_slices_counts_in_full(clock):
    waiting = Patience(1.0)
    looks = 0
    while waiting:
        clock[0] += SLICE
        looks += 1
    assert abs(looks - 1.0 / SLICE) <= 1


def test_a_stop_of_hours_counts_as_one_look(clock):
    waiting = Patience(1.0)
    clock[0] += 36000
    assert waiting
    assert waiting.left == 1.0 - MOST


def test_what_is_over_waits_no_more(clock):
    waiting = Patience(0.05)
    assert waiting.slice() == 0.05
    clock[0] += 1
    assert not waiting
    assert waiting.slice() == 0


def test_a_thread_is_waited_for_to_its_end():
    pytest.importorskip("vmm._native")
    from vmm.conformance.kernel.threads import Task
    from vmm.conformance.language.script import done

    task = Task(lambda: time.sleep(3 * SLICE) or done)
    assert not task.wait(SLICE)
    assert task.wait(30)
    assert task.event == done
    assert task.close(1)


class Asleep(threading.Thread):
    """A thread that ends when it is joined for the third time; each time an hour goes by."""

    def __init__(self, clock):
        super().__init__()
        self.clock, self.joins = clock, 0

    def is_alive(self):
        return self.joins < 3

    def join(self, timeout=None):
        self.joins += 1
        self.clock[0] += 3600


def test_a_thread_is_not_late_by_hours_in_which_nobody_ran(clock):
    assert joined(Asleep(clock), Patience(4 * MOST))
    assert not joined(Asleep(clock), Patience(2 * MOST))


def test_a_descriptor_is_not_late_by_hours_in_which_nobody_ran(clock, monkeypatch):
    ready, tell = os.pipe()
    looks = []

    def select(descriptors, *_):
        clock[0] += 3600
        looks.append(descriptors)
        return (descriptors if len(looks) == 3 else [], [], [])

    monkeypatch.setattr(patience.select, "select", select)
    assert readable(ready, Patience(4 * MOST))
    assert looks == [[ready]] * 3
    looks.clear()
    assert not readable(ready, Patience(2 * MOST))
    os.close(ready)
    os.close(tell)
