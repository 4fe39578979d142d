"""Exported selftests on a kernel of the lab, beside what msrward says of the same cases there."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vmm.conformance.host.told import lacks_of
from vmm.conformance.judge.recording import Options
from vmm.conformance.language.case import Case
from vmm.conformance.records.plain import plain
from vmm.conformance.records.summary import of_a_program
from vmm.conformance.records.verdict import Verdict
from vmm.lab import vendors
from vmm.lab.errors import LabError
from vmm.lab.initramfs.player import Playing
from vmm.lab.kernels.kernels import Kernel
from vmm.lab.machines import machine
from vmm.lab.machines.emulation import Listener
from vmm.lab.machines.machine import Outcome
from vmm.lab.runs.claims import Damaged
from vmm.lab.runs.order import CASE_SECONDS, WORKERS_A_CPU
from vmm.lab.runs.played import Played

VERDICTS = {0: Verdict.PASS, 4: Verdict.SKIP, 254: Verdict.FAIL, 1: Verdict.FAIL}
"""What the harness's exit statuses mean: a failed TEST_ASSERT exits with 254."""
ENDED = re.compile(r"ended (\d{1,3}) ([a-z0-9_]{1,200})")
RUN = """
for test in "$@"; do
    cat /selftests/$test >/tmp/test && /bin/busybox chmod 755 /tmp/test
    /bin/busybox timeout 60 /tmp/test >/tmp/said 2>&1
    echo ended $? $test
    /bin/busybox tail -n 12 /tmp/said | /bin/busybox cut -c1-300
done
"""
"""Runs the tests in the guest; each line of a test's end comes after that which names it."""


@dataclass
class Ran:
    """How a test ended in the guest, and the end of what it said."""

    status: int
    said: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> Verdict:
        """What its exit status means; ERROR for one that no test of the harness ends with."""
        return VERDICTS.get(self.status, Verdict.ERROR)


def run_selftests(
    kernel: Kernel, vendor: str, programs: Mapping[str, bytes], *, timeout: float = 600.0
) -> dict[str, Ran]:
    """Return how each program ended on ``kernel``; :class:`LabError` if one has no end."""
    ran: dict[str, Ran] = {}
    last: list[Ran] = []

    def line(text: str) -> None:
        if (ended := ENDED.fullmatch(text)) and ended[2] in programs and ended[2] not in ran:
            last[:] = [ran.setdefault(ended[2], Ran(int(ended[1])))]
        elif last and len(last[0].said) < 12:
            last[0].said.append(plain(text))

    files = {f"selftests/{name}": program for name, program in programs.items()}
    argv = ("sh", "-c", RUN, "sh", *programs)
    result = machine.boot(kernel, vendor, argv, files=files, on_line=line, timeout=timeout)
    if result.outcome is not Outcome.DONE:
        raise LabError(f"{kernel.name} on {vendor}: {result.reason}")
    if missing := [name for name in programs if name not in ran]:
        raise LabError(f"{kernel.name} on {vendor}: {missing[0]} was not run to its end")
    return ran


def played_verdicts(kernel: Kernel, vendor: str, cases: Sequence[Case]) -> dict[str, Verdict]:
    """Return what msrward says of ``cases`` on ``kernel``; :class:`LabError` if it cannot."""
    row, emulated = vendors.of(vendor), not machine.emulator_of(vendor).accelerated
    jobs = WORKERS_A_CPU * row.cpus
    options = Options(jobs, CASE_SECONDS)
    played = Played(cases, options, lacks_of(row.lacks) if emulated else {})
    verdicts: dict[str, Verdict] = {}

    def line(text: str) -> None:
        for record, _ in played.take(text):
            if record["type"] == "case":
                verdicts[record["id"]] = of_a_program(record)

    try:
        result = machine.play(
            kernel, vendor, Playing(played.tape, jobs), listener=Listener(line), timeout=600.0
        )
    except Damaged as error:
        raise LabError(f"{kernel.name} on {vendor}: {error}") from None
    if doubt := played.doubt(result):
        raise LabError(f"{kernel.name} on {vendor}: {doubt}")
    return verdicts
