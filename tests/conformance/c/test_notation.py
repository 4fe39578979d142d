"""What the words in C print is read back as it was meant, and nothing else is read at all."""

import random

import pytest

from vmm.conformance.c.notation import MOST, read_events
from vmm.conformance.c.text import step_text
from vmm.conformance.cases import CASES
from vmm.conformance.language.script import (
    ANY,
    Fault,
    Lost,
    Wrote,
    done,
    gp,
    regs,
    rejected,
    returned,
    run,
    steps,
    swept,
    wrote,
)
from vmm.exits import RdmsrExit, WrmsrExit
from vmm.msr import FILTER, INVAL, UNKNOWN


def expectations():
    """Every step that some case expects and that leaves nothing open."""
    judged = [case for case in CASES if not case.observes]
    found = {step for case in judged for step in steps(case.actions, case.expected)}
    return [step for step in found if "ANY" not in repr(step)]


def test_what_cases_expect_is_read_back():
    texts = {step: step_text(step) for step in expectations()}
    patterns = ("whatever", "unfiltered", "UNFILTERED", "WHATEVER", " or ")
    read = {step: text for step, text in texts.items() if not any(p in text for p in patterns)}
    assert len(read) > 100
    assert {step: read_events(text) for step, text in read.items()} == {step: step for step in read}


@pytest.mark.parametrize(
    "text, step",
    [
        ("Fault(0xe, error_code=0x2, skew=-2, registers=(0x1, 0x2))", (Fault(14, 2, -2, (1, 2)),)),
        ("regs(-5, rax=0, rcx=0xa, rdx=0x1)", (regs(-5, 0, 10, 1),)),
        ("RdmsrExit(0x1, INVAL|FILTER, data=0x2, error=0x3), gp",
         (RdmsrExit(1, INVAL | FILTER, 2, 3), gp)),
        ("WrmsrExit(0x1, UNKNOWN, 0), Wrote((0x1, 0))", (WrmsrExit(1, UNKNOWN, 0), Wrote((1, 0)))),
        ("WrmsrExit(0x1, 0x8, 0)", (WrmsrExit(1, 8, 0),)),
        ("rejected(EINVAL)", (rejected(22),)),
        ("rejected(95)", (rejected(95),)),
        ("returned(0x1, high=0x2)", (returned(1, 2),)),
        ("done", (done,)),
        ("wrote", (wrote,)),
        ("Lost('exit reason 17')", (Lost("exit reason 17"),)),
        ("swept((run(0, 0x10, FILTER), run(0x10, 0x1, GP)))",
         (swept((run(0, 16, "FILTER"), run(16, 1, "GP"))),)),
    ],
)  # fmt: skip
def test_what_the_words_print_is_read(text, step):
    assert read_events(text) == step


@pytest.mark.parametrize(
    "text",
    [
        *("", ",", "done,", "done done", "nonesuch", "nonesuch(1)", "done(1)", "returned"),
        *("returned(", "returned(1", "returned()", "returned(1, 2, 3)", "returned(low=1)"),
        *("returned(ANY)", "returned(-1)", "returned(0x1ffffffffffffffff)", "returned('1')"),
        *("rejected(ENONE)", "rejected(99999)", "RdmsrExit(1, NONE)", "RdmsrExit(1)"),
        *("__import__('os')", "install(1)", "rdmsr(1)", "Reply(1)", "run(1, 2, GP)"),
        *("Wrote((1, 2, 3))", "(done)", "Lost('a", "Lost(a)", "done\n", "Done", "whatever\x00"),
        *("returned(" * 50 + "1" + ")" * 50, "swept((run(1, 0, NONE)))", "returned(1); done"),
        "done, " * MOST + "done",
    ],
    ids=lambda text: ascii(text[:24]),
)  # fmt: skip
def test_what_no_word_prints_is_refused(text):
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        read_events(text)


def test_damaged_texts_are_refused_or_read_as_something_else():
    """Fixed seeds: no mutation of a text raises anything but ValueError."""
    draw = random.Random(20261126)
    texts = sorted({step_text(step) for step in expectations()})
    for _ in range(3000):
        text = list(draw.choice(texts))
        for _ in range(draw.randint(1, 3)):
            at = draw.randrange(len(text) + 1)
            text[at : at + draw.randint(0, 2)] = draw.choice(["", "(", ")", ",", "=", "\xff", "0x"])
        try:
            read_events("".join(text))
        except ValueError as error:
            assert "\n" not in str(error)


def test_any_is_no_event():
    assert repr(ANY) == "ANY"
    with pytest.raises(ValueError):
        read_events("got(ANY)")
