"""Machines side by side: what stands for a boot here is a function that tells its listener."""

import threading
import time

import pytest

from vmm.lab.errors import LabError
from vmm.lab.machines import abreast as module
from vmm.lab.machines.abreast import abreast, carried
from vmm.lab.machines.emulation import Listener
from vmm.lab.machines.machine import LabResult, Outcome

PATIENCE = 30


def result(name):
    return LabResult(Outcome.DONE, 0, (), (), 1.0, 2.0, name)


def until_ended(ended):
    """Return a boot that goes on until its listener ends it, or as long as anybody waits."""

    def boot(listener):
        listener.line("begun")
        patience = time.monotonic() + PATIENCE
        try:
            while time.monotonic() < patience:
                listener.tick()
                ended.begun.set()
        except BaseException:
            ended.ended.set()
            raise
        return result("never ended")

    return boot


class Ended:
    def __init__(self):
        self.begun, self.ended = threading.Event(), threading.Event()


def test_boots_are_at_once_and_told_in_this_thread():
    both = threading.Barrier(2, timeout=PATIENCE)
    here, seen = threading.get_ident(), []

    def boot(listener):
        listener.start(7.0)
        both.wait()
        for number in range(100):
            listener.line(str(number))
        return result(str(threading.get_ident()))

    def listener(name):
        def take(what):
            assert threading.get_ident() == here
            seen.append((name, what))

        return Listener(take, take)

    results = abreast([boot, boot], [listener("a"), listener("b")])
    told = [7.0, *map(str, range(100))]
    for name in "ab":
        assert [what for who, what in seen if who == name] == told
    assert str(here) not in {each.emulator for each in results} and len(results) == 2


def test_one_boot_needs_no_thread():
    here = threading.get_ident()
    (only,) = abreast([lambda listener: result(str(threading.get_ident()))], [Listener()])
    assert only.emulator == str(here)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError("damaged")])
def test_what_ends_the_telling_ends_every_machine(error):
    ended = Ended()

    def take(line):
        ended.begun.wait(PATIENCE)
        raise error

    with pytest.raises(error if isinstance(error, type) else type(error)):
        abreast([until_ended(ended)] * 2, [Listener(take)] * 2)
    assert ended.ended.is_set()


def test_a_boot_that_fails_ends_the_others():
    ended = Ended()

    def refuse(listener):
        ended.begun.wait(PATIENCE)
        raise LabError("no qemu here")

    with pytest.raises(LabError, match="no qemu here"):
        abreast([refuse, until_ended(ended)], [Listener()] * 2)
    assert ended.ended.is_set()


def test_someone_is_told_that_time_passes():
    ticks = threading.Event()

    def boot(listener):
        assert ticks.wait(PATIENCE)
        return result("q")

    abreast([boot, boot], [Listener(tick=ticks.set), Listener()])
    assert ticks.is_set()


def test_no_more_guests_at_once_than_fit_the_memory(monkeypatch):
    monkeypatch.setattr(module.cpus, "default_jobs", lambda: 8)
    for gib, jobs in ((64, 8), (4, 3), (1, 1), (0, 1)):
        monkeypatch.setattr(module, "memory_available", lambda gib=gib: gib << 30)
        assert carried() == jobs
