"""An access by itself: the modes as the guest meets them, and the vCPU as it was after them."""

from __future__ import annotations

import pytest

from vmm import modes, x86
from vmm.conformance.language.script import (
    REPLY,
    Fault,
    Lost,
    begin,
    complete,
    enable_exits,
    fault,
    finish,
    get_msr,
    get_regs,
    got,
    gp,
    install,
    interrupted,
    rdmsr,
    regs,
    returned,
    set_msr,
    wrmsr,
    wrote,
)
from vmm.exits import RdmsrExit
from vmm.filter import default_allow
from vmm.guest import Guest
from vmm.msr import FILTER, Msr

A = 0x474F4F00
GARBAGE = 0xDEAD_0BAD_FACE_B00C
TELL, DENY = enable_exits(FILTER), install(default_allow().deny(A))
EVERYWHERE = [mode for mode in modes.MODES if mode not in ("user", "smm")]


@pytest.mark.parametrize("mode", ["compat", "protected", "real", "higher_half", "user"])
def test_the_cpu_is_in_the_mode_that_the_word_names(kvm, mode):
    """KVM itself says in which mode a vCPU is that stopped in its stub."""
    from vmm.conformance.kernel.pool import PooledVm
    from vmm.conformance.kernel.single import DONE_PORT, TRAP_PORT

    vm = PooledVm(kvm, keep=False)
    try:
        vm.create_vcpu(0)
        single = vm.single(0)
        single.load(rdmsr(Msr.STAR, mode=mode))
        seen = single.enter()
        sregs = single.vcpu.get_sregs()
        if mode == "user":  # its #GP has taken it to CPL0, where the frame says whence
            assert seen.port == TRAP_PORT
            frame = vm.memory.read(single.vcpu.get_regs().rsp + 16, 2)
            assert int.from_bytes(frame, "little") == x86.USER_CODE64
            return
        assert seen.port == DONE_PORT
        in_mode = bool(sregs.cr0 & x86.CR0_PE), bool(sregs.efer & x86.EFER_LMA), sregs.cs.db
        assert (
            in_mode
            == {
                "compat": (True, True, 1),
                "protected": (True, False, 1),
                "real": (False, False, 0),
                "higher_half": (True, True, 0),
            }[mode]
        )
        assert sregs.cs.l == (mode == "higher_half")
        assert single.vcpu.get_regs().rip >> 31 == (mode == "higher_half") * 0x1FFFFFFFF
    finally:
        vm.close()


@pytest.mark.parametrize("mode", EVERYWHERE)
def test_a_vcpu_is_in_64_bit_mode_again_and_keeps_its_msrs(backend, mode):
    script = (
        *(TELL, DENY, wrmsr(Msr.FS_BASE, 0x5000), wrmsr(Msr.GS_BASE, 0x6000)),
        *(rdmsr(A, mode=mode), rdmsr(Msr.FS_BASE), get_msr(Msr.GS_BASE), rdmsr(A)),
    )
    denied = (RdmsrExit(A, FILTER), returned(REPLY))
    trace = backend.run(script)[2:]
    assert trace == (wrote, wrote, *denied, returned(0x5000), got(0x6000), *denied)


@pytest.mark.parametrize("mode", EVERYWHERE)
def test_a_base_that_another_mode_writes_is_there_in_64_bit_mode(backend, mode):
    script = (wrmsr(Msr.FS_BASE, 0x7000, mode=mode), rdmsr(Msr.FS_BASE), get_msr(Msr.FS_BASE))
    assert backend.run(script) == (wrote, returned(0x7000), got(0x7000))


@pytest.mark.parametrize("mode", EVERYWHERE)
def test_an_access_stops_at_its_exit_and_is_completed_in_steps(backend, mode):
    access = rdmsr(A, GARBAGE, GARBAGE, mode=mode)
    script = (
        *(TELL, DENY, begin(access), get_regs(), complete(), get_regs(), finish()),
        *(begin(access), complete(fault()), finish(), rdmsr(A)),
    )
    before = regs(0, rax=0xFACEB00CFACEB00C, rcx=A, rdx=0xDEAD0BADDEAD0BAD)
    after = regs(2, rax=REPLY & 0xFFFFFFFF, rcx=A, rdx=REPLY >> 32)
    exit_ = RdmsrExit(A, FILTER)
    assert backend.run(script)[2:] == (
        *(exit_, before, interrupted, after, returned(REPLY)),
        *(exit_, interrupted, gp, exit_, returned(REPLY)),
    )


def test_an_access_that_did_not_stop_can_be_finished_all_the_same(backend):
    script = (begin(rdmsr(Msr.STAR, mode="real")), finish(), begin(rdmsr(A, mode="user")), finish())
    assert not any(isinstance(event, Lost) for event in backend.run(script))


def test_modes_do_not_leak_into_the_next_script(backend):
    for _ in range(3):
        assert backend.run((set_msr(Msr.FS_BASE, 0x7000), rdmsr(A, mode="user")))[-1] == gp
        assert backend.run((TELL, DENY, rdmsr(A)))[-1] == returned(REPLY)
        assert backend.run((rdmsr(Msr.FS_BASE, mode="real"),)) == (returned(0),)


@pytest.mark.parametrize("vector", [2, 6, 13])
@pytest.mark.parametrize("mode", modes.MODES)
def test_a_trap_has_a_gate_in_the_table_of_its_mode(mode, vector):
    from vmm.memory import GuestMemory

    traps = Guest.load("access").symbols["traps"]
    handler = traps + modes.TRAP_SIZE * vector
    with GuestMemory(0, x86.MEMORY_SIZE) as memory:
        modes.write_traps(memory, traps)
        if mode in ("real", "smm"):
            gate = memory.read(4 * vector, 4)
            assert int.from_bytes(gate[:2], "little") + 0x10000 == handler
        else:
            size = 8 if mode == "protected" else 16
            at = modes.PROTECTED_TRAPS if mode == "protected" else modes.LONG_TRAPS
            gate = memory.read(at + size * vector, size)
            low, high = gate[:2], gate[6:8]
            assert int.from_bytes(low + high, "little") == handler


# WRMSRNS is 0f 01 c6; the others are VEX.128 of map 7, f6 /0, with F2 for RDMSR and F3 for WRMSRNS,
# a register (RAX) and 32 bits: Intel's ISE reference, "RDMSR" and "WRMSRNS".
FORMS = {
    wrmsr(A, 0, form="wrmsrns"): bytes.fromhex("0f01c6"),
    rdmsr(A, form="immediate"): bytes.fromhex("c4e77bf6c0004f4f47"),
    wrmsr(A, 0, form="immediate"): bytes.fromhex("c4e77af6c0004f4f47"),
}


@pytest.mark.parametrize("access", FORMS)
def test_the_instruction_of_another_form_is_what_the_manual_says(kvm, access):
    from vmm.conformance.kernel.pool import PooledVm

    vm = PooledVm(kvm, keep=False)
    try:
        vm.create_vcpu(0)
        single = vm.single(0)
        assert single.load(access) is None
        code = FORMS[access]
        assert vm.memory.read(single.at(access), len(code)) == code
        assert vm.memory.read(single.at(access) + len(code), 1) == b"\xe6"  # OUT
        assert single.vcpu.get_regs().rip == single.at(access)
    finally:
        vm.close()


@pytest.mark.parametrize("access", FORMS)
def test_a_cpu_without_the_form_has_no_such_instruction(backend, access):
    need = {"wrmsrns": "wrmsrns", "immediate": "msr_imm"}[access.form]
    (seen,) = backend.run((access,))
    # A KVM that emulates its guests gives up where its emulator does not know the instruction.
    assert (seen == gp) == (backend.lacks(need) is None)
    assert seen in (Fault(6), gp, Lost("InternalErrorExit(suberror=1)"))


def test_other_forms_are_of_plain_code_alone():
    for given in ({"mode": "real"}, {"after": "sti"}, {"emulated": True}, {"rcx_high": 1}):
        with pytest.raises(ValueError, match="form 'immediate' is plain 64-bit code"):
            rdmsr(A, form="immediate", **given)
