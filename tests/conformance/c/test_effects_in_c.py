"""Instructions that use MSRs, in C: their bytes are Python's, and what they leave is too.

What this host cannot execute natively or emulate the lab does: ``--executor player 'effects.*'``.
"""

import re
from pathlib import Path

import pytest

from vmm.conformance.c.layout import INSTRUCTIONS
from vmm.conformance.c.notation import read_events
from vmm.conformance.c.steps import At, calls
from vmm.conformance.kernel.backend import KvmBackend
from vmm.conformance.language import script as s
from vmm.guest import Guest
from vmm.msr import Msr

TAPE = (Path(__file__).parents[3] / "native" / "player" / "levels.c").read_text()
EVERY = [
    *(s.Execute(name, s.CARRIED[name]) for name in INSTRUCTIONS),
    *(s.Execute(name, s.CARRIED[name], emulated=True) for name in s.EMULATED),
]
STATE = (Msr.STAR, Msr.LSTAR, Msr.KERNEL_GS_BASE, Msr.GS_BASE, Msr.FS_BASE, Msr.EFER)


def call(action):
    return "\n".join(calls(action, At(1, ())))


def test_the_player_has_them_in_the_order_of_the_language():
    table = re.search(r"effects\[\] = \{(.*?)\};", TAPE, re.DOTALL)[1]
    assert (*re.findall(r"&(\w+)_effect", table), "rsm") == INSTRUCTIONS


def test_the_bytes_of_an_instruction_are_those_of_python(build):
    """All that stands before and behind it too, up to the port write that ends it."""
    shown = "".join(
        f"""
	write_effect(&{name}_effect);
	fwrite(memory + EFFECT - 5, 64, 1, stdout);
	putchar({name}_effect.before);"""
        for name in INSTRUCTIONS
    )
    said = build(f"\tstatic __u8 memory[MEMORY];\n\n\tvm.memory = memory;{shown}")
    guest = Guest.load("access")
    assert len(said) == 65 * len(INSTRUCTIONS)
    for number, name in enumerate(INSTRUCTIONS):
        *code, before = said[65 * number :][:65]
        for way, skipped in (("", 5), ("emulated_", 0)):
            if way and name not in s.EMULATED:
                continue
            start, at = (guest.symbols[f"stub_{way}{name}{end}"] for end in ("", "_at"))
            whole = guest.code[start - guest.base :]
            whole = whole[: whole.index(b"\xe6\xd0") + 2]
            assert bytes(code[skipped:]).startswith(whole), name
            assert at - start == before + 5 - skipped, name


def test_what_an_instruction_leaves_is_what_it_leaves_in_python(has_kvm, build):
    """Where the CPU, or KVM's emulator, has no such instruction, that is its #UD."""
    body = "".join(
        f"\topen_vm();\n\tneed_vcpu(1);\n{call(s.Execute(e.instruction, e.value, e.emulated, 1))}\n"
        "\tputs(seen);\n\tseen[0] = 0;\n\tdrop_vm();\n"
        for e in EVERY
    )
    said = [*map(read_events, build(body).decode().splitlines())]
    assert len(said) == len(EVERY)
    with KvmBackend() as backend:
        trace = [backend.run((each,)) for each in EVERY]
    for action, here, there in zip(EVERY, trace, said, strict=True):
        if isinstance(here[-1], s.Lost):  # each says in its own words why
            here, there = ([type(each) for each in events] for events in (here, there))
        assert here == there, action
    assert sum(isinstance(each[-1], s.Executed) for each in said) >= 3


def before_and_after(action):
    """Return what shows the events of ``action``, and what of a vCPU is not as before."""
    indices = ", ".join(f"{index:#x}" for index in STATE)
    return f"""
	static const __u32 indices[] = {{ {indices} }};
	struct kvm_sregs before, after;
	__u64 old[{len(STATE)}];

	open_vm();
	need_vcpu(0);
	before = read_sregs(0);
	for (int i = 0; i < {len(STATE)}; i++)
		old[i] = msr_of(0, indices[i]);
{call(action)}
	after = read_sregs(0);
	printf("%s\\n%d\\n", seen, memcmp(&before, &after, sizeof(after)));
	for (int i = 0; i < {len(STATE)}; i++)
		printf("%d\\n", old[i] != msr_of(0, indices[i]));"""


@pytest.fixture(scope="module")
def shown(build_many):
    return build_many({action: before_and_after(action) for action in EVERY})


@pytest.mark.parametrize("action", EVERY, ids=repr)
def test_a_vcpu_is_afterwards_what_it_was_before(has_kvm, shown, action):
    """Also where the instruction faulted; but where it never ended nothing is set back."""
    seen, *changed = shown(action).decode().splitlines()
    if "Lost(" not in seen:
        assert changed == ["0"] * (1 + len(STATE)), seen


def test_a_call_names_the_instruction_and_who_executes_it():
    assert call(s.execute("cpuid", 0x4000_0000)) == "\texecute(0, &cpuid_effect, 0x40000000);"
    emulated = s.execute("syscall", 0x108, emulated=True, vcpu=3)
    assert call(emulated) == "\texecute_emulated(3, &syscall_effect, 0x108);"
    assert call(s.execute("rsm", 0x1000)) == "\texecute_rsm(0, 0x1000);"
