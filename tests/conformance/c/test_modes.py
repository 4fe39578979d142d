"""Accesses in other modes in C: they run in those modes, and leave what they leave in Python.

Nothing in a trace tells 16-bit code from 64-bit code, so a program of the words shows the mode.
What this host cannot do (SMM, forced emulation) the lab does: ``--executor player 'modes.*'``.
"""

import random
import struct

import pytest

from vmm.conformance.c.layout import AFTER, MODES
from vmm.conformance.c.steps import At, calls
from vmm.conformance.c.tape import is_playable
from vmm.conformance.judge.both import agree, found_player, played
from vmm.conformance.judge.recording import Options
from vmm.conformance.kernel.backend import KvmBackend
from vmm.conformance.language import script as s
from vmm.conformance.language.case import Case
from vmm.conformance.random.scripts import random_script
from vmm.filter import default_allow
from vmm.guest import Guest
from vmm.msr import FILTER, INVAL, UNKNOWN, Msr

A, B, GARBAGE = 0x474F4F00, 0x474F4F40, 0xDEADBEEFFACEB00C
HERE = [mode for mode in MODES if mode != "smm"]
DENY = (s.enable_exits(FILTER | INVAL | UNKNOWN), s.install(default_allow().deny(A, Msr.STAR)))
STOPS = (
    (s.get_regs(), s.finish(s.value(7)), s.finish(), s.finish()),
    (s.finish(s.fault()), s.finish(), s.complete(), s.finish()),
    (s.complete(s.value(7)), s.get_regs(), s.complete(s.fault()), s.finish()),
    (s.complete(s.value(7), by="signal"), s.set_regs(rax=5), s.get_regs(), s.finish()),
    (s.complete(s.fault(), by="signal"), s.finish()),
    (s.set_regs(rax=5, rdx=6, via="sync"), s.get_regs(), s.finish(s.value(7))),
)
"""What can be done to an access that has stopped at its exit."""


WHERE = {
    "long": (True, True, 0, 1, 0x08),
    "compat": (True, True, 1, 0, 0x20),
    "user": (True, True, 0, 1, 0x33),
    "protected": (True, False, 1, 0, 0x20),
    "real": (False, False, 0, 0, 0x1000),
    "higher_half": (True, True, 0, 1, 0x08),
}
"""Of each mode: CR0.PE, EFER.LMA, and of the code segment D/B, L and the selector."""
RDMSR_AT = {"real": 0, "higher_half": 0xFFFFFFFF80010000}
"""RIP at the stub, where it is not the address."""


@pytest.mark.parametrize("mode", HERE)
def test_an_access_runs_in_its_mode(has_kvm, build, mode):
    """Its #GP leaves a frame of that mode, which says where it was."""
    body = f"""
	struct kvm_sregs sregs;
	struct kvm_regs regs;

	open_vm();
	need_vcpu(0);
	set_up_in(&{mode}_mode, 0, (struct access){{ .rip = RDMSR, .rcx = {A} }});
	sregs = read_sregs(0);
	if (enter_guest(0) < 0 || vm.vcpus[0].run->io.port != VECTOR_PORT + 13)
		return 1;
	regs = read_regs(0);
	regs.rsp += is_real(&{mode}_mode) ? STACKS : {mode}_mode.word;	/* above the error code */
	printf("%d %d %d %d ", sregs.cr0 & 1, !!(sregs.efer & 0x400), sregs.cs.db, sregs.cs.l);
	fwrite(vm.memory + regs.rsp, {mode}_mode.word, 2, stdout);"""
    said = build(body)
    *flags, frame = said.split(b" ", 4)
    *seen, selector = WHERE[mode]
    assert [int(each) for each in flags] == seen
    word = {2: "H", 4: "I", 8: "Q"}[len(frame) // 2]
    assert struct.unpack(f"<2{word}", frame) == (RDMSR_AT.get(mode, 0x10000), selector)


@pytest.mark.parametrize("emulated", [False, True])
@pytest.mark.parametrize("name", ["rdmsr", "wrmsr"])
@pytest.mark.parametrize("after", [each for each in AFTER if each != "nothing"])
def test_the_bytes_in_front_of_an_access_are_those_of_python(build, after, name, emulated):
    body = f"""
	static __u8 memory[MEMORY];
	struct access access = {{ .rip = {name.upper()} | {"PREFIXED" if emulated else "0"} }};

	vm.memory = memory;
	access = behind({after.upper()}, access);
	fwrite(memory + access.rip - access.before - {5 * emulated}, 16, 1, stdout);"""
    guest = Guest.load("access")
    stub = f"after_{after}_{'emulated_' * emulated}{name}"
    start, at = (guest.symbols[f"stub_{stub}{end}"] for end in ("", "_at"))
    whole = guest.code[start - guest.base : at - guest.base + 6]
    assert build(body)[: len(whole)] == whole


def scripts():
    for mode in HERE:
        for after in AFTER if mode != "user" else ("nothing",):
            read = s.rdmsr(A, GARBAGE, GARBAGE, mode=mode, after=after)
            write = s.wrmsr(A, GARBAGE, GARBAGE, mode=mode, after=after)
            end = (s.rdmsr(A), s.rdmsr(Msr.FS_BASE), s.get_msr(Msr.GS_BASE))
            for access in (read, write):
                yield (*DENY, access, s.rdmsr(A), access, *end)
                yield (s.install(default_allow().deny(A)), access, access, *end)
                if mode != "user":
                    yield from ((*DENY, s.begin(access), *stop, *end) for stop in STOPS)
        yield (s.begin(s.rdmsr(Msr.STAR, mode=mode)), s.finish(), s.finish())
        yield (s.wrmsr(Msr.FS_BASE, 0x7000, mode=mode), *end)
        yield (s.wrmsr(Msr.GS_BASE, 0x7000), s.rdmsr(A, mode=mode), *end)
        yield (*DENY, s.rdmsr(A, mode=mode, vcpu=2), s.rdmsr(B, mode=mode, vcpu=2), *end)
        yield (s.rdmsr(Msr.STAR, single_step=True, mode=mode), s.rdmsr(A, mode=mode))


def is_elsewhere(action):
    """Say whether it is an access that the words for modes have something to do with."""
    action = s.innermost(action)
    return isinstance(action, s.Rdmsr | s.Wrmsr) and not s.is_plain(action)


def random_scripts():
    """Scripts of all words: what an access in a mode leaves is what those after it find."""
    draw = random.Random(7).randrange
    for _ in range(600):
        script = random_script(draw)
        goes_on_by_itself = Msr.IA32_TSC.name in repr(script)
        if any(map(is_elsewhere, script)) and not goes_on_by_itself:
            yield script


@pytest.mark.parametrize("drawn", [scripts, random_scripts])
def test_what_an_access_leaves_is_what_it_leaves_in_python(has_kvm, drawn):
    if found_player() is None:
        pytest.skip("no msrward-player: there was no static libc to link it with")
    cases = [Case(f"a.b{at}", "", "", each, ()) for at, each in enumerate(drawn())]
    cases = list(filter(is_playable, cases))
    assert len(cases) > 150
    seen = played(cases, Options())
    assert len(seen) == len({case.script for case in cases})
    with KvmBackend() as backend:
        for script in seen:
            agree(script, None, backend.run(script), seen[script])


def test_a_call_names_its_mode_and_what_is_before_the_access():
    def call(action):
        return "\n".join(calls(action, At(1, ()))).split("(struct access)")[0]

    assert call(s.rdmsr(A, mode="compat", vcpu=3)) == "\tdo_access_in(&compat_mode, 3, "
    assert call(s.wrmsr(A, 1, after="sti")) == "\tdo_access_in(&long_mode, 0, behind(STI, "
    assert call(s.begin(s.rdmsr(A, mode="smm"))) == "\tbegin_in_smm(0, "
