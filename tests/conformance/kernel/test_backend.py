import errno
import os
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest

from vmm._native import lib
from vmm.conformance.cases import CASES
from vmm.conformance.kernel import calls
from vmm.conformance.kernel import wire as record
from vmm.conformance.language.script import (
    REPLY,
    Lost,
    Regs,
    Reply,
    Wrote,
    begin,
    complete,
    create_irqchip,
    create_vcpu,
    done,
    enable_exits,
    fault,
    finish,
    first_difference,
    get_msr,
    get_regs,
    got,
    gp,
    install,
    interrupted,
    rdmsr,
    refused,
    rejected,
    returned,
    set_cpuid,
    set_msr,
    wrmsr,
    wrote,
)
from vmm.errors import KvmError
from vmm.exits import RdmsrExit, WrmsrExit
from vmm.filter import default_allow, default_deny
from vmm.guest import Guest
from vmm.msr import FILTER, KVM_CAP_X86_MSR_FILTER, UNKNOWN, Msr

A, B = 0x474F4F00, 0x474F4F01
CANARY = 0x5AFEC0DE5AFEC0DE
DENY_A = default_allow().deny(A)


def test_each_access_has_its_own_reply_though_only_some_exit(backend):
    script = (
        enable_exits(FILTER),
        install(DENY_A),
        rdmsr(B),
        rdmsr(A, reply=Reply(1)),
        wrmsr(B, 3),
        wrmsr(A, 4, reply=fault(200)),
        rdmsr(A, reply=Reply(5 << 32)),
    )
    assert backend.run(script) == (
        done,
        done,
        gp,
        RdmsrExit(A, FILTER),
        returned(1),
        gp,
        WrmsrExit(A, FILTER, 4),
        gp,
        RdmsrExit(A, FILTER),
        returned(5 << 32),
    )


def test_a_batch_longer_than_the_program_area_goes_on(backend):
    script = (enable_exits(FILTER), install(DENY_A), *[rdmsr(A)] * 2500)
    trace = backend.run(script)
    assert trace[2:] == (RdmsrExit(A, FILTER), returned(REPLY)) * 2500


def test_nothing_of_one_script_is_seen_by_the_next(backend):
    writes = (
        enable_exits(7),
        install(default_deny().allow(Msr.STAR)),
        wrmsr(Msr.STAR, 0x1234),
        set_msr(Msr.LSTAR, 0x5678),
        rdmsr(A),
        begin(wrmsr(Msr.CSTAR, 0x9ABC)),
        begin(wrmsr(Msr.STAR, 0x9ABC)),
    )
    reads = (
        get_msr(Msr.CSTAR),
        rdmsr(A),
        get_msr(Msr.STAR),
        get_msr(Msr.LSTAR),
        rdmsr(Msr.KERNEL_GS_BASE),
    )
    clean = backend.run(reads)
    for _ in range(6):
        backend.run(writes)
        assert backend.run(reads) == clean


def test_an_access_left_unfinished_does_not_reach_the_next_script(backend):
    for _ in range(4):
        backend.run((enable_exits(UNKNOWN), begin(rdmsr(A))))
        assert backend.run((enable_exits(UNKNOWN), rdmsr(B)))[1:] == (
            RdmsrExit(B, UNKNOWN),
            returned(REPLY),
        )


def test_an_irqchip_with_which_no_guest_runs_is_none(backend, monkeypatch):
    """Bochs 3.0 and a KVM with APICv: KVM_RUN is KVM_EXIT_FAIL_ENTRY."""
    ended = Lost("FailEntryExit(reason=7)")
    monkeypatch.setattr(backend, "run", lambda script: (done, ended))
    assert backend.lacks("irqchip").endswith(f"without a filter either: {ended!r}")


@pytest.mark.parametrize("on, held", ((True, 0x500C0), (False, 0x100C0)))
def test_cpuid_has_the_feature_or_has_it_not(backend, on, held):
    """Without CPUID's TSC_DEADLINE the LVTT's TSC-deadline mode is not there to be chosen."""
    if backend.lacks("irqchip"):
        pytest.skip(backend.lacks("irqchip"))
    script = (
        create_irqchip(),
        set_cpuid("tsc_deadline", on=on),
        set_msr(Msr.IA32_APICBASE, 0xFEE00D00),
        wrmsr(Msr.APIC_LVTT, 0x500C0),
        rdmsr(Msr.APIC_LVTT),
    )
    assert backend.run(script) == (done, done, done, wrote, returned(held))


def test_a_guest_that_dies_is_lost_and_does_not_take_the_next_one_along(backend):
    # Without an IDT the #GP of the first access is a triple fault.
    from vmm.conformance.kernel.execution import Execution

    run = Execution(backend._take(()), (rdmsr(A), rdmsr(B)), backend._control_vm)
    sregs = run.vm.vcpu(0).get_sregs()
    sregs.idt.limit = 0
    run.vm.vcpu(0).set_sregs(sregs)
    trace = list(run.events())
    assert len(trace) == 1 and isinstance(trace[0], Lost)
    assert "Shutdown" in trace[0].why or "InternalError" in trace[0].why
    assert not run.restore(), "its VM must not serve again"
    run.vm.close()
    assert backend.run((enable_exits(UNKNOWN), rdmsr(B)))[-1] == returned(REPLY)


def test_begin_complete_and_finish(backend):
    script = (
        enable_exits(UNKNOWN),
        begin(rdmsr(A, before=0x99, high=0x11_00000022, rcx_high=7)),
        get_regs(),
        complete(Reply(1 << 32 | 2)),
        get_regs(),
        finish(),
        begin(wrmsr(A, 6)),
        complete(fault(), by="signal"),
        finish(),
    )
    assert backend.run(script) == (
        done,
        RdmsrExit(A, UNKNOWN),
        Regs(0, 0x22_00000099, 7 << 32 | A, 0x11 << 32),
        interrupted,
        Regs(2, 2, 7 << 32 | A, 1),
        returned(1 << 32 | 2),
        WrmsrExit(A, UNKNOWN, 6),
        interrupted,
        gp,
    )


def test_what_a_script_creates_is_in_a_vm_of_its_own(backend):
    script = (create_irqchip(), enable_exits(7), create_vcpu(1), rdmsr(A, vcpu=1), create_vcpu(1))
    for _ in range(3):
        assert backend.run(script)[2:] == (
            done,
            RdmsrExit(A, UNKNOWN),
            returned(REPLY),
            rejected(17),
        )


def test_refusals_are_events(backend):
    assert backend.run((get_msr(A), set_msr(A, 1))) == (refused, refused)


def outcome_of(backend, access, poke):
    """Return what the decoder makes of a record of step 0 that ``poke`` changed."""
    program = backend._take(()).program(0)
    program.load([access])
    poke(program._memory, program._at)
    return program.outcome(access)


def test_a_record_that_the_guest_never_wrote_is_not_an_outcome(backend):
    assert outcome_of(backend, rdmsr(A), lambda memory, at: None) is None
    assert outcome_of(backend, wrmsr(A, CANARY, high=CANARY), lambda memory, at: None) is None


def test_registers_that_changed_are_seen(backend):
    def poke(memory, at):
        memory[at + 32 : at + 48] = (7).to_bytes(8, "little") + (0).to_bytes(8, "little")

    assert outcome_of(backend, wrmsr(A, 7), poke) is wrote
    assert outcome_of(backend, wrmsr(A, 8), poke) == Wrote((7, 0))


def verdicts(backend, cases):
    return {
        case.id: case.observes
        or first_difference(case.actions, case.expected, backend.run(case.actions)) is None
        for case in cases
    }


def test_the_order_of_cases_does_not_matter(backend):
    cases = [case for case in CASES if not any(map(backend.lacks, case.all_needs))]
    assert len(cases) > len(CASES) // 2  # the rest needs what this user or machine lacks
    shuffled = list(cases)
    seed = random.randrange(1 << 32)
    random.Random(seed).shuffle(shuffled)
    assert verdicts(backend, cases) == verdicts(backend, shuffled), f"seed {seed}"


def test_every_need_is_known_and_reasons_are_words(backend):
    for need in {need for case in CASES for need in case.all_needs} | {"no_ignore_msrs"}:
        assert backend.lacks(need) is None or len(backend.lacks(need)) > 5
    assert "not known" in backend.lacks("nonesuch")


def test_a_closed_backend_leaves_no_descriptor(has_kvm):
    from vmm.conformance.kernel.backend import KvmBackend

    before = len(os.listdir("/proc/self/fd"))
    with KvmBackend() as backend:
        backend.run((begin(rdmsr(A)),))
        backend.run((rdmsr(A), rdmsr(B, vcpu=1)))
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_the_lab_says_is_lacking_is_not_tried(backend, monkeypatch):
    monkeypatch.setenv("MSRWARD_LACKS", "single_step=the emulator ends;compat=none")
    assert backend.lacks("single_step") == "the emulator ends"
    assert backend.lacks("compat") == "none"
    assert "not known" in backend.lacks("nonesuch")


@pytest.mark.parametrize("single_step", [False, True])
@pytest.mark.parametrize("emulated", [False, True])
@pytest.mark.parametrize(("access", "code"), [(rdmsr(1), b"\x0f\x32"), (wrmsr(1, 2), b"\x0f\x30")])
def test_each_way_to_execute_an_access_is_the_code_it_says(access, code, emulated, single_step):
    access = replace(access, emulated=emulated, single_step=single_step)
    guest, way = Guest.load("access"), record.variant(access)
    at = record.instructions(guest)[way] - guest.base
    begin = record.handlers(guest)[way] - guest.base
    assert guest.code[at : at + 2] == code
    assert (guest.code[at - 5 : at] == b"\x0f\x0bkvm") is emulated
    assert (b"\x9d" in guest.code[begin:at]) is single_step  # POPFQ, with TF
    assert begin < at < begin + 24


def test_an_eintr_that_nobody_asked_for_is_entered_again(backend, monkeypatch):
    """SIGSTOP, the freezer, a debugger: as often as they come, the access goes on where it was."""
    import errno

    from vmm.conformance.language import script
    from vmm.errors import KvmError
    from vmm.vcpu import Vcpu

    run, signals = Vcpu.run, [None] * 2000

    def run_or_not(self, *args, **more):
        if signals:
            signals.pop()
            raise KvmError(errno.EINTR, "KVM_RUN")
        return run(self, *args, **more)

    monkeypatch.setattr(Vcpu, "run", run_or_not)
    accessing = (enable_exits(UNKNOWN), begin(rdmsr(A)), finish(script.Reply(REPLY)))
    assert backend.run(accessing) == (done, RdmsrExit(A, UNKNOWN), returned(REPLY))
    assert not signals


@pytest.mark.parametrize("caller", ["self", "compat"])
def test_an_install_that_returns_more_than_0_is_not_done(backend, monkeypatch, caller):
    """The ioctl returns 0; another number that is no error would pass for success."""
    monkeypatch.setitem(calls.SEND, caller, lambda file, number, address: 1)
    assert backend.run((install(default_allow(), caller=caller),)) == (got(1),)


def test_neither_is_one_of_a_child(kvm):
    """KVM_CHECK_EXTENSION of the filter is 1."""
    ended = lib.mw_ioctl_in_child(kvm.fd, lib.KVM_CHECK_EXTENSION, KVM_CAP_X86_MSR_FILTER, False)
    assert os.waitstatus_to_exitcode(ended) == 255


@pytest.mark.parametrize(("ended", "why"), [(-errno.EPERM, "not permitted"), (9, "killed by 9")])
def test_a_child_that_cannot_be_had_is_no_answer_of_the_kernel(backend, monkeypatch, ended, why):
    """Seccomp refuses the wait, or the host has killed the child."""
    monkeypatch.setattr(calls, "lib", SimpleNamespace(mw_ioctl_in_child=lambda *_: ended))
    with pytest.raises(OSError, match=why) as error:
        backend.run((install(default_allow(), caller="child"),))
    assert not isinstance(error.value, KvmError)
