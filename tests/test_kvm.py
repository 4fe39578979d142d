import errno
import os
import signal
import threading
import time

import pytest

import vmm.memory
from vmm._native import ffi, lib
from vmm.errors import KvmError
from vmm.exits import HltExit, IoExit, RdmsrExit, ShutdownExit, WrmsrExit
from vmm.filter import Pointer, default_allow
from vmm.guest import Guest, start_registers
from vmm.kvm import Kvm, Vm
from vmm.memory import GuestMemory, Mapping
from vmm.msr import FILTER, Msr
from vmm.placed import bad_address
from vmm.vcpu import Vcpu

SYSTEM_CALLS = {
    "get_api_version": lambda kvm: kvm.get_api_version(),
    "get_vcpu_mmap_size": lambda kvm: kvm.get_vcpu_mmap_size(),
    "check_extension": lambda kvm: kvm.check_extension(188),
    "get_supported_cpuid": lambda kvm: kvm.get_supported_cpuid(),
    "get_msr_index_list": lambda kvm: kvm.get_msr_index_list(),
    "create_vm": lambda kvm: kvm.create_vm(),
}
VM_CALLS = {
    "check_extension": lambda vm: vm.check_extension(188),
    "enable_cap": lambda vm: vm.enable_cap(188, 0),
    "enable_msr_exits": lambda vm: vm.enable_msr_exits(FILTER),
    "set_msr_filter": lambda vm: vm.set_msr_filter(default_allow()),
    "set_msr_filter_at": lambda vm: vm.set_msr_filter_at(0),
    "compat_ioctl": lambda vm: vm.compat_ioctl(0x4104AEC6, 0),
    "add_memory": lambda vm: vm.add_memory(0, 4096),
    "set_user_memory_region": lambda vm: vm.set_user_memory_region(0, GuestMemory(0, 4096)),
    "create_irqchip": lambda vm: vm.create_irqchip(),
    "create_any_irqchip": lambda vm: vm.create_any_irqchip(),
    "signal_msi": lambda vm: vm.signal_msi(0xFEE00000, 0),
    "xen_hvm_config": lambda vm: vm.xen_hvm_config(ffi.new("struct kvm_xen_hvm_config *")),
    "set_tss_addr": lambda vm: vm.set_tss_addr(0xFFFBD000),
    "create_vcpu": lambda vm: vm.create_vcpu(0),
}
VCPU_CALLS = {
    "run": lambda vcpu: vcpu.run(),
    "enable_cap": lambda vcpu: vcpu.enable_cap(188, 0),
    "get_regs": lambda vcpu: vcpu.get_regs(),
    "set_regs": lambda vcpu: vcpu.set_regs(ffi.new("struct kvm_regs *")),
    "get_sregs": lambda vcpu: vcpu.get_sregs(),
    "set_sregs": lambda vcpu: vcpu.set_sregs(ffi.new("struct kvm_sregs *")),
    "get_vcpu_events": lambda vcpu: vcpu.get_vcpu_events(),
    "set_vcpu_events": lambda vcpu: vcpu.set_vcpu_events(ffi.new("struct kvm_vcpu_events *")),
    "get_mp_state": lambda vcpu: vcpu.get_mp_state(),
    "set_mp_state": lambda vcpu: vcpu.set_mp_state(0),
    "get_msrs": lambda vcpu: vcpu.get_msrs([Msr.STAR]),
    "set_msrs": lambda vcpu: vcpu.set_msrs({Msr.STAR: 0}),
    "set_cpuid2": lambda vcpu: vcpu.set_cpuid2(ffi.new("struct kvm_cpuid2 *", {"entries": 0})),
    "get_cpuid2": lambda vcpu: vcpu.get_cpuid2(),
    "set_guest_debug": lambda vcpu: vcpu.set_guest_debug(0),
    "get_debugregs": lambda vcpu: vcpu.get_debugregs(),
    "set_debugregs": lambda vcpu: vcpu.set_debugregs(ffi.new("struct kvm_debugregs *")),
    "get_xcrs": lambda vcpu: vcpu.get_xcrs(),
    "set_xcrs": lambda vcpu: vcpu.set_xcrs(ffi.new("struct kvm_xcrs *")),
    "get_xsave": lambda vcpu: vcpu.get_xsave(),
    "set_xsave": lambda vcpu: vcpu.set_xsave(ffi.new("struct kvm_xsave *")),
    "get_fpu": lambda vcpu: vcpu.get_fpu(),
    "set_fpu": lambda vcpu: vcpu.set_fpu(ffi.new("struct kvm_fpu *")),
    "get_lapic": lambda vcpu: vcpu.get_lapic(),
    "set_lapic": lambda vcpu: vcpu.set_lapic(ffi.new("struct kvm_lapic_state *")),
    "get_msr_by_one_reg": lambda vcpu: vcpu.get_msr_by_one_reg(Msr.STAR),
    "set_msr_by_one_reg": lambda vcpu: vcpu.set_msr_by_one_reg(Msr.STAR, 0),
    "get_nested_state": lambda vcpu: vcpu.get_nested_state(),
    "set_nested_state": lambda vcpu: vcpu.set_nested_state(bytes(128)),
    "nmi": lambda vcpu: vcpu.nmi(),
    "smi": lambda vcpu: vcpu.smi(),
    "interrupt": lambda vcpu: vcpu.interrupt(32),
    "set_signal_mask": lambda vcpu: vcpu.set_signal_mask(()),
}


def fd_of_another_kind() -> int:
    return os.open("/dev/null", os.O_RDWR)


def system_on(fd: int) -> Kvm:
    kvm = object.__new__(Kvm)
    kvm.fd, kvm.run_size, kvm.supported_cpuid = fd, 4096, None
    return kvm


def vcpu_on(fd: int) -> Vcpu:
    vcpu = Vcpu.__new__(Vcpu)
    vcpu.fd, vcpu.vcpu_id, vcpu._run_size = fd, 0, 4096
    vcpu._keep = Mapping(4096)
    vcpu._area = ffi.cast("void *", vcpu._keep.address)
    vcpu.kvm_run = ffi.cast("struct kvm_run *", vcpu._area)
    vcpu._open(fd, vcpu._keep.address)
    return vcpu


MAKERS = {
    "system": (system_on, SYSTEM_CALLS),
    "vm": (lambda fd: Vm(system_on(-1), fd), VM_CALLS),
    "vcpu": (vcpu_on, VCPU_CALLS),
}
ALL_CALLS = [(kind, name) for kind, (_, calls) in MAKERS.items() for name in calls]


@pytest.mark.parametrize(("kind", "name"), ALL_CALLS)
def test_on_a_closed_descriptor_every_method_says_ebadf(kind, name):
    make, calls = MAKERS[kind]
    with pytest.raises(KvmError) as caught:
        calls[name](make(-1))
    assert caught.value.errno == errno.EBADF
    assert str(caught.value).startswith(caught.value.ioctl)


@pytest.mark.parametrize(("kind", "name"), ALL_CALLS)
def test_on_another_kind_of_descriptor_every_method_says_enotty(kind, name):
    make, calls = MAKERS[kind]
    with make(fd_of_another_kind()) as file, pytest.raises(KvmError) as caught:
        calls[name](file)
    assert caught.value.errno == errno.ENOTTY


def test_every_ioctl_method_is_in_these_tables():
    plain = {"ioctl", "pointed", "close", "reply", "fail", "kick", "run_for", "sync_regs"}
    plain |= {
        "entered",
        "map_in_smm",
    }  # of memory that the VM has: set_user_memory_region once more
    for cls, calls in ((Kvm, SYSTEM_CALLS), (Vm, VM_CALLS), (Vcpu, VCPU_CALLS)):
        methods = {each for each in vars(cls) if not each.startswith("_")} - plain
        assert methods <= set(calls), cls


def test_a_missing_device_is_named():
    with pytest.raises(KvmError) as caught:
        Kvm("/nonexistent/kvm")
    assert (caught.value.errno, caught.value.ioctl) == (errno.ENOENT, "open")
    assert "/nonexistent/kvm" in str(caught.value)


def test_a_device_that_is_not_kvm_is_named():
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(KvmError) as caught:
        Kvm("/dev/null")
    assert caught.value.ioctl == "KVM_GET_API_VERSION"
    assert len(os.listdir("/proc/self/fd")) == before


def test_memory_is_read_and_written_by_guest_physical_address():
    with GuestMemory(0x100000, 8192) as memory:
        memory.write(0x101FFE, b"ab")
        assert memory.read(0x101FFC, 4) == b"\0\0ab"
        for gpa, size in ((0x0FFFFF, 1), (0x101FFF, 2), (0x102000, 1)):
            with pytest.raises(IndexError):
                memory.write(gpa, bytes(size))
            with pytest.raises(IndexError):
                memory.read(gpa, size)


def test_low_memory_is_below_4_gib_where_signed_pointers_lead_astray():
    for size in (4096, 1 << 20, 1):
        with Mapping(size, low=True) as low:
            assert 2 << 30 <= low.address <= (4 << 30) - low.size


def test_low_memory_that_is_taken_is_found_below(monkeypatch):
    with Mapping(4096, low=True) as taken:
        monkeypatch.setattr(vmm.memory, "_next_low", taken.address)
        with Mapping(4096, low=True) as low:
            assert low.address + low.size <= 4 << 30 and low.address != taken.address


def test_mapping_more_than_there_is_names_mmap():
    with pytest.raises(KvmError) as caught:
        Mapping(1 << 60)
    assert caught.value.ioctl == "mmap"


# --- with a kernel ----------------------------------------------------------------------------


def boot(vm, name="read_msr", **registers):
    return Guest.load(name).boot(vm, **registers)


def test_a_vm_is_created_whatever_signals_come(kvm):
    """The kernel has EINTR for who is told anything meanwhile (two runs of three see it here)."""
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    try:
        signal.setitimer(signal.ITIMER_REAL, 2e-3, 2e-3)
        for _ in range(400):
            kvm.create_vm().close()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_the_kernel_has_the_capabilities_on_both_descriptors(kvm, vm):
    for cap in (lib.KVM_CAP_X86_USER_SPACE_MSR, lib.KVM_CAP_X86_MSR_FILTER):
        assert kvm.check_extension(cap) == vm.check_extension(cap) == 1


def test_a_malformed_request_can_be_sent_on_purpose(vm):
    for address in (bad_address(each) for each in Pointer):
        with pytest.raises(KvmError) as caught:
            vm.set_msr_filter_at(address)
        assert caught.value.errno == errno.EFAULT
    with pytest.raises(KvmError):
        vm.ioctl(0x4189AEC6, 0)


def test_a_denied_read_exits_and_gets_the_reply(vm):
    vm.enable_msr_exits(FILTER)
    vm.set_msr_filter(default_allow().deny(Msr.KERNEL_GS_BASE))
    vcpu = boot(vm, rcx=Msr.KERNEL_GS_BASE)
    assert vcpu.run() == RdmsrExit(Msr.KERNEL_GS_BASE, FILTER)
    vcpu.reply(0x1234567890ABCDEF)
    assert vcpu.run() == HltExit()
    regs = vcpu.get_regs()
    assert (regs.rax, regs.rdx) == (0x90ABCDEF, 0x12345678)


def denied_read(vm) -> Vcpu:
    """Return a vCPU whose RDMSR has exited and waits for its answer; then it halts."""
    vm.enable_msr_exits(FILTER)
    vm.set_msr_filter(default_allow().deny(Msr.KERNEL_GS_BASE))
    vcpu = boot(vm, rcx=Msr.KERNEL_GS_BASE)
    assert vcpu.run() == RdmsrExit(Msr.KERNEL_GS_BASE, FILTER)
    return vcpu


@pytest.mark.parametrize("data", [0, 0x1234567890ABCDEF, 2**64 - 1])
def test_one_call_answers_and_enters(vm, data):
    vcpu = denied_read(vm)
    vcpu.fail()
    assert vcpu.run(reply=data) == HltExit(), "the last answer counts"
    regs = vcpu.get_regs()
    assert (regs.rax, regs.rdx) == (data & 0xFFFFFFFF, data >> 32)


def test_one_call_has_the_access_fail(vm):
    vcpu = denied_read(vm)
    before = vcpu.get_regs()
    assert vcpu.run(fail=True) == ShutdownExit(), "a #GP without an IDT"
    assert vcpu.get_regs().rip != before.rip + 2


def test_a_timed_run_answers_too(vm):
    vcpu = denied_read(vm)
    assert vcpu.run_for(30, reply=7) == HltExit()
    assert vcpu.get_regs().rax == 7


def test_two_answers_are_refused_and_nothing_is_entered(vm):
    vcpu = denied_read(vm)
    with pytest.raises(ValueError, match="one answer"):
        vcpu.run(reply=0, fail=True)
    assert vcpu.run(reply=8) == HltExit()
    assert vcpu.get_regs().rax == 8


@pytest.mark.parametrize("data", [-1, 2**64])
def test_an_answer_of_more_than_64_bits_is_refused_and_nothing_is_entered(vm, data):
    vcpu = denied_read(vm)
    with pytest.raises(ValueError, match="64 bits"):
        vcpu.run(reply=data)
    assert vcpu.run(reply=9) == HltExit()
    assert vcpu.get_regs().rax == 9


@pytest.mark.parametrize("answer", [{"reply": 0}, {"fail": True}])
def test_an_answer_without_an_exit_is_refused_and_nothing_is_entered(vm, answer):
    vcpu = boot(vm, rcx=Msr.STAR)
    start = vcpu.get_regs().rip
    with pytest.raises(ValueError, match="no MSR exit waits"):
        vcpu.run(**answer)
    assert vcpu.get_regs().rip == start
    assert vcpu.run() == HltExit()
    with pytest.raises(ValueError, match="no MSR exit waits"):
        vcpu.run(**answer)


def test_after_eintr_the_access_is_over_and_takes_no_other_answer(vm):
    vcpu = denied_read(vm)
    vcpu.kvm_run.immediate_exit = 1
    with pytest.raises(KvmError) as caught:
        vcpu.run(reply=5)
    assert caught.value.errno == errno.EINTR
    vcpu.kvm_run.immediate_exit = 0
    with pytest.raises(ValueError, match="no MSR exit waits"):
        vcpu.run(reply=6)
    assert vcpu.run() == HltExit()
    assert vcpu.get_regs().rax == 5


def test_a_run_that_the_kernel_refuses_leaves_the_access_pending(vm):
    vcpu = denied_read(vm)
    vcpu.kvm_run.kvm_dirty_regs = 2**64 - 1
    with pytest.raises(KvmError) as caught:
        vcpu.run(reply=5)
    assert caught.value.errno == errno.EINVAL
    vcpu.kvm_run.kvm_dirty_regs = 0
    assert vcpu.run(reply=6) == HltExit()
    assert vcpu.get_regs().rax == 6


def test_equal_exits_are_equal_and_different_ones_are_not(vm):
    vm.enable_msr_exits(FILTER)
    vm.set_msr_filter(default_allow().deny(1, 2))
    vcpu = boot(vm, "access")
    memory, symbols = vm.memories[0], Guest.load("access").symbols
    one, other = ("op_wrmsr", 1, 5), ("op_wrmsr", 1, 6)
    read, zero = ("op_rdmsr", 2, 0), ("op_wrmsr", 2, 0)
    accesses = [one, one, one, other, one, read, read, read, zero, read, zero, zero, zero, one]
    seen = []
    for word, index, data in accesses:
        program = (symbols[word], index, data, 0, 0, 0, 0, 0, symbols["op_done"])
        memory.write(0x100000, b"".join(word.to_bytes(8, "little") for word in program))
        vcpu.set_regs(start_registers(Guest.load("access").entry, 0))
        seen.append(vcpu.run())
        assert isinstance(vcpu.run(reply=0), IoExit)
    kinds = {"op_rdmsr": RdmsrExit, "op_wrmsr": WrmsrExit}
    assert seen == [kinds[word](index, FILTER, data) for word, index, data in accesses]


def test_a_spinning_guest_can_be_stopped(vm):
    vcpu = boot(vm, "spin")
    assert vcpu.run_for(0.05) is None
    assert vcpu.get_regs().rip == Guest.load("spin").entry
    assert vcpu.run_for(0.05) is None, "it can be run, and stopped, again"


def test_a_guest_that_ends_is_not_stopped(vm):
    assert boot(vm, rcx=Msr.STAR).run_for(30) == HltExit()


def test_another_thread_can_kick_a_running_vcpu(vm):
    from vmm.kicks import allow_kicks

    allow_kicks()
    vcpu = boot(vm, "spin")
    seen: list[object] = []

    def run():
        try:
            seen.append(vcpu.run())
        except KvmError as error:
            seen.append(error.errno)

    thread = threading.Thread(target=run)
    thread.start()
    deadline = time.monotonic() + 10
    while thread.is_alive() and time.monotonic() < deadline:
        vcpu.kick(thread.ident)
        thread.join(0.01)
    assert seen == [errno.EINTR]


def test_state_can_be_read_and_set_back(vm):
    vcpu = boot(vm, rcx=7)
    regs = vcpu.get_regs()
    assert (regs.rcx, regs.rip) == (7, Guest.load("read_msr").entry)
    regs.rbx = 0x1122334455667788
    vcpu.set_regs(regs)
    assert vcpu.get_regs().rbx == 0x1122334455667788
    sregs = vcpu.get_sregs()
    assert sregs.cs.l == 1 and sregs.efer & 0x400
    vcpu.set_sregs(sregs)
    vcpu.set_vcpu_events(vcpu.get_vcpu_events())
    cpuid = vcpu.get_cpuid2()
    leaves = {each.function for each in cpuid.entries[0 : cpuid.nent]}
    assert {0, 1, 0x80000001} <= leaves and 0xFFFFFFFF not in leaves
    vcpu.set_cpuid2(cpuid)
    assert vcpu.get_cpuid2().nent == cpuid.nent
    assert vcpu.set_msrs({Msr.STAR: 0x5566}) == 1
    assert vcpu.get_msrs([Msr.STAR]) == {Msr.STAR: 0x5566}
    assert vcpu.get_msrs([0xDEADBEEF]) == {}


def test_a_vcpu_exists_once(vm):
    vm.create_vcpu(3)
    with pytest.raises(KvmError) as caught:
        vm.create_vcpu(3)
    assert (caught.value.errno, caught.value.ioctl) == (errno.EEXIST, "KVM_CREATE_VCPU")


def test_the_index_list_names_what_get_msrs_serves(kvm, vm):
    indices = kvm.get_msr_index_list()
    assert Msr.STAR in indices
    assert boot(vm).get_msrs([Msr.STAR]).keys() == {Msr.STAR}


def test_closing_a_vm_leaves_no_descriptor(kvm):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with kvm.create_vm() as vm:
            boot(vm)
    assert len(os.listdir("/proc/self/fd")) == before


def test_single_steps_exit_where_they_say(vm):
    from vmm.exits import DebugExit

    vcpu = boot(vm, rcx=Msr.STAR)
    vcpu.set_guest_debug(lib.KVM_GUESTDBG_ENABLE | lib.KVM_GUESTDBG_SINGLESTEP)
    seen = vcpu.run()
    assert isinstance(seen, DebugExit)
    assert seen.pc == Guest.load("read_msr").entry + 2


def test_an_unknown_guest_is_named():
    with pytest.raises(FileNotFoundError, match=r"nonesuch.*access"):
        Guest.load("nonesuch")
