"""A scheduler and workers of Dask on this machine: real processes, ended by their ids."""

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager

DEADLINE = 120.0


def wait_for(what):
    """Wait until something is so."""
    deadline = time.monotonic() + DEADLINE
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def process(*words, **env):
    """Run a part of Dask by its module; it is ended by its id."""
    own = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **env}
    log = subprocess.DEVNULL
    with subprocess.Popen(
        [sys.executable, "-P", "-m", *words], env=own, stdout=log, stderr=log
    ) as started:
        try:
            yield started
        finally:
            started.terminate()
            started.wait(DEADLINE)


@contextmanager
def scheduler(place):
    """Start a scheduler; yield its process and its address."""
    file = place / "scheduler.json"
    words = ("--scheduler-file", file, "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
    with process("distributed.cli.dask_scheduler", *map(str, words)) as started:
        wait_for(lambda: file.exists() and file.read_text().strip().endswith("}"))
        yield started, json.loads(file.read_text())["address"]


@contextmanager
def worker(address, **env):
    """Start a worker of one thread, without a nanny: what is killed stays away."""
    words = (address, "--no-nanny", "--nthreads", "1", "--no-dashboard", "--host", "127.0.0.1")
    with process("distributed.cli.dask_worker", *words, **env) as started:
        yield started


def workers_of(address):
    """Return how many workers a scheduler has."""
    import distributed

    with distributed.Client(address, set_as_default=False) as client:
        return len(client.nthreads())
