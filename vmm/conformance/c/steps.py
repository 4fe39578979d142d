"""Each action of a script as the calls of the words in C that do it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from vmm.conformance.c import accesses, levels
from vmm.conformance.c.text import c_number
from vmm.conformance.language import script as s
from vmm.filter import AtEdge, Pointer
from vmm.msr import KVM_CAP_X86_MSR_FILTER, KVM_CAP_X86_USER_SPACE_MSR

FD = {"vm": "vm.fd", "system": "kvm", "vcpu": "vm.vcpus[0].fd"}
CAPS = {
    KVM_CAP_X86_USER_SPACE_MSR: "KVM_CAP_X86_USER_SPACE_MSR",
    KVM_CAP_X86_MSR_FILTER: "KVM_CAP_X86_MSR_FILTER",
}
POINTER = {
    Pointer.NULL: "NULL",
    Pointer.UNMAPPED: "unmapped()",
    Pointer.KERNEL: "(void *)0xffff800000000000",
}
NUMBERS = {
    s.KVM_X86_SET_MSR_FILTER: "KVM_X86_SET_MSR_FILTER",
    s.KVM_X86_SET_MSR_FILTER_COMPAT: "KVM_X86_SET_MSR_FILTER_COMPAT",
}
SEND = {"self": "install", "compat": "install_compat", "child": "install_in_child"}
REGISTERS = {"eax": "EAX", "ebx": "EBX", "ecx": "ECX", "edx": "EDX"}


class At(NamedTuple):
    """Where an action stands: its number from 1, and the script that it is a step of."""

    number: int
    script: s.Script


def calls(action: s.Action, at: At) -> list[str]:
    """Return the lines, indented by one tab, that do the action in ``main``."""
    return [*CALLS[type(action)](action, at)]


def thread_work(action: s.Action, at: At) -> list[str]:
    """Return the function that a step's thread runs, if the step starts one that needs it."""
    match action:
        case s.Meanwhile():
            body = calls(action.action, at)
        case s.BeginInstall():
            body = [_send(action.install, at.number)]
        case _:
            return []
    head = f"static void step_{at.number}(const void *unused)"
    return [head, "{", "\t(void)unused;", *body, "}"]


def installs(action: s.Action) -> s.Install | None:
    """Return the install that an action does, at once or in a thread."""
    match action:
        case s.Install():
            return action
        case s.BeginInstall():
            return action.install
        case s.Meanwhile():
            return installs(action.action)
        case _:
            return None


# --- the VM -----------------------------------------------------------------------------------


def _enable_cap(action: s.EnableCap, _: At) -> Iterable[str]:
    flags = f", .flags = {c_number(action.flags)}" if action.flags else ""
    args = ", ".join(map(c_number, action.args or (0,)))
    yield f"\tenable_cap({FD[action.on]}, (struct kvm_enable_cap){{"
    yield f"\t\t.cap = {CAPS.get(action.cap, action.cap)}{flags}, .args = {{ {args} }},"
    yield "\t});"


def _set_cpuid(action: s.SetCpuid, _: At) -> Iterable[str]:
    if action.feature not in s.CPUID_BITS:
        yield f"\tset_cpuid_everything({action.vcpu}, {int(action.on)});"
        return
    leaf, register, bit = s.CPUID_BITS[action.feature]
    on = int(action.on)
    yield f"\tset_cpuid({action.vcpu}, {c_number(leaf)}, {REGISTERS[register]}, {bit}, {on});"


def _set_cpuid_bits(action: s.SetCpuidBits, _: At) -> Iterable[str]:
    where = f"{c_number(action.leaf)}, {c_number(action.index)}, {REGISTERS[action.register]}"
    what = f"{c_number(action.bits)}, {int(action.on)}"
    yield f"\tset_cpuid_bits({action.vcpu}, {where}, {what});"


def _xen_hvm_config(action: s.XenHvmConfig, _: At) -> Iterable[str]:
    yield f"\txen_hvm_config({c_number(action.msr)}, {action.pages}, {c_number(action.flags)});"


def _msr(action: s.GetMsr | s.SetMsr, _: At) -> Iterable[str]:
    word = "get_msr" if isinstance(action, s.GetMsr) else "set_msr"
    how = "_by_one_reg" if action.by == "one_reg" else ""
    value = "" if isinstance(action, s.GetMsr) else f", {c_number(action.value)}"
    yield f"\t{word}{how}({action.vcpu}, {c_number(action.index)}{value});"


def _install(action: s.Install, at: At) -> Iterable[str]:
    return [*bitmaps(action, at.number), _send(action, at.number)]


def bitmaps(action: s.Install, number: int) -> Iterator[str]:
    """Yield what puts the bitmaps that no initializer can say into the filter of a step."""
    for slot, each in enumerate(action.filter.ranges if action.argp is None else ()):
        field = f"filter_{number}.ranges[{slot}].bitmap"
        if isinstance(each.bitmap, AtEdge):
            yield f"\t{field} = at_edge(bitmap_{number}_{slot}, {len(each.bitmap.bits)});"
        elif isinstance(each.bitmap, Pointer) and each.bitmap is not Pointer.NULL:
            yield f"\t{field} = {POINTER[each.bitmap]};"


def _send(action: s.Install, number: int) -> str:
    is_compat = action.number == s.KVM_X86_SET_MSR_FILTER_COMPAT
    argp = f"&filter_{number}" if action.argp is None else POINTER[action.argp]
    if action.argp is None:
        low = "low_compat" if is_compat else "low" if action.caller == "compat" else "holes"
        argp = f"{low}({argp})"
    name = NUMBERS.get(action.number, c_number(action.number))
    return f"\t{SEND[action.caller]}({FD[action.on]}, {name}, {argp});"


def _scribble(_: s.ScribbleBitmaps, at: At) -> Iterable[str]:
    last, install = next(
        (number, done)
        for number in range(at.number - 1, 0, -1)
        if (done := installs(at.script[number - 1]))
    )
    if install.caller == "compat" or install.number == s.KVM_X86_SET_MSR_FILTER_COMPAT:
        yield "\tscribble_bitmap(low_bitmaps, low_size);"
    else:
        for slot, each in enumerate(install.filter.ranges if install.argp is None else ()):
            if isinstance(each.bitmap, bytes):
                yield f"\tscribble_bitmap(bitmap_{last}_{slot}, sizeof(bitmap_{last}_{slot}));"
    yield '\tsaw("done");'


# --- races ------------------------------------------------------------------------------------


def _begin_install(action: s.BeginInstall, at: At) -> Iterable[str]:
    yield from bitmaps(action.install, at.number)
    slot = action.stall_at
    if slot is not None and slot < len(action.filter.ranges):
        has_bits = isinstance(action.filter.ranges[slot].bitmap, bytes)
        name = f"bitmap_{at.number}_{slot}"
        bits = f"{name}, sizeof({name})" if has_bits else "NULL, 0"
        field = f"filter_{at.number}.ranges[{slot}].bitmap"
        yield f'\t{field} = not_there("{action.name}", {bits});'
    yield f'\tbegin_install("{action.name}", step_{at.number}, NULL);'


def _meanwhile(action: s.Meanwhile, at: At) -> Iterable[str]:
    yield f'\tmeanwhile("{action.name}", step_{at.number}, NULL);'


CALLS: dict[type, Callable[[Any, At], Iterable[str]]] = {
    s.Rdmsr: accesses.access,
    s.Wrmsr: accesses.access,
    s.Begin: accesses.begin,
    s.Complete: accesses.complete,
    s.Finish: accesses.finish,
    s.SetRegs: accesses.set_regs,
    s.EnableCap: _enable_cap,
    s.Install: _install,
    s.ScribbleBitmaps: _scribble,
    s.SetCpuid: _set_cpuid,
    s.Sweep: accesses.sweep,
    s.GetRegs: lambda each, _: [f"\tget_regs({each.vcpu});"],
    s.GetMsr: _msr,
    s.SetMsr: _msr,
    s.SetCpuidBits: _set_cpuid_bits,
    s.SendInit: lambda each, _: [f"\tsend_init({each.vcpu});"],
    s.GetMpState: lambda each, _: [f"\tget_mp_state({each.vcpu});"],
    s.SetMpState: lambda each, _: [f"\tset_mp_state({each.vcpu}, {each.state});"],
    s.SendSipi: lambda each, _: [f"\tsend_sipi({each.vcpu});"],
    s.CheckExtension: lambda each, _: [
        f"\tcheck_extension({FD[each.on]}, {CAPS.get(each.cap, each.cap)});"
    ],
    s.CreateIrqchip: lambda _, __: ["\tcreate_irqchip();"],
    s.CreateVcpu: lambda each, _: [f"\tcreate_vcpu{'_without_fd' * each.no_fd}({each.vcpu});"],
    s.BeginInstall: _begin_install,
    s.Meanwhile: _meanwhile,
    s.ResumeInstall: lambda each, _: [f'\tresume_install("{each.name}", {int(each.fails)});'],
    s.AwaitInstall: lambda each, _: [f'\tawait_task("{each.name}");'],
    s.AwaitMeanwhile: lambda each, _: [f'\tawait_task("{each.name}");'],
    s.Park: lambda each, _: [f"\tpark({each.vcpu});"],
    s.Release: lambda each, _: [f"\trelease({each.vcpu});"],
    s.Spin: accesses.spin,
    s.UntilExits: lambda each, _: [f"\tuntil_exits({each.vcpu});"],
    s.UntilRuns: lambda each, _: [f"\tuntil_runs({each.vcpu});"],
    s.StopSpin: lambda each, _: [f"\tstop_spin({each.vcpu});"],
    s.Sleep: lambda each, _: [f"\tsleep_in_kvm({each.vcpu});"],
    s.Wake: lambda each, _: [f"\twake({each.vcpu});"],
    s.AwaitSipi: lambda each, _: [f"\tawait_sipi({each.vcpu});"],
    s.EnterL2: levels.enter_l2,
    s.LeaveL2: lambda each, _: [f"\tleave_l2({each.vcpu});"],
    s.SaveNested: lambda each, _: [f"\tsave_nested({each.vcpu});"],
    s.RestoreNested: lambda each, _: [f"\trestore_nested({each.vcpu});"],
    s.LeaveNested: lambda each, _: [f"\tleave_nested({each.vcpu});"],
    s.FreshVm: lambda _, __: ["\tfresh_vm();"],
    s.WeighBitmaps: lambda _, __: ["\tweigh_bitmaps();"],
    s.XenHvmConfig: _xen_hvm_config,
    s.GetHypercallPage: lambda _, __: ["\tget_hypercall_page();"],
    s.Execute: accesses.execute,
    s.GetVcpuEvents: lambda each, _: [f"\tget_vcpu_events({each.vcpu});"],
    s.Rewrite: accesses.rewrite,
    s.Inject: lambda each, _: [f"\tinject_{each.kind}({each.vcpu});"],
    s.GetTaken: lambda each, _: [f"\tget_taken({each.vcpu});"],
    s.CloseVm: lambda _, __: ["\tclose_vm();"],
    s.CloseVcpu: lambda each, _: [f"\tclose_vcpu({each.vcpu});"],
}
"""What writes each action: every word of the language is here."""
