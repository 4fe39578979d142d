"""Nobody can crash the interpreter through the public API: what it is given is refused by type."""

import inspect
import math
import os
import pickle

import pytest

import vmm
from vmm._native import ffi
from vmm.errors import Busy, Closed, KvmError
from vmm.filter import AtEdge, MsrFilter, MsrRange, Pointer, default_allow
from vmm.guest import Guest
from vmm.memory import GuestMemory, Mapping
from vmm.msr import FILTER, Msr
from vmm.placed import PlacedFilter
from vmm.uffd import Userfaultfd

TYPED = (ValueError, TypeError, KvmError, IndexError)
JUNK = (None, "x", b"", -1, 1 << 64, 1 << 70, 1.5, math.nan, math.inf, [], object(), ffi.NULL)
"""Types, sizes and numbers that hardly any argument may have."""


def methods(value):
    """Return the names of all public methods: a new one is found by itself."""
    found = inspect.getmembers(type(value), callable)
    return sorted(name for name, _ in found if not name.startswith("_"))


def arguments(method, value):
    """Return ``value`` for every argument that must be given, or for the first that can be."""
    given = list(inspect.signature(method).parameters.values())
    needed = [each for each in given if each.default is each.empty and each.kind < 2]
    return [value] * (len(needed) or min(len(given), 1))


def opened(kind, kvm, vm):
    makers = {
        "Kvm": lambda: vmm.Kvm(),
        "Vm": lambda: kvm.create_vm(),
        "Vcpu": lambda: Guest.load("read_msr").boot(vm, rcx=Msr.STAR),
        "GuestMemory": lambda: GuestMemory(0, 8192),
        "Mapping": lambda: Mapping(8192),
        "Userfaultfd": lambda: Userfaultfd(),
    }
    try:
        return makers[kind]()
    except KvmError as error:
        if kind == "Userfaultfd":
            pytest.skip(f"no userfaultfd: {error}")
        raise


KINDS = ("Kvm", "Vm", "Vcpu", "GuestMemory", "Mapping", "Userfaultfd")


def test_every_public_class_with_methods_that_reach_the_kernel_is_walked():
    resources = {name for name in vmm.__all__ if hasattr(getattr(vmm, name), "close")}
    assert resources <= set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_open", [True, False], ids=["open", "closed"])
def test_no_method_takes_junk_but_with_a_typed_error(kvm, vm, kind, is_open):
    value = opened(kind, kvm, vm)
    if not is_open:
        value.close()
    with value:
        for name in methods(value):
            if name in ("close", "run", "run_for", "wait") and is_open:
                continue  # what may work, or wait; they have tests of their own
            method = getattr(value, name)
            for junk in JUNK:
                try:
                    made = method(*arguments(method, junk))
                except TYPED as error:
                    assert "\n" not in str(error) and str(error), (name, junk)
                else:
                    getattr(made, "close", lambda: None)()


VALUES = (Guest, MsrFilter, MsrRange, AtEdge, Pointer)


def test_every_other_public_class_with_methods_is_walked():
    exported = (getattr(vmm, name) for name in vmm.__all__)
    classes = [each for each in exported if isinstance(each, type)]
    rest = {
        each
        for each in classes
        if not hasattr(each, "close")
        and not issubclass(each, Exception | int)
        and each.__module__ != "vmm.exits"
    }
    assert rest == set(VALUES)


@pytest.mark.parametrize(
    "value",
    [
        Guest.load("read_msr"),
        MsrFilter.default_deny(),
        MsrRange(3, 1, 1, b"\0"),
        AtEdge(b"\0"),
        Pointer(1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_no_method_of_a_value_takes_junk_but_with_a_typed_error(value):
    for name in methods(value):
        for junk in JUNK:
            try:
                made = getattr(value, name)(*arguments(getattr(value, name), junk))
            except (*TYPED, FileNotFoundError) as error:
                assert "\n" not in str(error) and str(error), (name, junk)
            else:
                getattr(made, "close", lambda: None)()


class Closer:
    """A number that closes ``value`` when it is looked at: what was checked is so no more."""

    def __init__(self, value):
        self.value = value

    def __index__(self):
        self.value.close()
        return 0

    __bool__ = __len__ = __index__

    def __bytes__(self):
        return bytes(self.__index__())


@pytest.mark.parametrize("kind", KINDS)
def test_an_argument_that_closes_what_it_is_given_to_harms_nothing(kvm, kind):
    with kvm.create_vm() as vm, opened(kind, kvm, vm) as value:
        names = methods(value)
    closed = set()
    for name in names:
        with kvm.create_vm() as vm, opened(kind, kvm, vm) as value:
            method = getattr(value, name)
            try:
                method(*arguments(method, Closer(value)))
            except TYPED as error:
                assert str(error)
                closed |= {name} if isinstance(error, Closed) else set()
    assert kind != "Vcpu" or {"run", "reply"} <= closed


FREE = {"close", "must_be_open"}
"""Methods with nothing to do on what is closed, or that are the check themselves."""


@pytest.mark.parametrize("kind", ["Kvm", "Vm", "Vcpu"])
def test_without_arguments_a_closed_one_says_so(kvm, vm, kind):
    value = opened(kind, kvm, vm)
    value.close()
    value.close()
    for name in methods(value):
        method = getattr(value, name)
        if name not in FREE and not arguments(method, 0)[1:]:
            with pytest.raises((Closed, TypeError), match=r"closed|takes|must|not"):
                method(*arguments(method, 1))


def test_closed_memory_is_closed_and_harmless():
    memory = GuestMemory(0, 4096)
    buffer = memory.buffer
    memory.write(0, b"x")
    memory.close()
    memory.close()
    for use in (
        lambda: memory.read(0, 1),
        lambda: memory.write(0, b"x"),
        lambda: memory.forbid(0, 4096),
    ):
        with pytest.raises(Closed):
            use()
    assert buffer[0] == b"\0", "who kept the buffer sees zeroes"
    buffer[0] = b"y"


def test_a_closed_kvm_run_is_zeroes(vm):
    vcpu = Guest.load("read_msr").boot(vm)
    run = vcpu.kvm_run
    vcpu.close()
    assert run.exit_reason == 0
    for use in (vcpu.run, vcpu.reply, vcpu.fail, vcpu.sync_regs, lambda: vcpu.run_for(1)):
        with pytest.raises(Closed):
            use()


def test_a_run_takes_its_two_answers_and_nothing_else(vm):
    vm.enable_msr_exits(FILTER)
    vm.set_msr_filter(default_allow().deny(Msr.STAR))
    vcpu = Guest.load("read_msr").boot(vm, rcx=Msr.STAR)
    with pytest.raises(ValueError, match="no MSR exit waits"):
        vcpu.run(1)
    assert isinstance(vcpu.run(None, False), vmm.RdmsrExit)
    odd = ((1, False, 2), {}), ((), {"answer": 1}), ((1,), {"reply": 1}), (("x",), {}), ((1.5,), {})
    for places, names in odd:
        with pytest.raises(TypeError):
            vcpu.run(*places, **names)
    for places, names in (((1, 2), {}), ((1 << 64, 0), {}), ((), {"reply": -1})):
        with pytest.raises(ValueError, match=r"one answer|64 bits"):
            vcpu.run(*places, **names)
    for use in (lambda: vcpu.reply(1, 2), lambda: vcpu.reply(value=1), lambda: vcpu.reply("x")):
        with pytest.raises(TypeError):
            use()
    vcpu.reply(data=0)
    assert isinstance(vcpu.run(reply=True, **{"".join(("fa", "il")): False}), vmm.HltExit)
    assert vcpu.get_regs().rax == 1


def test_a_vcpu_that_was_never_made_is_closed():
    vcpu = vmm.Vcpu.__new__(vmm.Vcpu)
    for use in (vcpu.run, vcpu.reply, vcpu.fail, lambda: vcpu.run(reply=1)):
        with pytest.raises(Closed):
            use()


@pytest.mark.parametrize("size", [0, -1, -4096, 1.5, None, "1", math.nan, 1 << 64])
def test_no_memory_of_an_odd_size(size):
    with pytest.raises((ValueError, TypeError, KvmError)):
        Mapping(size)


@pytest.mark.parametrize(("gpa", "size"), [(0, -1), (-1, 1), (4096, -4096)])
def test_no_memory_is_read_backwards(gpa, size):
    with GuestMemory(0, 4096) as memory, pytest.raises(IndexError):
        memory.read(gpa, size)


@pytest.mark.parametrize("seconds", [-1, math.nan, math.inf, 1e300, "1", None])
def test_a_run_of_an_odd_time_is_refused(vm, seconds):
    vcpu = Guest.load("spin").boot(vm)
    with pytest.raises((ValueError, TypeError)):
        vcpu.run_for(seconds)
    assert vcpu.run_for(0) is None


def test_what_the_collector_finds_open_is_told_and_closed(kvm):
    before = len(os.listdir("/proc/self/fd"))
    for make in (kvm.create_vm, vmm.Kvm):
        with pytest.warns(ResourceWarning, match="unclosed"):
            make()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_vcpu_runs_on_when_its_vm_is_forgotten(kvm):
    with pytest.warns(ResourceWarning, match="unclosed Vm"):
        vcpu = Guest.load("read_msr").boot(kvm.create_vm(), rcx=Msr.STAR)
    others = [Mapping(0x200000) for _ in range(4)]
    with vcpu:
        assert isinstance(vcpu.run(), vmm.HltExit)
    assert all(each.buffer[:] == bytes(0x200000) for each in others)


@pytest.mark.parametrize("cls", [KvmError, Closed, Busy])
def test_errors_survive_pickle(cls):
    error = cls(9, "KVM_RUN", "detail")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (cls, str(error), vars(error))
    assert again.errno == 9


def test_a_raw_ioctl_is_named_by_its_number(vm):
    with pytest.raises(KvmError, match="ioctl 0x4189aec6"):
        vm.ioctl(0x4189AEC6, 0)


def test_structs_of_the_wrong_type_are_refused(vm):
    vcpu = Guest.load("read_msr").boot(vm)
    wrong = (ffi.new("uint8_t *"), ffi.new("struct kvm_mp_state *"), ffi.NULL, b"", None, 5)
    setters = (vcpu.set_regs, vcpu.set_sregs, vcpu.set_vcpu_events, vcpu.set_cpuid2)
    for set_it in setters:
        for struct in wrong:
            with pytest.raises(TypeError, match=r"takes a struct kvm_\w+ \*"):
                set_it(struct)
    cpuid = ffi.new("struct kvm_cpuid2 *", {"entries": 1})
    cpuid.nent = 2
    with pytest.raises(ValueError, match="nent"):
        vcpu.set_cpuid2(cpuid)


def test_what_is_out_of_range_is_refused(vm):
    vcpu = Guest.load("read_msr").boot(vm)
    memory = vm.memories[0]
    for use in (
        lambda: vcpu.fail(256),
        lambda: vcpu.reply(-1),
        lambda: vcpu.set_signal_mask([0]),
        lambda: vcpu.set_signal_mask([65]),
        lambda: vcpu.set_msrs({-1: 0}),
        lambda: vcpu.get_msrs([1 << 32]),
        lambda: vcpu.set_mp_state(-1),
        lambda: vm.enable_cap(188, 0, 0, 0, 0, 0),
        lambda: vm.enable_cap(188, -1),
        lambda: vm.add_memory(-4096, 4096),
        lambda: vm.set_user_memory_region(1, memory, memory.size + 1),
        lambda: vm.compat_ioctl(1 << 32, 0),
        lambda: Guest.load("read_msr").boot(vm, 16),
        lambda: Guest.load("read_msr").boot(vm, 1, rzx=1),
        lambda: Guest.load("read_msr").boot(vm, 1, rax=-1),
    ):
        with pytest.raises(ValueError):
            use()
    with pytest.raises(TypeError):
        PlacedFilter(b"")


@pytest.mark.parametrize("low", [False, True])
def test_a_placed_filter_that_is_closed_has_no_address(low):
    placed = PlacedFilter(default_allow().deny(Msr.STAR), low=low)
    assert placed.address
    for _ in range(2):
        placed.close()
        for use in (lambda: placed.address, placed.scribble):
            with pytest.raises(Closed, match="this filter is closed: place it anew"):
                use()


def test_an_allow_is_an_allow_in_whatever_its_bits_came(vm):
    vm.enable_msr_exits(FILTER)
    vm.set_msr_filter(default_allow().range(Msr.STAR, 1, bytearray(b"\xff" * 8)))
    vcpu = Guest.load("read_msr").boot(vm, rcx=Msr.STAR)
    assert isinstance(vcpu.run(), vmm.HltExit)
