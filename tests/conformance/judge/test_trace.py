"""A trace of the player becomes records: the verdicts of a check, and none that was not earned."""

import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vmm.conformance.c.tape import VERSION, Alone, crc_of, entries, is_playable, tape
from vmm.conformance.cases import CASES
from vmm.conformance.judge.judging import judge
from vmm.conformance.judge.lines import TraceError
from vmm.conformance.judge.recording import Options
from vmm.conformance.judge.trace import Reading
from vmm.conformance.kernel.backend import KvmBackend
from vmm.conformance.language import script as words
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import done, enable_exits, install, rdmsr, returned
from vmm.conformance.oracle.refused import asked_alone
from vmm.conformance.records.verdict import Verdict
from vmm.exits import RdmsrExit
from vmm.filter import default_allow
from vmm.msr import FILTER, msr_name

PLAYER = Path(sys.executable).with_name("msrward-player")
SCRIPT = enable_exits(FILTER), install(default_allow().deny(1)), rdmsr(1)
TRACE = done, done, RdmsrExit(1, FILTER), returned(0x1122334455667788)
ONE, TWO = (Case(name, "A promise.", "R18", SCRIPT, TRACE) for name in ("a.one", "a.two"))
CRC = crc_of(tape([ONE, TWO]))
STEPS = "done", "RdmsrExit(0x1, FILTER), returned(0x1122334455667788)"


def played(number, how="ok", steps="1*2 2"):
    return [f"begin {number}", f"done {number} 1 {how} {steps}"]


HEAD = [
    f"msrward-player {VERSION:08x} {CRC:08x} 2",
    r"fact /proc/sys/kernel/osrelease 6.99.0\x0a",
    "fact /sys/module/kvm/parameters/ignore_msrs N\\x0a",
    "capability KVM_CAP_X86_MSR_FILTER 1",
    *(f"text {number} {text}" for number, text in enumerate(STEPS, 1)),
]
GOOD = [*HEAD, *played(0), *played(1), "over 2"]


def read(lines, cases=(ONE, TWO)):
    reading = Reading(cases, Options())
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
    "extra, steps, verdict",
    [
        ("returned(0x1)", "1*2 3", Verdict.FAIL),
        ("", "1*2", Verdict.FAIL),
        ("", "", Verdict.FAIL),
        ("", "1*2 2 1", Verdict.ERROR),
        ("", "1*9 2", Verdict.ERROR),
        ("", "1 1 9", Verdict.ERROR),
        ("", "PASS", Verdict.ERROR),
        ("PASS", "1*2 3", Verdict.ERROR),
        ("whatever", "1*2 3", Verdict.FAIL),
        ("unfiltered", "1*2 3", Verdict.FAIL),
        ("RdmsrExit(0x1, FILTER), returned(ANY)", "1*2 3", Verdict.ERROR),
    ],
)
def test_what_was_not_seen_passes_no_case(extra, steps, verdict):
    text = [f"text 3 {extra}"] if extra else []
    lines = [*HEAD, *text, *played(0, steps=steps), *played(1), "over 2"]
    assert verdicts(lines) == {"a.one": verdict, "a.two": Verdict.PASS}


@pytest.mark.parametrize(
    "how, verdict",
    [
        ("timeout", Verdict.TIMEOUT),
        ("stuck", Verdict.TIMEOUT),
        ("died-11", Verdict.ERROR),
        ("exited-2", Verdict.ERROR),
        ("PASS", Verdict.ERROR),
    ],
)
def test_a_case_that_did_not_end_well_has_no_good_verdict(how, verdict):
    lines = [*HEAD, *played(0, how), *played(1), "over 2"]
    assert verdicts(lines) == {"a.one": verdict, "a.two": Verdict.PASS}


@pytest.mark.parametrize("how", ["ok", "timeout", "died-11"])
def test_the_time_of_a_case_is_what_the_player_took(how):
    lines = [*HEAD, "begin 0", f"done 0 1234 {how} 1*2 2", *played(1), "over 2"]
    assert [record["ms"] for record in read(lines)[1]] == [1234.0, 1.0]


def test_what_a_worker_said_is_in_the_error():
    lines = [*HEAD, "begin 0", r"said 0 KVM_CREATE_VM: \x1b[2J", "done 0 1 exited-2"]
    (record,) = read(lines)[1]
    assert record["error"] == "the player's worker exited-2: KVM_CREATE_VM: \x1b[2J"


def test_a_need_that_is_not_there_skips_what_has_it():
    case = Case("a.race", "", "", SCRIPT, TRACE, needs=("userfaultfd",))
    head = f"msrward-player {VERSION:08x} {crc_of(tape([case])):08x} 2"
    lines = [head, *HEAD[1:], "begin 0", "lacks 0 userfaultfd run as root", "done 0 1 ok"]
    reading, (record,) = read([*lines, "without 1 userfaultfd", "over 2"], (case,))
    assert (record["verdict"], record["reason"]) == (Verdict.SKIP, "run as root")
    assert reading.is_over


@pytest.mark.parametrize(
    ("how", "said", "verdict"),
    [
        ("exited-2", "KVM_SET_REGS: Invalid argument", Verdict.SKIP),
        ("exited-2", "userfaultfd: Too many open files", Verdict.ERROR),
        ("exited-2", "fork: Resource temporarily unavailable", Verdict.ERROR),
        ("died-9", "", Verdict.ERROR),
        ("timeout", "", Verdict.ERROR),
    ],
)
def test_what_a_limit_keeps_from_being_found_out_is_not_lacking(how, said, verdict):
    case = Case("a.race", "", "", SCRIPT, TRACE, needs=("userfaultfd",))
    head = f"msrward-player {VERSION:08x} {crc_of(tape([case])):08x} 2"
    trial = ["begin 0", *([f"said 0 {said}"] if said else []), f"done 0 1 {how}"]
    _, (record,) = read([head, *HEAD[1:], *trial, *played(1), "over 2"], (case,))
    assert record["verdict"] is verdict
    assert f"the player {how}" in record.get("error", "") + record.get("reason", "")
    assert said in record.get("error", "") + record.get("reason", "")


def test_a_splat_fails_the_cases_that_ran():
    log = r"log 4,77,5,-;WARNING: CPU: 0 PID: 9 at arch/x86/kvm/x86.c:1 kvm_msr+0x1/0x2"
    begin, done_ = played(0)
    records = {
        each["id"]: each for each in read([*HEAD, begin, log, done_, *played(1), "over 2"])[1]
    }
    assert records["a.one"]["verdict"] is Verdict.FAIL and records["a.one"]["splats"]
    assert records["a.two"]["verdict"] is Verdict.PASS


@pytest.mark.parametrize(
    ("pids", "blamed"),
    [
        ((" 8", " 9"), ["a.two"]),
        ((" 9", " 8"), ["a.one"]),
        ((" 7", " 8"), ["a.one", "a.two"]),
        (("", ""), ["a.one", "a.two"]),
        (("", " 9"), ["a.two"]),
    ],
)
def test_a_splat_is_of_the_case_whose_worker_it_names(pids, blamed):
    log = r"log 4,77,5,-;WARNING: CPU: 0 PID: 9 at arch/x86/kvm/x86.c:1 kvm_msr+0x1/0x2"
    begins = [f"begin {number}{pid}" for number, pid in enumerate(pids)]
    dones = [played(number)[1] for number in range(2)]
    records = read([*HEAD, *begins, log, *dones, "over 2"])[1]
    assert [each["id"] for each in records if "splats" in each] == blamed


BAD = {
    "a worker that is no process": [*HEAD, "begin 0 x"],
    "nothing of a player": ["Linux version 6.99"],
    "another version": [f"msrward-player 00000002 {CRC:08x} 2"],
    "another tape": [f"msrward-player {VERSION:08x} 00000000 2"],
    "a verdict of its own": [*HEAD, "PASS a.one"],
    "a case that nobody asked for": [*HEAD, "begin 2"],
    "a case of no number": [*HEAD, "begin -1"],
    "a case twice": [*HEAD, *played(0), *played(0)],
    "a case in itself": [*HEAD, "begin 0", "begin 0"],
    "an end before the beginning": [*HEAD, "done 0 1 ok"],
    "a time that is none": [*HEAD, "begin 0", "done 0 x ok"],
    "skips what nobody said is lacking": [*HEAD, "without 0 userfaultfd"],
    "lacks what nobody asked": [*HEAD, "lacks 0 everything because"],
    "over before it is": [*HEAD, *played(0), "over 2"],
    "a text twice": [*HEAD, "text 2 done"],
    "a fact elsewhere": [HEAD[0], "fact /etc/passwd root"],
    "a fact that climbs": [HEAD[0], "fact /proc/../etc/passwd root"],
    "a fact too late": [*HEAD, *played(0), HEAD[1]],
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


def test_mutations_of_a_trace_raise_nothing_else_and_earn_nothing():
    """Fixed seeds: a case passes only where the line that says so came through whole."""
    draw = random.Random(8)
    words = ["begin", "done", "over", "lacks", "said", "text", "0", "1", "2", "1*2", "ok"]
    for _ in range(300):
        lines = list(GOOD)
        for _ in range(draw.randint(1, 3)):
            at = draw.randrange(len(lines))
            parts = lines[at].split(" ")
            parts[draw.randrange(len(parts))] = draw.choice(words)
            lines[at : at + 1] = draw.choice([[], [" ".join(parts)], [lines[at]] * 2])
        reading, records = Reading([ONE, TWO], Options()), []
        try:
            for line in lines:
                records += reading.line(line)
        except TraceError:
            continue
        for record in records:
            if record["verdict"] is Verdict.PASS:
                number = {"a.one": 0, "a.two": 1}[record["id"]]
                assert any(
                    re.fullmatch(rf"done {number} \d ok (1\*2|1 1) 2", line) for line in lines
                )


LOOP = next(
    case
    for case in CASES
    if is_playable(case) and len(asked_alone(case)) == 1 and set(case.all_needs) <= {"vcpus"}
)
ALONE = "text 1 gp", "text 2 returned(0x5)"


def looped(alone, *, first=True):
    """A trace of one case that has a loop: what the access does alone is told first, or last."""
    todo = entries([LOOP])
    index = rf"Msr\.{msr_name(asked_alone(LOOP)[0].index)}"
    steps = [
        re.sub(index, hex(asked_alone(LOOP)[0].index), repr(step)[1:-1].rstrip(","))
        for step in words.steps(LOOP.actions, LOOP.expected)
    ]
    texts = [f"text {number} {step}" for number, step in enumerate(steps, 3)]
    lone, case = (
        next(at for at, entry in enumerate(todo) if isinstance(entry, kind))
        for kind in (Alone, Case)
    )
    head = [f"msrward-player {VERSION:08x} {crc_of(tape([LOOP])):08x} {len(todo)}", *HEAD[1:4]]
    needs = [
        line
        for at, entry in enumerate(todo)
        if isinstance(entry, str)
        for line in (f"begin {at}", f"done {at} 0 ok ")
    ]
    asked = [f"begin {lone}", f"done {lone} 0 {alone}"]
    held = played(case, steps=" ".join(str(at) for at in range(3, 3 + len(steps))))
    order = [*asked, *held] if first else [asked[0], *held, asked[1]]
    return [*head, *ALONE, *texts, *needs, *order, f"over {len(todo)}"]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    "alone, verdict",
    [
        ("ok 1", Verdict.SKIP),
        ("ok 2", Verdict.PASS),
        ("timeout", Verdict.ERROR),
        ("died-11", Verdict.ERROR),
        ("ok 99", Verdict.ERROR),
        ("ok ", Verdict.ERROR),
    ],
)
def test_a_loop_that_only_faults_here_is_no_pass(alone, verdict, first):
    reading, (record,) = read(looped(alone, first=first), (LOOP,))
    assert record["verdict"] is verdict, record
    assert "alone is not known" in record.get("error", "") or verdict is not Verdict.ERROR
    assert (record.get("need") or "").startswith("msr:") is (verdict is Verdict.SKIP)
    assert reading.is_over and not reading.missing


def test_a_case_waits_for_what_it_asks():
    lines = looped("ok 1", first=False)
    reading = Reading([LOOP], Options())
    for line in lines[:-2]:
        assert not list(reading.line(line))
    assert reading.missing == [LOOP.id]
    with pytest.raises(TraceError, match=f"{LOOP.id} has no end"):
        list(reading.line(lines[-1]))


def test_no_case_passes_when_what_it_asks_was_not_played():
    lines = [line for line in looped("ok 1") if not line.startswith(("begin 1", "done 1"))]
    assert len(lines) == len(looped("ok 1")) - 2
    with pytest.raises(TraceError, match="has no end"):
        read(lines, (LOOP,))


def spread():
    themes = {case.id.partition(".")[0]: case for case in reversed(CASES)}
    loops = [case for case in CASES if asked_alone(case)]
    chosen = [*themes.values(), *CASES[::40], *loops]
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
    reading = Reading(cases, Options())
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
    reading = Reading([cases[each.id] or each for each in spread()], Options())
    reading.crc = crc_of(tape(spread()))  # a tape says what is expected to wait
    records = {each["id"]: each for line in traced for each in reading.line(line)}
    for name, case in cases.items():
        if case and records[name]["verdict"] is not Verdict.SKIP:
            assert records[name]["verdict"] is Verdict.FAIL, records[name]


def test_the_facts_are_those_of_a_check(traced):
    from vmm.conformance.host.facts import facts

    cases = spread()
    reading = Reading(cases, Options())
    for line in traced:
        list(reading.line(line))
    here = facts()
    told = {name: reading.host[name] for name in here if name != "machine"}
    assert told == {name: here[name] for name in told}


def test_every_line_is_documented():
    from vmm.conformance.judge import trace

    for word in trace.TAKES:
        assert re.search(rf"(?m)(^| ){word}\b", trace.__doc__), word
