"""Test files side by side: ``--jobs N`` runs N of them at a time, each in a process of its own.

It is one run of pytest, which forks when it has collected: -k, -x, --lf, --durations and the
summary stay pytest's own. No process has a thread but the one that tests, for msrward forks and
that is not safe beside threads. (A worker of pytest-xdist takes its orders in a second one.)

A test that cannot run beside others is marked ``alone(why)``, and runs after them.
"""

import fcntl
import gc
import os
import signal
import traceback
import warnings
from contextlib import suppress
from itertools import groupby, pairwise
from multiprocessing.connection import Pipe, wait

import pytest

DEAREST = (
    *("test_style.py", "test_compilers.py", "test_scripts.py", "test_planted.py"),
    *("test_backend.py", "test_both.py", "test_export.py", "test_bench.py", "test_mutants.py"),
    *("test_races.py", "test_cluster.py", "test_sampled.py", "test_cli_lab.py", "test_player.py"),
)
"""Begun first, so that none of them is still at it when nothing else is left."""


def pytest_addoption(parser):
    parser.addoption(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="run N test files side by side (none for 1, -s and a debugger)",
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "alone(why): run it beside no other test, but after them")


def pytest_collection_modifyitems(items):
    for item in items:
        if (alone := item.get_closest_marker("alone")) and not alone.args:
            raise pytest.UsageError(f"{item.nodeid}: alone, and why?")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session):
    beside = by_file(item for item in session.items if not item.get_closest_marker("alone"))
    alone = by_file(item for item in session.items if item.get_closest_marker("alone"))
    if len(beside) < 2 or not may_fork(session):
        return None
    session.config._tmp_path_factory.getbasetemp()  # one for all: who makes it cleans it up
    gc.freeze()
    run(session, beside, session.config.option.jobs)
    run(session, alone, 1)
    return True


def by_file(items):
    """Return the items of each file, those of the dearest first."""
    order = {name: number for number, name in enumerate(DEAREST)}
    files = [[*each] for _, each in groupby(items, lambda item: item.path)]
    return sorted(files, key=lambda each: order.get(each[0].path.name, len(order)))


def may_fork(session):
    """Say whether anything is to run at all, and nobody looks on who would be in its way."""
    option = session.config.getoption
    watched = any(option(name, False) for name in ("usepdb", "trace", "setupshow", "collectonly"))
    watched = watched or option("capture", "no") == "no"
    return option("jobs") > 1 and not watched and not session.testsfailed


def run(session, files, jobs):
    """Run each file, ``jobs`` of them at a time; when this ends, so has all that it began."""
    waiting, running, lifeline = [*reversed(files)], [], os.pipe()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(File(session, waiting.pop(), lifeline))
            wait([end for file in running for end in (file.tells, file.pidfd)])
            for file in [each for each in running if not each.goes_on()]:
                running.remove(file)
                file.give_up_the_rest()
            if session.shouldfail:
                raise session.Failed(session.shouldfail)
            if session.shouldstop:
                raise session.Interrupted(session.shouldstop)
    finally:
        os.close(lifeline[1])  # Ctrl-C for all that still run
        end(running)
        os.close(lifeline[0])


def end(running):
    """Wait until they have cleaned up; who is impatient and interrupts this as well kills them."""
    try:
        for file in running:
            while not file.is_over and file.goes_on():
                wait([file.tells, file.pidfd])
    finally:
        for file in running:
            if not file.is_over:
                os.killpg(file.pid, signal.SIGKILL)
                file.close()


class File:
    """The tests of a file in a process, and what it told and this process has not said yet."""

    def __init__(self, session, items, lifeline):
        self.session, self.left, self.told = session, {item.nodeid: item for item in items}, []
        self.is_over, self.why = False, "its process ended"
        self.tells, tell = Pipe(duplex=False)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # until each knows who it is
        self.pid = os.fork()
        if self.pid == 0:
            become(session, items, lifeline, tell)
        self.pidfd = os.pidfd_open(self.pid)
        os.setpgid(self.pid, self.pid)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        tell.close()

    def goes_on(self):
        """Hear what is new, and return whether more may come."""
        dead = wait([self.pidfd], 0)
        with suppress(EOFError):
            while self.tells.poll():
                self.hear(*self.tells.recv())
        if dead:
            self.close()
            self.say()
        return not dead

    def hear(self, name, said):
        """Keep it until the file ends or a test fails: the lines of a file stand together."""
        if name == "broke":
            self.why = said
            return
        self.told.append((name, said))
        if name == "pytest_runtest_logfinish":
            self.left.pop(said["nodeid"], None)
        if name == "pytest_runtest_logreport" and said["data"]["outcome"] == "failed":
            self.say()

    def say(self):
        """Call the hooks here that were called there."""
        told, self.told = self.told, []
        config = self.session.config
        for name, said in told:
            if name == "pytest_warning_recorded":
                config.hook.pytest_warning_recorded.call_historic(kwargs=said)
            elif name == "pytest_runtest_logreport":
                report = config.hook.pytest_report_from_serializable(config=config, **said)
                config.hook.pytest_runtest_logreport(report=report)
            else:
                getattr(config.hook, name)(**said)

    def give_up_the_rest(self):
        """Fail the tests that have not ended, but for those that -x spares."""
        if self.session.shouldfail or self.session.shouldstop:
            return
        for item in self.left.values():
            report = pytest.TestReport(
                item.nodeid, item.location, {}, "failed", self.why, when="call"
            )
            item.ihook.pytest_runtest_logreport(report=report)

    def close(self):
        self.is_over = True
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        if status < 0:
            self.why = f"its process was ended by {signal.Signals(-status).name}"
        self.tells.close()
        os.close(self.pidfd)


def become(session, items, lifeline, tell):
    """Be the process of a file, from the fork to the end."""
    try:
        os.setpgid(0, 0)  # Ctrl-C reaches the first process alone, which passes it on once
        line = hold(*lifeline)
        signal.signal(signal.SIGINT, once(line))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        capture_anew(session.config)
        play(session, items, tell, line)
    except BaseException:
        tell.send(("broke", traceback.format_exc()))
    finally:
        os._exit(0)


def hold(line, write_end):
    """Be interrupted, with all in the group, when the first process closes its end or is killed."""
    os.close(write_end)
    own = os.open(f"/proc/self/fd/{line}", os.O_RDONLY | os.O_CLOEXEC)  # a description of its own
    os.close(line)
    fcntl.fcntl(own, fcntl.F_SETOWN, -os.getpid())
    fcntl.fcntl(own, fcntl.F_SETSIG, signal.SIGINT)
    fcntl.fcntl(own, fcntl.F_SETFL, os.O_ASYNC)
    return own


def once(own):
    """Return a handler for SIGINT as Python has it, after which the line interrupts no more.

    Nobody has its other end then, and so the kernel tells of each process that lets go of this one.
    """

    def interrupted(*_):
        fcntl.fcntl(own, fcntl.F_SETFL, 0)
        raise KeyboardInterrupt

    return interrupted


def capture_anew(config):
    """Have files of its own for what is captured: those of the first process have one position."""
    capture = config.pluginmanager.get_plugin("capturemanager")
    capture.stop_global_capturing()
    capture.start_global_capturing()
    capture.suspend_global_capture()


def play(session, items, tell, line):
    """Run the tests as pytest does, and tell what its hooks hear.

    The code under test may have taken the interrupt for its own: then ``line`` tells of it.
    """
    plugins = session.config.pluginmanager
    plugins.set_blocked("terminalreporter")
    plugins.register(teller := Teller(session.config))
    teller.tell = tell.send  # not before: the plugin has been told by now what was warned of
    try:
        for item, following in pairwise([*items, None]):
            session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.shouldfail or session.shouldstop or wait([line], 0):
                break
    finally:
        plugins.get_plugin("runner").pytest_sessionfinish(session)


class Teller:
    """Hooks that tell what they were called with."""

    def __init__(self, config):
        self.config, self.tell = config, lambda _: None

    def pytest_runtest_logstart(self, nodeid, location):
        self.tell(("pytest_runtest_logstart", {"nodeid": nodeid, "location": location}))

    def pytest_runtest_logfinish(self, nodeid, location):
        self.tell(("pytest_runtest_logfinish", {"nodeid": nodeid, "location": location}))

    def pytest_runtest_logreport(self, report):
        data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        self.tell(("pytest_runtest_logreport", {"data": data}))

    def pytest_warning_recorded(self, warning_message, when, nodeid, location):
        w = warning_message
        text = warnings.WarningMessage(str(w.message), w.category, w.filename, w.lineno)
        said = {"when": when, "nodeid": nodeid, "location": location}
        self.tell(("pytest_warning_recorded", {"warning_message": text, **said}))
