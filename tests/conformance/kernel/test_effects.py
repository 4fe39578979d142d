"""What `execute` sees is what the instruction did, not what the host had set."""

from __future__ import annotations

import pytest

from vmm.conformance.kernel import effects
from vmm.conformance.language.effects import CARRIED, EMULATED
from vmm.conformance.language.needs import needs_of
from vmm.conformance.language.script import (
    Executed,
    done,
    execute,
    executed,
    get_msr,
    got,
    set_msr,
)
from vmm.msr import Msr


def needed(backend, action):
    for need in needs_of([action]):
        if why := backend.lacks(need):
            pytest.skip(why)


def value_of(instruction):
    return CARRIED[instruction] & 0x5EF0_1234_5008 or CARRIED[instruction]


@pytest.mark.parametrize("emulated", [False, True])
@pytest.mark.parametrize("instruction", CARRIED)
def test_every_instruction_shows_the_value_that_it_works_with(backend, instruction, emulated):
    if emulated and instruction not in EMULATED:
        with pytest.raises(ValueError, match="KVM's emulator has no"):
            execute(instruction, value_of(instruction), emulated=True)
        return
    action = execute(instruction, value_of(instruction), emulated=emulated)
    needed(backend, action)
    assert backend.run((action,)) == (executed(action.value),)


@pytest.mark.parametrize(
    "instruction",
    ["syscall", "sysenter", "swapgs", "cpuid"],
)
def test_an_instruction_that_does_nothing_is_seen(backend, monkeypatch, instruction):
    """The stub of another word in its place: no value comes from where the host put it."""
    monkeypatch.setattr(effects, "_symbol", lambda _: "stub_done")
    seen = backend.run((execute(instruction, value_of(instruction)),))
    assert seen != (executed(value_of(instruction)),)


def test_what_the_host_had_set_is_put_back(backend):
    script = (
        *(set_msr(Msr.STAR, 0x1234), set_msr(Msr.KERNEL_GS_BASE, 0x5000)),
        *(execute("syscall", 0x108), execute("swapgs", 0x6000)),
        *(get_msr(Msr.STAR), get_msr(Msr.KERNEL_GS_BASE)),
    )
    kinds = backend.run(script)
    assert kinds[:2] == (done, done)
    assert all(isinstance(each, Executed) for each in kinds[2:4])
    assert kinds[4:] == (got(0x1234), got(0x5000))


@pytest.mark.parametrize("value", [0, 1 << 40])
def test_a_value_that_proves_nothing_is_refused(value):
    with pytest.raises(ValueError, match="rdtscp shows no"):
        execute("rdtscp", value)
