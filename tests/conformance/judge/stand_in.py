"""A backend that does what the MSR index of a script says, and cases that ask it to.

It is legitimate where the runner alone is under test: it hangs, dies, raises and lies at will.
"""

import os
import signal

from vmm.conformance.judge.recording import Options
from vmm.conformance.judge.runner import run
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import Got, get_msr, got

GOOD, WRONG, RAISES, EXITS, DIES, HANGS, SPLATS, MUTE = range(8)
INIT, NOBODY = 1, 4194304
"""A process that is none of ours, and a pid that no process has."""
SPLAT = (
    "4,{seq},0,-;------------[ cut here ]------------\n"
    "4,{seq},0,-;WARNING: CPU: 0 PID: {pid} at arch/x86/kvm/x86.c:1 kvm_msr_allowed+0x1/0x2\n"
    "4,{seq},0,-;---[ end trace 0000000000000000 ]---\n"
)


class StandIn:
    """A backend whose ``run`` does what the script's first MSR index says."""

    def __init__(self, kmsg=None):
        self.kmsg = kmsg

    def run(self, script, *, expected=None):
        doing = script[0].index
        if doing == RAISES:
            raise RuntimeError("two\nlines")
        if doing == EXITS:
            os._exit(3)
        if doing == DIES:
            os.kill(os.getpid(), signal.SIGKILL)
        if doing == MUTE:
            os.closerange(3, 1000)
        if doing in (HANGS, MUTE):
            while True:
                signal.pause()
        if doing == SPLATS:
            self.kmsg.write_text(SPLAT.format(seq=1, pid=script[0].vcpu or os.getpid()))
        return (Got(7 if doing == WRONG else 0),)

    def lacks(self, need):
        return f"no {need} here" if need == "moon" else None

    def close(self):
        pass


class Watcher:
    interval = 5.0

    def __init__(self):
        self.records, self.ticks = {}, []

    def case(self, record):
        assert record["id"] not in self.records, "one record a case"
        self.records[record["id"]] = record

    def tick(self, running):
        self.ticks.append(tuple(running))

    def verdicts(self):
        return {name: record["verdict"] for name, record in self.records.items()}


ZERO = (got(0),)


def case(name, doing=GOOD, trace=ZERO, needs=(), **fields):
    return Case(f"t.{name}", "A sentence.", "R14", [get_msr(doing, **fields)], trace, needs)


def judge(cases, log=None, kmsg=None, **options):
    watcher = Watcher()
    watcher.stray = run(cases, lambda: StandIn(kmsg), Options(**options), watcher, log)
    return watcher
