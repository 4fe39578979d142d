"""A program that never ends and tells who it is, to see what becomes of it."""

import os
import select
import signal

DEADLINE = 60
"""Seconds until a test gives up; nothing is decided by them."""
STAND_IN = """#!/bin/sh
sleep 1000 &
echo $$ $! >"$TOLD"
wait
"""


class Told:
    """A FIFO to which each ``make`` writes its pid and that of its child."""

    def __init__(self, place):
        os.mkfifo(place)
        self.fd = os.open(place, os.O_RDWR)

    def children(self, process, makes):
        """Wait until so many have begun: descriptors that are readable once they have ended."""
        over, said = os.pidfd_open(process.pid), b""
        while said.count(b"\n") < makes:
            ready, _, _ = select.select([self.fd, over], [], [], DEADLINE)
            assert self.fd in ready, (process.poll(), process.stderr.read() if ready else "")
            said += os.read(self.fd, 1000)
        os.close(over)
        return [os.pidfd_open(int(pid)) for pid in said.split()]


def ended(descriptors):
    """Say whether all these processes come to their end; the test leaves none of them."""
    left = [each for each in descriptors if not select.select([each], [], [], DEADLINE)[0]]
    for each in left:
        signal.pidfd_send_signal(each, signal.SIGKILL)
    for each in descriptors:
        os.close(each)
    return not left
