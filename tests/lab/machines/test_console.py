import random

import pytest

from vmm.lab.machines import console
from vmm.lab.machines.console import Console, Records


def fed(*chunks, on_line=None):
    records = Records(on_line)
    for chunk in chunks:
        records.feed(chunk)
    return records


def test_lines_arrive_whatever_the_chunks():
    stream = b"start 1.0\nkvm 2.0\n1 3 0 one\n2 0 0 \n3 5 0 a b c\nend 1 3 4.0\n"
    whole, bytewise = fed(stream), fed(*(bytes([byte]) for byte in stream))
    for records in (whole, bytewise):
        assert records.lines == ["one", "", "a b c"]
        assert (records.status, records.damaged, records.kvm_ready) == (1, None, True)


def test_each_line_is_handed_on_at_once():
    seen = []
    fed(b"kvm 2.0\n1 3 0 one\n2 3 0 tw", on_line=seen.append)
    assert seen == ["one"]


def test_length_is_counted_in_bytes():
    assert fed("1 3 0 \N{EURO SIGN}\n".encode()).lines == ["\N{EURO SIGN}"]


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (b"2 3 0 to\nend 0 2 1.0\n", "line 2 of the output arrived as b'2 3 0 to'"),
        (b"3 5 0 three\n", "line 2 of the output arrived as b'3 5 0 three'"),
        (b"end 0 2 1.0\n", "1 of 2 lines of output arrived"),
    ],
    ids=["byte", "line", "last line"],
)
def test_what_is_lost_is_noticed(sent, why):
    records = fed(b"1 3 0 one\n" + sent)
    assert (records.damaged, records.status) == (why, None)


def test_a_payload_cannot_forge_the_end():
    assert fed(b"1 12 0 end 0 99 1.0\n").status is None


def test_no_kvm():
    assert fed(b"start 1.0\nnokvm\n").finished


def test_the_first_module_that_was_refused_is_the_cause():
    said = b"refused 00-a.ko Operation not permitted\nrefused 01-b.ko No such file\nnokvm\n"
    assert fed(b"start 1.0\n" + said).refused == ("00-a.ko", "Operation not permitted")
    assert fed(b"refused \x1b[1m \xff\nnokvm\n").refused == (
        "\\x1b[1m",
        "\N{REPLACEMENT CHARACTER}",
    )
    assert fed(b"kvm 1.0\n" + said).damaged


def test_panic_is_seen_at_its_last_line():
    console = Console()
    console.feed(b"Kernel panic - not syncing: Attempted to kill init!\r\n")
    assert not console.panicked
    console.feed(b"---[ end Kernel panic - not syncing: Attempted to kill init! ]---\r\n")
    assert console.panicked
    assert console.tail[0] == "Kernel panic - not syncing: Attempted to kill init!"


def test_what_a_line_repeats_is_put_back():
    assert fed(b"1 6 0 a tail\n2 7 5 bb\n").lines == ["a tail", "bb tail"]


def test_a_line_cannot_repeat_more_than_there_was():
    assert "line 2" in fed(b"1 3 0 one\n2 9 8 b\n").damaged


@pytest.mark.parametrize(
    ("stream", "why"),
    [
        (b"x" * 5_000_000, "more than 4 MiB"),
        (b"1 " + b"9" * 5000 + b" 0 x\n", "line 1"),
        (b"end " + b"9" * 5000 + b" 0 1.0\n", "line 1"),
        (b"1 3 0 \xff\xfe\xfd\n2 0 3 \n", "line 2"),
        (b"\0\0\0\n", "line 1"),
    ],
)
def test_what_is_no_output_of_ours_is_named(stream, why):
    records = fed(*(stream[at : at + 65536] for at in range(0, len(stream), 65536)))
    assert why in records.damaged and len(records.damaged) < 400
    assert records.status is None


def test_a_flood_is_bounded_though_short_lines_repeat_a_long_one(monkeypatch):
    monkeypatch.setattr(console, "FLOOD", 1 << 20)
    whole = b"x" * 4000
    records = fed(b"1 4000 0 " + whole + b"\n")
    for number in range(2, 1000):
        records.feed(b"%d 4000 4000 \n" % number)
    assert "the output is more than 1 MiB" in records.damaged
    assert sum(map(len, records.lines)) <= 1 << 20


def test_a_flood_on_the_console_is_noticed_and_kept_small(monkeypatch):
    monkeypatch.setattr(console, "FLOOD", 1 << 20)
    flood = Console()
    for _ in range(17):
        flood.feed(b"\x1b[2J" + b"y" * 65536 + b"\n")
    assert flood.flooded and max(map(len, flood.tail)) < 1010
    assert flood.tail[0].startswith(r"\x1b[2J")
    endless = Console()
    for _ in range(100):
        endless.feed(b"z" * 65536)
    assert len(endless._reader._rest) <= console.LINE + 65536


@pytest.mark.parametrize("seed", range(8))
def test_no_bytes_give_a_traceback(seed):
    random_ = random.Random(seed)
    good = b"start 1.0\nkvm 2.0\n1 3 0 one\n2 7 0 a b c d\n3 8 5 no\nend 0 3 1.0\n"
    for _ in range(300):
        data = bytearray(good)
        for _ in range(random_.randint(1, 5)):
            at = random_.randrange(len(data))
            data[at : at + random_.randint(0, 4)] = random_.randbytes(random_.randint(0, 4))
        records, said = fed(bytes(data)), Console()
        said.feed(bytes(data))
        assert records.damaged is None or "\n" not in records.damaged
