"""Every field of every word says what it may hold, and its readers ask there."""

import inspect
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest

from vmm.bits import Bits, u32
from vmm.conformance.c import steps
from vmm.conformance.kernel import calls, halves
from vmm.conformance.language import script as s
from vmm.conformance.language.domains import Most, Text, choices, domains, is_domain
from vmm.conformance.language.vocabulary import decode, encode, makers, vocabulary

FIELDS = [(kind, name) for kind in vocabulary().values() for name in kind.__dataclass_fields__]


@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=[f"{k.__name__}.{n}" for k, n in FIELDS])
def test_every_field_has_a_domain(kind, name):
    assert is_domain(domains(kind)[name]), f"{kind.__name__}.{name} may hold anything"


@pytest.mark.parametrize(
    "hint",
    [
        *(int, str, Any, float, list[int], int | None, tuple[int, ...], tuple[u32, str]),
        *(Annotated[int, Text("a")], Annotated[str, Bits(3)], Annotated[tuple[int, ...], Most(4)]),
    ],
)
def test_a_type_that_may_hold_anything_is_no_domain(hint):
    assert not is_domain(hint)


def test_every_parameter_of_a_short_form_has_a_domain():
    for maker in makers().values():
        parameters = inspect.signature(maker).parameters
        assert all(is_domain(domains(maker)[name]) for name in parameters), maker


@dataclass(frozen=True)
class Odd:
    level: Annotated[int, Bits(3)]
    how: Literal["up", "down"] = "up"
    name: Annotated[str, Text("[a-c]+")] = "a"


@pytest.fixture
def odd(monkeypatch):
    monkeypatch.setitem(makers(), "Odd", Odd)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"level": 8}, "Odd.level: 0x8 does not fit 3 bits"),
        ({"level": -1}, "Odd.level: -0x1 does not fit 3 bits"),
        ({"level": 1, "how": "left"}, "Odd.how: 'left' is no up/down"),
        ({"level": 1, "name": "d"}, "Odd.name: 'd' is not of the form [a-c]+"),
    ],
)
def test_a_new_word_is_read_by_what_its_fields_say(odd, fields, why):
    assert decode(encode(Odd(7, "down", "abc")), "Odd", pattern=False) == Odd(7, "down", "abc")
    with pytest.raises(ValueError) as error:
        decode({"word": "Odd", **fields}, "Odd", pattern=False)
    assert str(error.value) == why


def test_a_signed_field_holds_both_signs():
    bits = Bits(8, signed=True)
    assert [bits.holds(each) for each in (-129, -128, 0, 127, 128)] == [0, 1, 1, 1, 0]


def test_a_table_by_literal_has_every_literal():
    assert {*choices(s.Install, "caller")} == calls.SEND.keys()
    assert {*choices(s.BeginInstall, "caller")} == calls.SEND.keys()
    assert {*choices(s.Install, "caller")} == steps.SEND.keys()
    assert {*choices(s.Complete, "by")} == halves.INTERRUPT.keys()
    assert {*choices(s.Install, "on"), *choices(s.CheckExtension, "on")} == steps.FD.keys()
    assert {*choices(s.SetCpuid, "feature")} == {*s.CPUID_BITS, "everything"}
