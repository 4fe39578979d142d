"""The tape: every word has its number on both sides, and the player refuses what is damaged."""

import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from vmm.conformance.c import tape as tapes
from vmm.conformance.cases import CASES
from vmm.conformance.host.needs import PROBES
from vmm.conformance.kernel.backend import BY_A_GUEST
from vmm.conformance.language import script as s
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import done, enable_exits, install, rdmsr
from vmm.filter import default_allow
from vmm.msr import FILTER

SOURCE = (Path(__file__).parents[3] / "native" / "tape.c").read_text()
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
        assert tapes.WORDS[kind][0] == number, name
    assert len(enum) == max(number for number, _ in tapes.WORDS.values())


def test_every_need_has_a_probe_in_c():
    known = {*re.findall(r'\{ "(\w+)", lacks_\w+ \}', SOURCE)}
    assert known == tapes.PROBED <= {*PROBES, *BY_A_GUEST}
    asked = {need for case in CASES if tapes.is_playable(case) for need in case.all_needs}
    assert asked <= known | tapes.BARE_NEEDS


def test_a_tape_that_is_whole_is_played(has_kvm, player):
    ran = play(player, tapes.tape([SMALL]))
    lines = ran.stdout.decode().splitlines()
    assert ran.returncode == 0 and lines[0].startswith("msrward-player 1 ")
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
        b"msrward-player: the tape has version 7, and this player reads 1\n",
    )


def with_body(body, records=1):
    return tapes.HEADER.pack(tapes.MAGIC, 1, records, len(body), zlib.crc32(body)) + body


def test_bytes_that_mean_nothing_end_no_player_and_pass_no_case(has_kvm, player):
    """The checksum is right and the bytes are not: each mutation ends in a line, by no signal."""
    body = tapes.tape([SMALL])[tapes.HEADER.size :]
    for at in range(4, len(body), 3):
        for value in (0, 0xFF):
            ran = play(player, with_body(body[:at] + bytes([value]) + body[at + 1 :]))
            assert ran.returncode in (0, 2), (at, value, ran)
            died = re.findall(rb"^done \d+ \d+ (died-.*)$", ran.stdout, re.MULTILINE)
            assert not died, (at, value)


def test_a_case_that_does_not_fit_is_named():
    script = (install(default_allow().deny(1)),) * 70_000
    with pytest.raises(ValueError, match=r"^a\.b does not fit a tape: "):
        tapes.tape([Case("a.b", "", "", script, (done,))])
