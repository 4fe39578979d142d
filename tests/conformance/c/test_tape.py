"""The tape: every word has its number on both sides, and the player refuses what is damaged."""

import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from vmm.conformance.c import layout
from vmm.conformance.c import tape as tapes
from vmm.conformance.cases import CASES
from vmm.conformance.host.needs import PROBES
from vmm.conformance.kernel.backend import BY_A_GUEST
from vmm.conformance.language import script as s
from vmm.conformance.language.case import Case
from vmm.conformance.language.levels import Listed, Through
from vmm.conformance.language.script import done, enable_exits, install, rdmsr
from vmm.filter import AtEdge, MsrFilter, MsrRange, Pointer, default_allow
from vmm.msr import FILTER

SOURCES = sorted((Path(__file__).parents[3] / "native" / "player").glob("*.c"))
SOURCE = "".join(each.read_text() for each in SOURCES)
PLAYER = Path(sys.executable).with_name("msrward-player")
SMALL = Case("a.b", "", "", (enable_exits(FILTER), install(default_allow().deny(1)), rdmsr(1)), ())


@pytest.fixture(scope="session")
def player():
    if not PLAYER.exists():
        pytest.skip("no msrward-player: there was no static libc to link it with")
    return PLAYER


def play(player, data):
    return subprocess.run([player, "-"], input=data, capture_output=True, timeout=60)


def test_the_numbers_are_those_of_the_player():
    names = re.search(r"enum \{\s*ACCESS = 1,(.*?)\};", SOURCE, re.DOTALL)[1]
    enum = ["ACCESS", *re.findall(r"[A-Z]\w+", names)]
    as_python = {"ACCESS": s.Rdmsr, "AWAIT": s.AwaitInstall, "SCRIBBLE": s.ScribbleBitmaps}
    for number, name in enumerate(enum, 1):
        kind = as_python.get(name) or getattr(s, name.title().replace("_", ""))
        assert layout.WORDS[kind][0] == number, name
    assert len(enum) == max(number for number, _ in layout.WORDS.values())


def test_every_need_has_a_probe_in_c():
    known = {*re.findall(r'\{ "(\w+)", lacks_\w+ \}', SOURCE)}
    assert known == tapes.PROBED <= {*PROBES, *BY_A_GUEST}
    asked = {need for case in CASES if tapes.is_playable(case) for need in case.all_needs}
    assert asked <= known | tapes.BARE_NEEDS


def test_a_tape_that_is_whole_is_played(has_kvm, player):
    ran = play(player, tapes.tape([SMALL]))
    lines = ran.stdout.decode().splitlines()
    assert ran.returncode == 0 and lines[0].startswith(f"msrward-player {tapes.VERSION:08x} ")
    assert [line for line in lines if line.startswith("text ")] == [
        "text 1 done",
        "text 2 RdmsrExit(0x1, FILTER), returned(0x1122334455667788)",
    ]
    assert [re.sub(r"^done 0 \d+", "", line) for line in lines if line.startswith("done ")] == [
        " ok 1*2 2"
    ]
    assert lines[-1] == "over 1"


def test_a_damaged_tape_is_refused_with_one_line(player):
    whole = tapes.tape([SMALL])
    damaged = [whole[:size] for size in range(0, len(whole), 5)]
    damaged += [
        whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(0, len(whole), 5)
    ]
    for data in [*damaged, whole + b"\0"]:
        ran = play(player, data)
        assert ran.returncode == 2 and ran.stderr.count(b"\n") == 1, data
        assert ran.stderr.startswith(b"msrward-player: the tape ")


def test_a_tape_of_another_version_is_refused(player):
    whole = bytearray(tapes.tape([SMALL]))
    struct.pack_into("<I", whole, 8, 7)
    ran = play(player, bytes(whole))
    assert (ran.returncode, ran.stderr) == (
        2,
        f"msrward-player: the tape is of version 00000007, and this player of {tapes.VERSION:08x}:"
        " take both from one msrward\n".encode(),
    )


FILTER_OF_ALL = MsrFilter(
    3,
    tuple(
        MsrRange(2, 0x10, size, bits)
        for size, bits in ((8, b"\x05"), (64, Pointer.NULL), (8, AtEdge(b"\x07")))
    ),
)
ONE_OF_EACH: tuple[s.Action, ...] = (
    s.Rdmsr(1, 2, 3, 4, s.Reply(5, True, True), 6, True, True),
    s.Wrmsr(1, 2, 3, 4, s.Reply(5, False, True), 6, True, True),
    *(s.Begin(s.Rdmsr(1)), s.Spin(s.Wrmsr(1, 2))),
    *(s.Rdmsr(1, mode=mode) for mode in layout.MODES),
    *(
        s.Rdmsr(1, high=2, form="immediate"),
        s.Begin(s.Wrmsr(1, 2, form="wrmsrns")),
        s.Rdmsr(1, form="rex"),
    ),
    *(s.Begin(s.Wrmsr(1, 2, mode="real", after=after)) for after in layout.AFTER),
    *(s.Complete(s.Reply(5, True), by, 6) for by in layout.BY),
    *(s.Finish(None, 6), s.Finish(s.Reply(5), 6)),
    *(s.SetRegs(1, None, 3, "sync", 4), s.SetRegs(None, 2, -3, "ioctl", 4, 5), s.GetRegs(6)),
    *(s.EnableCap(188, (1, 2, 3, 4), 5, on) for on in layout.FILES),
    *(s.Install(FILTER_OF_ALL, 7, "vcpu", argp) for argp in (None, *layout.POINTERS)),
    *(s.Install(FILTER_OF_ALL, caller=caller) for caller in layout.CALLERS),
    *(s.ScribbleBitmaps(), s.CheckExtension(188, "vm")),
    *(s.GetMsr(1, 6), s.GetMsr(1, 6, "one_reg"), s.SetMsr(1, 2, 6), s.SetMsr(1, 2, 6, "one_reg")),
    *(s.CreateIrqchip(), s.CreateVcpu(6), s.CreateVcpu(6, True)),
    *(s.SetCpuid(feature, True, 6) for feature in (next(iter(s.CPUID_BITS)), "everything")),
    *(s.BeginInstall(FILTER_OF_ALL, 1, "a", "compat"), s.Meanwhile(s.GetRegs(6), "m")),
    *(s.ResumeInstall("a", True), s.AwaitInstall("a"), s.AwaitMeanwhile("m")),
    *(kind(6) for kind in (s.Park, s.Release, s.UntilExits, s.UntilRuns, s.StopSpin)),
    *(s.CloseVm(), s.CloseVcpu(6), s.Sweep("wrmsr", 1, 2, 3, 4, 6)),
    *(s.SetCpuidBits(1, "ecx", 2, True, 3, 6), s.SendInit(6), s.GetMpState(6)),
    *(s.WeighBitmaps(), s.XenHvmConfig(1, 2, 3), s.GetHypercallPage()),
    *(s.EnterL2(passes) for passes in ("all", "none")),
    s.EnterL2((Through(1, "read"), Through(2)), True, *[(Listed(4, 3),)] * 3, True, False, 6),
    s.EnterL2((Through(1, "read"),), fields=True, clean=True, vcpu=6),
    *(s.EnterL2("none", False), s.LeaveL2(6)),
    *(s.Execute(each, value, vcpu=6) for each, value in s.CARRIED.items()),
    *(s.Execute("cpuid", 0x4000_0000, True, 6), s.GetVcpuEvents(6), s.GetTaken(6)),
    *(s.Rewrite(what, 6) for what in layout.STATES),
    *(s.Inject(kind, 6) for kind in layout.KINDS),
    *(s.SaveNested(6), s.RestoreNested(6), s.LeaveNested(6), s.FreshVm()),
    *(s.SetMpState(3, 6), s.SendSipi(6), s.Sleep(6), s.Wake(6), s.AwaitSipi(6)),
)


def test_another_layout_of_a_tape_or_a_trace_is_another_version():
    """A player that reads what it does not know as something else would blame the kernel."""
    assert {type(action) for action in ONE_OF_EACH} == {*layout.WORDS}
    whole = tapes.tape([Case("a.b", "", "", ONE_OF_EACH, ())])
    assert re.search(r"VERSION = 0x([0-9a-f]{8});", SOURCE)[1] == f"{tapes.VERSION:08x}"
    lines = sorted(set(re.findall(r'\bsay\("([^"]+)"', SOURCE)))  # what a trace is made of
    assert "done %d %d %s%s" in lines and "begin %u %d" in lines
    computed = zlib.crc32("\n".join(lines).encode(), tapes.crc_of(whole))
    assert f"{tapes.VERSION:08x}" == f"{computed:08x}", "a new layout: tape.py and tape.c say this"


def test_what_a_step_has_beyond_its_action_is_damage(has_kvm, player):
    """An old reader of a longer action would do something else with what it leaves."""
    body = tapes.tape([SMALL])[tapes.HEADER.size :]
    step = tapes._step(rdmsr(1), None)
    at = body.rindex(step)
    longer = layout.sized(step[2:] + b"\0")
    body = struct.pack("<I", len(body) - 4 + 1) + body[4:at] + longer
    ran = play(player, with_body(body))
    assert b"the tape is damaged: a step is longer than its action" in ran.stdout, ran


def with_body(body, records=1):
    return (
        tapes.HEADER.pack(tapes.MAGIC, tapes.VERSION, records, len(body), zlib.crc32(body)) + body
    )


def test_bytes_that_mean_nothing_end_no_player_and_pass_no_case(has_kvm, player):
    """The checksum is right and the bytes are not: each mutation ends in a line, by no signal."""
    body = tapes.tape([SMALL])[tapes.HEADER.size :]
    for at in range(4, len(body), 3):
        for value in (0, 0xFF):
            ran = play(player, with_body(body[:at] + bytes([value]) + body[at + 1 :]))
            assert ran.returncode in (0, 2), (at, value, ran)
            died = re.findall(rb"^done \d+ \d+ (died-.*)$", ran.stdout, re.MULTILINE)
            assert not died, (at, value)


@pytest.mark.parametrize("access, more", [(s.Rdmsr(1, mode="real"), 3), (s.Spin(s.Rdmsr(1)), 1)])
def test_an_access_in_no_mode_that_it_can_have_is_damage(has_kvm, player, access, more):
    """An eighth mode, and a loop outside of 64-bit code."""
    whole = tapes.tape([Case("a.b", "", "", (access,), ())])
    body = bytearray(whole[tapes.HEADER.size :])
    flags = body.rindex(tapes._step(access, None)) + 5  # its size, patience, word and vCPU
    body[flags] += more << 5
    ran = play(player, with_body(bytes(body)))
    assert b"the tape is damaged: an access in no mode that it can have" in ran.stdout, ran


def test_a_case_that_does_not_fit_is_named():
    script = (install(default_allow().deny(1)),) * 70_000
    with pytest.raises(ValueError, match=r"^a\.b does not fit a tape: "):
        tapes.tape([Case("a.b", "", "", script, (done,))])
