"""The other forms of an access in C: the same bytes as the guest of Python, before and behind."""

import re
from pathlib import Path

import pytest

from vmm.conformance.c.layout import registers
from vmm.conformance.c.steps import At, calls
from vmm.conformance.kernel.wire import operands
from vmm.conformance.language.script import rdmsr, wrmsr
from vmm.guest import Guest

SOURCE = (Path(__file__).parents[3] / "native" / "words" / "forms.c").read_text()


def of_python(name):
    guest = Guest.load("access")
    return guest.code[guest.symbols[f"stub_{name}_at"] - guest.base :]


def of_c(function, *, is_write=False):
    text = SOURCE.partition(f"\nstatic struct access {function}(")[2]
    text = re.search(r"__u8 \w+\[\] = \{ (.*?) \};", text)[1]
    text = re.sub(r"is_write \? (\w+) : (\w+)", r"\1" if is_write else r"\2", text)
    return bytes(int(each, 0) for each in text.split(", "))


@pytest.mark.parametrize(
    ("stub", "code"),
    [
        ("wrmsrns", of_c("by_wrmsrns")),
        ("immediate_rdmsr", of_c("by_immediate")),
        ("immediate_wrmsrns", of_c("by_immediate", is_write=True)),
        ("rex_rdmsr", of_c("by_rex")),
        ("rex_wrmsr", of_c("by_rex", is_write=True)),
        ("rex_emulated_rdmsr", of_c("by_rex")),
        ("rex_emulated_wrmsr", of_c("by_rex", is_write=True)),
    ],
)
def test_the_instruction_is_that_of_the_guest(stub, code):
    assert of_python(stub).startswith(code)


@pytest.mark.parametrize(
    "access",
    [
        wrmsr(0x10, 0x1122334455667788, form="wrmsrns"),
        rdmsr(0x10, before=0x1122334455667788, high=3, form="immediate"),
        wrmsr(0xC0000081, 0x1122334455667788, high=3, form="immediate"),
    ],
)
def test_the_registers_are_those_of_python(access):
    assert registers(access) == operands(access)


def test_a_form_is_said_in_a_program():
    (line, *_) = calls(rdmsr(0x10, form="immediate"), At(1, ()))
    assert line.startswith("\tdo_access(0, by_immediate((struct access){")
