"""A trace of the player becomes records: the verdicts of a check, and none that was not earned."""

import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vmm.conformance.c.tape import crc_of, is_playable, tape
from vmm.conformance.cases import CASES
from vmm.conformance.judge.runner import Options
from vmm.conformance.judge.trace import Reading, TraceError
from vmm.conformance.judge.worker import judge
from vmm.conformance.kernel.backend import KvmBackend
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import done, enable_exits, install, rdmsr, returned
from vmm.conformance.records.verdict import Verdict
from vmm.exits import RdmsrExit
from vmm.filter import default_allow
from vmm.msr import FILTER

PLAYER = Path(sys.executable).with_name("msrward-player")
SCRIPT = enable_exits(FILTER), install(default_allow().deny(1)), rdmsr(1)
TRACE = done, done, RdmsrExit(1, FILTER), returned(0x1122334455667788)
ONE, TWO = (Case(name, "A promise.", "R18", SCRIPT, TRACE) for name in ("a.one", "a.two"))
CRC = crc_of(tape([ONE, TWO]))
STEPS = "done", "done", "RdmsrExit(0x1, FILTER), returned(0x1122334455667788)"


def played(number, name, how="ok", steps=STEPS):
    lines = [f"step {number} {at} {step}" for at, step in enumerate(steps, 1)]
    return [f"begin {number} {name}", *lines, f"done {number} 1 {how}"]


HEAD = [
    f"msrward-player 1 {CRC:08x} 2",
    r"fact /proc/sys/kernel/osrelease 6.99.0\x0a",
    "fact /sys/module/kvm/parameters/ignore_msrs N\\x0a",
    "capability KVM_CAP_X86_MSR_FILTER 1",
]
GOOD = [*HEAD, *played(0, "a.one"), *played(1, "a.two"), "over 2"]


def read(lines, cases=(ONE, TWO)):
    reading = Reading(cases, Options(), CRC)
    return reading, [record for line in lines for record in reading.line(line)]


def verdicts(lines):
    return {record["id"]: record["verdict"] for record in read(lines)[1]}


def test_a_good_trace_has_a_record_for_each_case():
    reading, records = read(GOOD)
    assert [(each["id"], each["verdict"]) for each in records] == [
        ("a.one", Verdict.PASS),
        ("a.two", Verdict.PASS),
    ]
    assert reading.is_over and reading.host["release"] == "6.99.0"
    assert reading.host["capabilities"] == {"KVM_CAP_X86_MSR_FILTER": 1}


@pytest.mark.parametrize(
    "steps, verdict",
    [
        (("done", "done", "returned(0x1)"), Verdict.FAIL),
        (("done", "done"), Verdict.FAIL),
        ((), Verdict.FAIL),
        ((*STEPS, "done"), Verdict.ERROR),
        (("done", "done", "PASS"), Verdict.ERROR),
        (("done", "done", "whatever"), Verdict.FAIL),
        (("done", "done", "unfiltered"), Verdict.FAIL),
        (("done", "done", "RdmsrExit(0x1, FILTER), returned(ANY)"), Verdict.ERROR),
    ],
)
def test_what_was_not_seen_passes_no_case(steps, verdict):
    lines = [*HEAD, *played(0, "a.one", steps=steps), *played(1, "a.two"), "over 2"]
    assert verdicts(lines) == {"a.one": verdict, "a.two": Verdict.PASS}


@pytest.mark.parametrize(
    "how, verdict",
    [
        ("timeout", Verdict.TIMEOUT),
        ("stuck", Verdict.TIMEOUT),
        ("died 11", Verdict.ERROR),
        ("exited 2", Verdict.ERROR),
        ("PASS", Verdict.ERROR),
    ],
)
def test_a_case_that_did_not_end_well_has_no_good_verdict(how, verdict):
    lines = [*HEAD, *played(0, "a.one", how), *played(1, "a.two"), "over 2"]
    assert verdicts(lines) == {"a.one": verdict, "a.two": Verdict.PASS}


def test_what_a_worker_said_is_in_the_error():
    lines = [*HEAD, "begin 0 a.one", r"said 0 KVM_CREATE_VM: \x1b[2J", "done 0 1 exited 2"]
    (record,) = read(lines)[1]
    assert record["error"] == "the player's worker exited 2: KVM_CREATE_VM: \x1b[2J"


def test_a_need_that_is_not_there_skips_what_has_it():
    case = Case("a.race", "", "", SCRIPT, TRACE, needs=("userfaultfd",))
    lines = [*HEAD, "begin 0 userfaultfd", "lacks 0 userfaultfd run as root", "done 0 1 ok"]
    reading = Reading([case], Options(), CRC)
    lines += ["without a.race userfaultfd", "over 2"]
    (record,) = [record for line in lines for record in reading.line(line)]
    assert (record["verdict"], record["reason"]) == (Verdict.SKIP, "run as root")


def test_a_splat_fails_the_cases_that_ran():
    log = r"log 4,77,5,-;WARNING: CPU: 0 PID: 9 at arch/x86/kvm/x86.c:1 kvm_msr+0x1/0x2"
    lines = [*HEAD, *played(0, "a.one")[:-1], log, "done 0 1 ok", *played(1, "a.two"), "over 2"]
    records = {each["id"]: each for each in read(lines)[1]}
    assert records["a.one"]["verdict"] is Verdict.FAIL and records["a.one"]["splats"]
    assert records["a.two"]["verdict"] is Verdict.PASS


BAD = {
    "nothing of a player": ["Linux version 6.99"],
    "another version": [f"msrward-player 2 {CRC:08x} 2"],
    "another tape": ["msrward-player 1 00000000 2"],
    "a verdict of its own": [*HEAD, "PASS a.one"],
    "a case that nobody asked for": [*HEAD, "begin 0 a.three"],
    "a case twice": [*HEAD, *played(0, "a.one"), *played(1, "a.one")],
    "a record twice": [*HEAD, *played(0, "a.one"), *played(0, "a.two")],
    "a step of no case": [*HEAD, "step 0 1 done"],
    "an end before the beginning": [*HEAD, "done 0 1 ok"],
    "skips what nobody said is lacking": [*HEAD, "without a.one userfaultfd"],
    "lacks what nobody asked": [*HEAD, "lacks 0 everything because"],
    "over before it is": [*HEAD, *played(0, "a.one"), "over 2"],
    "a fact elsewhere": [HEAD[0], "fact /etc/passwd root"],
    "a fact that climbs": [HEAD[0], "fact /proc/../etc/passwd root"],
    "a fact too late": [*HEAD, *played(0, "a.one"), HEAD[1]],
    "a module of no name": [HEAD[0], "module ../../tmp"],
    "a long line": [*HEAD, "log " + "x" * (1 << 18)],
}


@pytest.mark.parametrize("bad", BAD)
def test_what_no_player_writes_is_refused(bad):
    with pytest.raises(TraceError, match=r"^[ -~]+$"):
        read(BAD[bad])


def test_a_flood_is_refused():
    reading, _ = read(HEAD)
    with pytest.raises(TraceError, match="longer than 64 MiB"):
        for _ in range(1000):
            list(reading.line("log " + "x" * 200_000))


def number_of(name, lines):
    begins = (re.fullmatch(rf"begin (\d+) {name}", line) for line in lines)
    return next(begin[1] for begin in begins if begin)


def test_mutations_of_a_trace_raise_nothing_else_and_earn_nothing():
    """Fixed seeds: a case passes only where its very lines came through whole."""
    draw = random.Random(8)
    words = [
        "begin",
        "step",
        "done",
        "over",
        "lacks",
        "said",
        "0",
        "1",
        "2",
        "a.one",
        "a.two",
        "ok",
    ]
    for _ in range(300):
        lines = list(GOOD)
        for _ in range(draw.randint(1, 3)):
            at = draw.randrange(len(lines))
            parts = lines[at].split(" ")
            parts[draw.randrange(len(parts))] = draw.choice(words)
            lines[at : at + 1] = draw.choice([[], [" ".join(parts)], [lines[at]] * 2])
        reading = Reading([ONE, TWO], Options(), CRC)
        records = []
        try:
            for line in lines:
                records += reading.line(line)
        except TraceError:
            continue
        for record in records:
            if record["verdict"] is Verdict.PASS:
                number = number_of(record["id"], lines)
                begun = lines.index(f"begin {number} {record['id']}")
                whole = [f"step {number} {at} {step}" for at, step in enumerate(STEPS, 1)]
                here = [each for each in lines[begun:] if each.startswith(f"step {number} ")]
                assert here[:3] == whole


def spread():
    themes = {case.id.partition(".")[0]: case for case in reversed(CASES)}
    chosen = [*themes.values(), *CASES[::40]]
    return [
        case
        for case in {case.id: case for case in chosen}.values()
        if not case.thorough and is_playable(case)
    ]


@pytest.fixture(scope="session")
def traced(has_kvm):
    if not PLAYER.exists():
        pytest.skip("no msrward-player: there was no static libc to link it with")
    data = tape(spread())
    ran = subprocess.run([PLAYER, "-j2", "-"], input=data, capture_output=True, timeout=300)
    assert (ran.returncode, ran.stderr) == (0, b"")
    return ran.stdout.decode().splitlines()


def test_the_player_sees_what_the_executor_sees(traced):
    cases = spread()
    reading = Reading(cases, Options(), crc_of(tape(cases)))
    records = {each["id"]: each for line in traced for each in reading.line(line)}
    assert reading.is_over and len(cases) > 40
    with KvmBackend() as backend:
        for case in cases:
            want = judge(case, backend)
            have = records[case.id]
            assert have["verdict"] == want["verdict"], have
            assert have.get("observation") == want.get("observation"), case.id


def shortened(case):
    """The case as if its last event had not to come."""
    if case.observes or "sweep" in case.id:
        return None
    return replace(case, trace=case.expected[:-1])


def test_a_wrong_expectation_fails_by_what_the_player_saw(traced):
    cases = {case.id: shortened(case) for case in spread()}
    reading = Reading(
        [cases[each.id] or each for each in spread()], Options(), crc_of(tape(spread()))
    )
    records = {each["id"]: each for line in traced for each in reading.line(line)}
    for name, case in cases.items():
        if case and records[name]["verdict"] is not Verdict.SKIP:
            assert records[name]["verdict"] is Verdict.FAIL, records[name]


def test_the_facts_are_those_of_a_check(traced):
    from vmm.conformance.host.facts import facts

    cases = spread()
    reading = Reading(cases, Options(), crc_of(tape(cases)))
    for line in traced:
        list(reading.line(line))
    here = facts()
    told = {name: reading.host[name] for name in here if name != "machine"}
    assert told == {name: here[name] for name in told}


def test_every_line_is_documented():
    from vmm.conformance.judge import trace

    for word in trace.TAKES:
        assert re.search(rf"(?m)(^| ){word}\b", trace.__doc__), word
