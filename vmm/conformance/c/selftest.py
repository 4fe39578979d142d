"""Write a case as a test for the kernel's own ``tools/testing/selftests/kvm``.

The test stands on that harness and its guest library, and needs nothing of ours. What the harness
cannot express is a ValueError with one line. The library is that of 6.12 and later.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

from vmm.conformance.c.steps import CAPS, NUMBERS
from vmm.conformance.c.text import c_number, filter_data, step_comment
from vmm.conformance.language import script as s
from vmm.conformance.language.case import Case
from vmm.conformance.language.word import errno_name
from vmm.filter import AtEdge, Pointer
from vmm.msr import MsrExitReason

NEEDS = {"vcpus": "", "no_ignore_msrs": '\tTEST_REQUIRE(!get_kvm_param_bool("ignore_msrs"));'}
VECTORS = {1: "DB_VECTOR", 6: "UD_VECTOR", 13: "GP_VECTOR"}
FD = {"vm": "vm->fd", "system": "vm->kvm_fd", "vcpu": "vcpus[0]->fd"}

GUEST_RDMSR = """\
static void guest_rdmsr(u32 msr)
{
	u64 value = 0;
	u8 vector = rdmsr_safe(msr, &value);

	GUEST_SYNC_ARGS(0, vector, value, 0, 0);
}
"""
GUEST_WRMSR = """\
static void guest_wrmsr(u32 msr, u64 value)
{
	GUEST_SYNC_ARGS(0, wrmsr_safe(msr, value), 0, 0, 0);
}
"""
EXPECT_EXIT = """\
static void expect_exit(struct kvm_vcpu *vcpu, u32 exit_reason, u32 msr, u32 reason, u64 data)
{
	vcpu_run(vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, exit_reason);
	TEST_ASSERT_EQ(vcpu->run->msr.index, msr);
	TEST_ASSERT_EQ(vcpu->run->msr.reason, reason);
	TEST_ASSERT_EQ(vcpu->run->msr.data, data);
	TEST_ASSERT_EQ(vcpu->run->msr.error, 0);
}
"""
END_OF_ACCESS = """\
/* What the guest synced: args[2] is the vector, args[3] the value, behind a text and a stage. */
static struct ucall end_of_access(struct kvm_vcpu *vcpu)
{
	struct ucall uc;

	vcpu_run(vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);
	TEST_ASSERT_EQ(get_ucall(vcpu, &uc), UCALL_SYNC);
	return uc;
}
"""
REPLY = """\
static void reply(struct kvm_vcpu *vcpu, u64 data, u8 error)
{
	vcpu->run->msr.data = data;
	vcpu->run->msr.error = error;
}
"""
EXPECT_VECTOR = """\
/* The access is over: 0 says that it raised no exception. */
static void expect_vector(struct kvm_vcpu *vcpu, u8 vector)
{
	TEST_ASSERT_EQ(end_of_access(vcpu).args[2], vector);
}
"""
EXPECT_VALUE = """\
/* The read is over, and returned the value. */
static void expect_value(struct kvm_vcpu *vcpu, u64 value)
{
	struct ucall uc = end_of_access(vcpu);

	TEST_ASSERT_EQ(uc.args[2], 0);
	TEST_ASSERT_EQ(uc.args[3], value);
}
"""
HELPERS = {
    "guest_rdmsr(": GUEST_RDMSR,
    "guest_wrmsr(": GUEST_WRMSR,
    "expect_exit(": EXPECT_EXIT,
    "reply(": REPLY,
    "expect_v": END_OF_ACCESS,
    "expect_vector(": EXPECT_VECTOR,
    "expect_value(": EXPECT_VALUE,
}
"""The functions of a test, by what calls them: it has those that it uses."""


def selftest_source(case: Case) -> str:
    """Return the test; ValueError says in one line what the harness cannot express."""
    if case.observes:
        raise ValueError(f"{case.id} observes: there is nothing that a selftest could assert")
    for need in case.all_needs:
        if need not in NEEDS:
            raise ValueError(f"the KVM selftest harness cannot express what needs {need}")
    cut = s.steps(case.actions, case.expected)
    if len(cut) != len(case.actions):
        raise ValueError("the KVM selftest harness cannot express a script that ends early")
    numbered = [*enumerate(zip(case.actions, cut, strict=True), 1)]
    body = [line for number, (action, step) in numbered for line in _step(number, action, step)]
    data = [
        line
        for number, (action, _) in numbered
        if isinstance(action, s.Install)
        for line in filter_data(number, action)
    ]
    vcpus = sorted({_vcpu(each) for each in case.actions} - {-1} | {0})
    guests = [line for vcpu in vcpus for line in _guest(vcpu, case.actions)]
    head = "\n".join(_head(case))
    rest = ("\n".join(data), "\n".join(guests), _main(case, vcpus, body))
    helpers = (text for call, text in HELPERS.items() if any(call in part for part in rest))
    parts = (head, *helpers, *rest)
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _head(case: Case) -> Iterator[str]:
    yield "// SPDX-License-Identifier: GPL-2.0-only\n/*"
    text = f"{case.id}: {case.sentence}".replace("*/", "* /")
    yield from (f" * {line}" for line in textwrap.wrap(text, 76))
    yield " */\n#include <errno.h>\n#include <sys/ioctl.h>\n"
    yield '#include "test_util.h"\n#include "kvm_util.h"\n#include "processor.h"'


def _vcpu(action: Any) -> int:
    return 0 if getattr(action, "on", "") == "vcpu" else int(getattr(action, "vcpu", -1))


def _guest(vcpu: int, script: s.Script) -> Iterator[str]:
    yield f"static void guest_code_{vcpu}(void)\n{{"
    for each in script:
        if isinstance(each, s.Rdmsr) and each.vcpu == vcpu:
            yield f"\tguest_rdmsr({c_number(each.index)});"
        if isinstance(each, s.Wrmsr) and each.vcpu == vcpu:
            yield f"\tguest_wrmsr({c_number(each.index)}, {c_number(each.value)});"
    yield "\tGUEST_DONE();\n}\n"


def _main(case: Case, vcpus: list[int], body: list[str]) -> str:
    made = {each.vcpu for each in case.actions if isinstance(each, s.CreateVcpu)}
    lines = ["int main(void)", "{", f"\tstruct kvm_vcpu *vcpus[{max(vcpus) + 1}] = {{}};"]
    lines += ["\tstruct kvm_vm *vm;", ""]
    lines += ["\tTEST_REQUIRE(kvm_has_cap(KVM_CAP_X86_USER_SPACE_MSR));"]
    lines += ["\tTEST_REQUIRE(kvm_has_cap(KVM_CAP_X86_MSR_FILTER));"]
    lines += [NEEDS[each] for each in case.all_needs if NEEDS[each]]
    if vcpus == [0] and not made:
        lines += ["", "\tvm = vm_create_with_one_vcpu(&vcpus[0], guest_code_0);"]
    else:
        lines += ["", f"\tvm = vm_create({max(vcpus) + 1});"]
        lines += [_add(each) for each in vcpus if each not in made]
    return "\n".join([*lines, *body, "", "\tkvm_vm_free(vm);", "\treturn 0;", "}"])


def _add(vcpu: int) -> str:
    return f"\tvcpus[{vcpu}] = vm_vcpu_add(vm, {vcpu}, guest_code_{vcpu});"


def _step(number: int, action: s.Action, step: s.Step) -> Iterator[str]:
    yield "\n" + step_comment(f"{number}: {action!r}")
    if isinstance(action, s.Rdmsr | s.Wrmsr):
        yield from _access(action, step)
    else:
        yield from _host(number, action, step[0])


def _cannot(what: object) -> ValueError:
    return ValueError(f"the KVM selftest harness cannot express {what}")


def _access(action: s.Access, step: s.Step) -> Iterator[str]:
    if not s.is_plain(action) or action.emulated or action.single_step:
        raise _cannot(f"how {action!r} is executed")
    if action.high or action.rcx_high or getattr(action, "before", 0) or action.reply.scribble:
        raise _cannot(f"the registers or the answer of {action!r}")
    vcpu = f"vcpus[{action.vcpu}]"
    for event in step[:-1]:
        if not isinstance(event, s.RdmsrExit | s.WrmsrExit) or event.error or event.pad:
            raise _cannot(event)
        kind = "RDMSR" if isinstance(event, s.RdmsrExit) else "WRMSR"
        index, data = c_number(event.index), c_number(event.data)
        if "ANY" in (index, data):
            raise _cannot(event)
        yield f"\texpect_exit({vcpu}, KVM_EXIT_X86_{kind}, {index},"
        yield f"\t\t    {_reasons(event.reason)}, {data});"
        answer = f"{c_number(action.reply.value)}, {c_number(action.reply.error)}"
        yield f"\treply({vcpu}, {answer});"
    yield from _outcome(vcpu, step[-1])


def _reasons(mask: int) -> str:
    known = [f"KVM_MSR_EXIT_REASON_{each.name}" for each in MsrExitReason if each & mask]
    return c_number(mask) if mask & ~7 else " | ".join(known) or "0"


def _outcome(vcpu: str, event: s.Event) -> Iterable[str]:
    match event:
        case s.Returned() if event.high is s.ANY or not event.high:
            vector, value = 0, event.value
        case s.Wrote() if not event.registers:
            vector, value = 0, s.ANY
        case s.Fault() if not (event.error_code or event.skew or event.registers):
            vector, value = event.vector, s.ANY
        case _:
            raise _cannot(event)
    if value is s.ANY:
        return [f"\texpect_vector({vcpu}, {VECTORS.get(vector, c_number(vector))});"]
    return [f"\texpect_value({vcpu}, {c_number(value)});"]


def _host(number: int, action: s.Action, event: s.Event) -> Iterable[str]:
    match action, event:
        case s.EnableCap(on="vm"), _ if isinstance(event, s.Done | s.Rejected):
            return _enable_cap(action, event)
        case s.Install(caller="self"), _ if isinstance(event, s.Done | s.Rejected):
            return _install(number, action, event)
    return _by_library(action, event)


def _enable_cap(action: s.EnableCap, event: s.Event) -> list[str]:
    args, cap = action.args or (0,), CAPS.get(action.cap, str(action.cap))
    if len(args) > 1 or action.flags:
        fields = f".args = {{ {', '.join(map(c_number, args))} }}"
        lines = ["&(struct kvm_enable_cap){", f"\t.cap = {cap}, .flags = {c_number(action.flags)},"]
        argument = "\n\t\t".join([*lines, f"\t{fields},", "}"])
        return _called(f"ioctl(vm->fd, KVM_ENABLE_CAP, {argument})", event)
    named = cap == "KVM_CAP_X86_USER_SPACE_MSR"
    mask = (_reasons(args[0]) if named else c_number(args[0])).replace(" | ", " |\n\t\t      ")
    words = f"vm, {cap}," + ("\n\t\t      " if "|" in mask else " ") + mask
    if isinstance(event, s.Done):
        return [f"\tvm_enable_cap({words});"]
    return _called(f"__vm_enable_cap({words})", event)


def _by_library(action: s.Action, event: s.Event) -> Iterable[str]:
    match action, event:
        case s.CheckExtension(), s.Got():
            check = "kvm_check_cap(" if action.on == "system" else "vm_check_cap(vm, "
            cap = CAPS.get(action.cap, str(action.cap))
            return [f"\tTEST_ASSERT_EQ({check}{cap}), {c_number(event.value)});"]
        case s.GetMsr(by="msrs"), s.Got():
            call = f"vcpu_get_msr(vcpus[{action.vcpu}], {c_number(action.index)})"
            is_open = event.value is s.ANY
            return [
                f"\t{call};" if is_open else f"\tTEST_ASSERT_EQ({call}, {c_number(event.value)});"
            ]
        case s.SetMsr(by="msrs"), s.Done() | s.Refused():
            value = f"{c_number(action.index)}, {c_number(action.value)}"
            sent = int(isinstance(event, s.Done))
            return [f"\tTEST_ASSERT_EQ(_vcpu_set_msr(vcpus[{action.vcpu}], {value}), {sent});"]
        case s.CreateVcpu(no_fd=False), s.Done():
            return [_add(action.vcpu)]
        case s.SetCpuid(feature="tsc_deadline"), s.Done():
            on = str(action.on).lower()
            feature = "X86_FEATURE_TSC_DEADLINE_TIMER"
            return [f"\tvcpu_set_or_clear_cpuid_feature(vcpus[{action.vcpu}], {feature}, {on});"]
    raise _cannot(f"{action!r} with {event!r}")


def _install(number: int, action: s.Install, event: s.Event) -> Iterable[str]:
    if action.argp is Pointer.UNMAPPED or any(
        isinstance(each.bitmap, AtEdge) or each.bitmap in (Pointer.UNMAPPED, Pointer.KERNEL)
        for each in action.filter.ranges
    ):
        raise _cannot("memory laid out around an unmapped page")
    pointers = {None: f"&filter_{number}", Pointer.NULL: "NULL"}
    argp = pointers.get(action.argp, "(void *)0xffff800000000000")
    name = NUMBERS.get(action.number, c_number(action.number))
    if name == "KVM_X86_SET_MSR_FILTER_COMPAT":
        raise _cannot("the compat ioctl")
    if action.on == "vm" and name == "KVM_X86_SET_MSR_FILTER" and action.argp is None:
        if isinstance(event, s.Done):
            return [f"\tvm_ioctl(vm, {name}, {argp});"]
        return _called(f"__vm_ioctl(vm, {name}, {argp})", event)
    return _called(f"ioctl({FD[action.on]}, {name}, {argp})", event)


def _called(done: str, event: s.Event) -> list[str]:
    call = f"\tTEST_ASSERT_EQ({done}, "
    if not isinstance(event, s.Rejected):
        return [f"{call}0);"]
    errno = [] if event.errno is s.ANY else [f"\tTEST_ASSERT_EQ(errno, {errno_name(event.errno)});"]
    return [f"{call}-1);", *errno]
