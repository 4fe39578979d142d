"""A sweep on /dev/kvm: every access is there once, and what is not as it should be is STRANGE."""

import pytest

from vmm.conformance.language.script import (
    enable_exits,
    install,
    rdmsr,
    returned,
    run,
    sweep,
    swept,
    wrmsr,
    wrote,
)
from vmm.filter import default_allow, default_deny
from vmm.msr import FILTER, UNKNOWN, Msr

A = 0x474F4F00
DENY_ALL = default_deny().allow(A)


def test_exits_faults_and_what_passes_are_told_apart(backend):
    script = (
        enable_exits(FILTER),
        install(default_allow().deny(Msr.STAR)),
        sweep("rdmsr", Msr.STAR - 1, 4),
        sweep("rdmsr", A, 3),
        enable_exits(UNKNOWN),
        sweep("rdmsr", A, 3),
        sweep("rdmsr", Msr.STAR, 1),
    )
    assert backend.run(script)[2:4] + backend.run(script)[5:] == (
        swept(
            (run(Msr.EFER, 1, "PASSED"), run(Msr.STAR, 1, "FILTER"), run(Msr.LSTAR, 2, "PASSED"))
        ),
        swept((run(A, 3, "GP"),)),
        swept((run(A, 3, "UNKNOWN"),)),
        swept((run(Msr.STAR, 1, "GP"),)),
    )


def test_what_is_written_arrives_and_what_is_denied_does_not(backend):
    script = (
        enable_exits(FILTER),
        install(default_allow().deny(Msr.CSTAR)),
        wrmsr(Msr.CSTAR, 5),
        sweep("wrmsr", Msr.LSTAR, 2, value=0x7FFF_1234_5678),
        install(default_allow()),
        rdmsr(Msr.LSTAR),
        rdmsr(Msr.CSTAR),
        wrmsr(Msr.CSTAR, 0),
    )
    first = backend.run(script)
    assert first[-3:] == (returned(0x7FFF_1234_5678), returned(0), wrote)


def test_more_accesses_than_fit_at_a_time_go_on(backend):
    script = (enable_exits(FILTER), install(DENY_ALL), sweep("rdmsr", A - 0x8000, 0x8002))
    runs = (run(A - 0x8000, 0x8000, "FILTER"), run(A, 1, "GP"), run(A + 1, 1, "FILTER"))
    assert backend.run(script)[-1] == swept(runs)


@pytest.mark.parametrize(
    ("field", "value", "strange"),
    [
        ("first", A + 1, range(4)),
        ("data", 1, range(4)),
        ("exit_reason", 30, range(4)),
        ("stride", 2, (1, 2, 3)),
    ],
)
def test_an_exit_that_is_not_what_was_asked_for_is_strange(backend, field, value, strange):
    from vmm._native import ffi, lib

    vm = backend._take(())
    vm.vm.enable_msr_exits(UNKNOWN)
    program = vm.program(0)
    program.load_sweep("rdmsr", A, 4, 1, 0)
    reasons = ffi.new("uint8_t[]", 4)
    wanted = {"first": A, "stride": 1, "count": 4, "exit_reason": 29, "data": 0, field: value}
    request = ffi.new("struct mw_sweep *", {**wanted, "reasons": reasons})
    request.fd, request.run = program.vcpu.fd, program.vcpu.kvm_run
    assert program.how_ended(lib.mw_sweep(request)) == ""
    vm.close()
    assert [n for n, each in enumerate(reasons) if each == lib.MW_NO_SUCH_EXIT] == [*strange]
    assert request.n_exits == 4


def test_a_fault_after_an_exit_or_of_another_kind_is_strange():
    from vmm.conformance.kernel.sweeps import _ended

    assert [_ended(0, 0), _ended(4, 0), _ended(0, 13)] == ["PASSED", "FILTER", "GP"]
    strange = [_ended(4, 13), _ended(0, 14), _ended(0, 0xFF), _ended(0xFF, 0), _ended(6, 0)]
    assert strange == ["STRANGE"] * 5


def test_a_guest_that_dies_is_lost(backend):
    from vmm.conformance.kernel.sweeps import run_sweep
    from vmm.conformance.language.script import Lost

    vm = backend._take(())
    sregs = vm.vcpu(0).get_sregs()
    sregs.idt.limit = 0
    vm.vcpu(0).set_sregs(sregs)
    assert isinstance(run_sweep(vm.program(0), sweep("rdmsr", A, 4)), Lost)
    vm.close()
