"""What comes between an exit and the end of its access, in C: it leaves what it leaves in Python.

What this host cannot do (forced emulation) the lab does: ``--executor player 'shadows.*'``.
"""

import re
from pathlib import Path

import pytest

from vmm.conformance.c.layout import STATES
from vmm.conformance.c.steps import At, calls
from vmm.conformance.judge.both import agree, found_player, played
from vmm.conformance.judge.recording import Options
from vmm.conformance.kernel.backend import KvmBackend
from vmm.conformance.language import script as s
from vmm.conformance.language.case import Case
from vmm.conformance.language.soundness import is_sound
from vmm.filter import default_allow
from vmm.msr import FILTER, Msr

TAPE = (Path(__file__).parents[3] / "native" / "player" / "levels.c").read_text()
A = 0x474F4F00
DENY = (s.enable_exits(FILTER), s.install(default_allow().deny(A)))
NMI, INTERRUPT = s.inject("nmi"), s.inject("interrupt")
# One that comes with another, or with a #GP, is taken in its handler, which is not in one place.
BETWEEN = (
    (s.get_taken(), s.finish(s.value(7)), s.get_taken()),
    (NMI, s.get_vcpu_events(), s.finish(s.value(7)), s.get_taken()),
    (INTERRUPT, s.finish(s.value(7)), s.get_taken()),
    (s.complete(s.value(7)), NMI, s.get_vcpu_events(), s.finish(), s.get_taken()),
    (NMI, s.complete(s.fault()), s.get_vcpu_events(), s.finish()),
    (NMI, s.complete(s.value(7), by="signal"), s.finish(), s.get_taken()),
    (s.complete(s.value(7), by="signal"), INTERRUPT, s.finish(), s.get_taken()),
    (NMI, s.get_regs(), s.finish(s.fault())),
    *((s.rewrite(what), NMI, s.rewrite(what), s.finish(s.value(7))) for what in STATES),
)


def scripts():
    end = (s.rdmsr(A), s.get_taken(), s.rdmsr(Msr.STAR), s.get_msr(Msr.FS_BASE))
    for mode in ("long", "compat", "protected", "real"):
        for after in ("sti", "mov_ss", "sti_nop"):
            for access in (
                s.rdmsr(A, mode=mode, after=after),
                s.wrmsr(A, 5, mode=mode, after=after),
            ):
                yield from ((*DENY, s.begin(access), *each, *end) for each in BETWEEN)
            allowed = s.begin(s.rdmsr(Msr.STAR, mode=mode, after=after))
            yield (*DENY, allowed, NMI, s.finish(), s.get_taken(), *end)
    placed = s.begin(s.rdmsr(A, after="sti_nop", vcpu=2))
    yield (*DENY, placed, s.inject("nmi", 2), s.finish(s.value(7), 2), s.get_taken(2), *end)
    yield (*DENY, placed, s.inject("nmi", 2), s.finish(s.value(7), 2), placed, s.finish(vcpu=2))
    for what in STATES:
        yield (*DENY, s.begin(s.rdmsr(A)), s.get_vcpu_events(), s.rewrite(what), s.finish(), *end)


def test_what_comes_between_leaves_what_it_leaves_in_python(has_kvm):
    if found_player() is None:
        pytest.skip("no msrward-player: there was no static libc to link it with")
    cases = [Case(f"a.b{at}", "", "", each, ()) for at, each in enumerate(scripts())]
    assert len(cases) > 300 and all(is_sound(case.script) for case in cases)
    seen = played(cases, Options())
    assert len(seen) == len({case.script for case in cases})
    with KvmBackend() as backend:
        traces = {script: backend.run(script) for script in seen}
    for script, trace in traces.items():
        agree(script, None, trace, seen[script])
    taken = {
        each.vector for trace in traces.values() for each in trace if isinstance(each, s.Taken)
    }
    assert taken == {None, s.NMI, s.INTERRUPT}


def test_an_interrupt_that_the_irqchip_is_to_send_is_refused_in_both(has_kvm):
    if found_player() is None:
        pytest.skip("no msrward-player: there was no static libc to link it with")
    access = s.begin(s.rdmsr(A, after="sti_nop"))
    script = (s.create_irqchip(), *DENY, access, INTERRUPT, s.finish(s.value(7)), s.get_taken())
    seen = played([Case("a.b", "", "", script, ())], Options())
    with KvmBackend() as backend:
        if why := backend.lacks("irqchip"):
            pytest.skip(why)
        agree(script, None, backend.run(script), seen[script])


def test_the_player_has_the_states_in_the_order_of_the_language():
    table = re.search(r"states\[\]\[2\] = \{(.*?)\};", TAPE, re.DOTALL)[1]
    names = re.findall(r"KVM_GET_(\w+), KVM_SET_(\w+)", table)
    assert [(each.upper(),) * 2 for each in STATES] == names


@pytest.mark.parametrize(
    "action, text",
    [
        (s.inject("nmi"), "inject_nmi(0);"),
        (s.inject("interrupt", 3), "inject_interrupt(3);"),
        (s.get_taken(3), "get_taken(3);"),
        (s.get_vcpu_events(3), "get_vcpu_events(3);"),
        (s.rewrite("xcrs", 3), "rewrite(3, KVM_GET_XCRS, KVM_SET_XCRS);"),
    ],
)
def test_a_call_names_what_comes_between(action, text):
    assert [*calls(action, At(1, ()))] == [f"\t{text}"]
