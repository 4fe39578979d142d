"""A signature explains its own difference and not one that is only like it."""

from __future__ import annotations

import pytest

from vmm.conformance.contract.difference import Difference
from vmm.conformance.contract.history import HISTORY
from vmm.conformance.contract.signature import SVM, VMX
from vmm.conformance.contract.signatures import SIGNATURES, UNSIGNED

A, FILTER, UNKNOWN = (
    "0x474f4f00",
    "RdmsrExit({}, FILTER), returned(0x1)",
    "RdmsrExit({}, UNKNOWN), gp",
)
_ALLOW_FS = "install(default_deny().allow(Msr.FS_BASE)) -> done"
_DENY = "install(default_allow().deny(0x474f4f00)) -> done"
_STALL = "begin_install(default_deny().allow(0x474f4f40), stall_at=0) -> stalled"
_FEP = "rdmsr(0x474f4f00, emulated=True)"
_FS, _DEADLINE = "rdmsr(Msr.FS_BASE)", "wrmsr(Msr.IA32_TSC_DEADLINE, 0)"
_TOP = "install(default_allow().range(0xfffffff0, 0x10, b'..')) -> done"
_LBR = ("wrmsr(0x1d9, 0x1) -> wrote", "install(default_allow().deny(0x680)) -> done")
_L2 = ("enter_l2() -> entered",)
_STORES = ("enter_l2(exit_store=(listed(Msr.IA32_TSC),)) -> entered",)
_LOADS = ("enter_l2(exit_load=(listed(Msr.STAR, 0x1),)) -> entered",)
_SAVED = (*_L2, "save_nested() -> got(1)", "leave_nested() -> done")
_BACK, _DENY_FS = "restore_nested() -> done", "install(default_allow().deny(Msr.FS_BASE)) -> done"
_GS = "listed(Msr.KERNEL_GS_BASE, 0x1)"
_DEADLINE_EXIT = "WrmsrExit(Msr.IA32_TSC_DEADLINE, FILTER, 0x0), wrote"
_FS_EXIT = FILTER.format("Msr.FS_BASE")
_SWEPT = "swept((run({}, {}, '{}'),))"
_SET_FS = "set_msr(Msr.FS_BASE, 0x5) -> refused"
_WROTE_FS = "wrmsr(Msr.FS_BASE, 0x5) -> wrote"
_FAILED_FS, _PARKED = "wrmsr(Msr.FS_BASE, 0x7) -> gp", "park(1) -> parked"
_GET = ("get_msr(Msr.FS_BASE)", "got(0x1)", "refused")
_SPEC, _READ_SPEC = "Msr.IA32_SPEC_CTRL", "rdmsr(Msr.IA32_SPEC_CTRL)"
_WROTE_SPEC = "wrmsr(Msr.IA32_SPEC_CTRL, 1) -> wrote"
_ALONE = "swept((run(0x0, 0x48, 'FILTER'), run({}, 1, 'PASSED'), run(0x49, 0x37, 'FILTER')))"
_SHADOW = ("get_vcpu_events()", "vcpu_events(True)", "vcpu_events(False)")
_BEGUN = f"begin(rdmsr({A}, emulated=True, after='sti')) -> RdmsrExit({A}, FILTER)"
_SPUN, _SPINS = "RdmsrExit(Msr.{}, FILTER)", "spin(rdmsr(Msr.FS_BASE, vcpu=1)) -> spinning"
_T, _LAST = "Msr.IA32_TSC_DEADLINE", "Msr.IA32_LASTBRANCHFROMIP"
_INIT = ("send_init(1) -> done", "get_mp_state(1) -> got(2)", "complete(vcpu=1) -> interrupted")
_RESET, _HELD = "regs(ANY, rax=0, rcx=0, rdx=ANY)", "regs(-20, rax=0x2, rcx=0, rdx=0x1)"
_FLUSH, _BLOCKED = "Msr.IA32_FLUSH_CMD", "begin_install(default_allow(), 'b') -> blocked"
_HALF = "install(default_deny(){}.deny(0x474f4f80, access=0x7)) -> rejected(EINVAL)"
_CALLED = "l1_exit('hypercall')"

_RAN, _LEFT = "rdmsr(Msr.STAR) -> returned(0x1)", f"leave_l2() -> {_CALLED}"
_REFUSED = _DENY_FS.replace("done", "rejected(EINVAL)")

_DENIED_WRITE = "wrmsr(Msr.FS_BASE, 0x7) -> WrmsrExit(Msr.FS_BASE, FILTER, 0x7)"

D = Difference
# An entry, what it explains, and near misses: another MSR, another outcome, another place.
ROWS: dict[str, tuple[Difference, ...]] = {
    "B01": (
        D(f"rdmsr({A})", UNKNOWN.format(A), f"RdmsrExit({A}, INVAL), gp"),
        D("rdmsr(0x10)", UNKNOWN.format("0x10"), "RdmsrExit(0x10, INVAL), gp"),
        D(f"rdmsr({A})", UNKNOWN.format(A), f"RdmsrExit({A}, FILTER), gp"),
        D(f"rdmsr({A})", UNKNOWN.format(A), "RdmsrExit(0x474f4f01, INVAL), gp"),
        D(f"rdmsr({A})", UNKNOWN.format(A), f"RdmsrExit({A}, INVAL), wrote"),
    ),
    "B02": (
        D("rdmsr(0x808)", "returned(0x0)", FILTER.format("0x808"), (_DENY,)),
        D("rdmsr(0x900)", "returned(0x0)", FILTER.format("0x900"), (_DENY,)),
        D("rdmsr(0x7ff)", "returned(0x0)", FILTER.format("0x7ff"), (_DENY,)),
        D("rdmsr(0x808)", "returned(0x0)", "gp", (_DENY,)),
        D("rdmsr(0x808)", "returned(0x0)", FILTER.format("0x900"), (_DENY,)),
        D("rdmsr(0x808, emulated=True)", "returned(0x0)", FILTER.format("0x808"), (_DENY,)),
    ),
    "B02 empty": (
        D("install(default_deny())", "rejected(EINVAL)", "done"),
        D("install(default_deny().deny(0x1, access=0x7))", "rejected(EINVAL)", "done"),
        D("install(default_deny())", "rejected(EINVAL)", "rejected(EFAULT)"),
    ),
    "B03": (
        D(f"rdmsr({A})", FILTER.format(A), UNKNOWN.format(A), (_DENY, _STALL)),
        D(f"rdmsr({A})", FILTER.format(A), UNKNOWN.format(A), (_DENY,)),
        D(f"rdmsr({A})", FILTER.format(A), "gp", (_DENY, _STALL)),
        D(f"rdmsr({A})", FILTER.format(A), "wrote", (_DENY, _STALL)),
        D(f"rdmsr({A})", FILTER.format(A), UNKNOWN.format("0x10"), (_DENY, _STALL)),
        D(f"rdmsr({A})", UNKNOWN.format(A), FILTER.format(A), (_STALL,)),
    ),
    "B03 failed": (
        D(f"rdmsr({A})", FILTER.format(A), UNKNOWN.format(A), (_DENY, _HALF.format(""))),
        *(
            D(f"rdmsr({A})", FILTER.format(A), UNKNOWN.format(A), (_DENY, other))
            for other in (
                "install(default_deny()) -> rejected(EINVAL)",
                "install(MsrFilter(0x2).deny(0x474f4f80)) -> rejected(EINVAL)",
                "install(default_allow().deny(0x474f4f80)) -> rejected(EFAULT)",
                _HALF.format(".allow(0x474f4f40)"),
                _HALF.format(".deny(0x474f4f00)"),
            )
        ),
        D(f"rdmsr({A})", FILTER.format(A), "wrote", (_DENY, _HALF.format(""))),
        D(f"rdmsr({A})", FILTER.format(A), "returned(0x1)", (_HALF.format(""), _DENY)),
    ),
    "B03 failed later": (
        D(f"rdmsr({A})", "returned(0x1)", FILTER.format(A), (_HALF.format(".deny(0x1)"),)),
        D(f"rdmsr({A})", "returned(0x1)", FILTER.format(A), (_HALF.format(""),)),
        D(f"rdmsr({A})", "returned(0x1)", FILTER.format(A), (_HALF.format(f".allow({A})"),)),
    ),
    "B04": (
        D(_FEP, FILTER.format(A), "Lost('KVM_RUN')", (_DENY,)),
        D(f"rdmsr({A})", FILTER.format(A), "Lost('KVM_RUN')", (_DENY,)),
        D(_FEP, FILTER.format(A), "returned(0x1)", (_DENY,)),
    ),
    "B04 behind STI": (
        D(*_SHADOW, (_DENY, _BEGUN)),
        D(*_SHADOW, (_DENY, _BEGUN.replace(", emulated=True", ""))),
        D(*_SHADOW, (_DENY, _BEGUN.replace("sti", "sti_nop"))),
        D(*_SHADOW, (_DENY, _BEGUN, "complete() -> interrupted")),
        D(_SHADOW[0], _SHADOW[2], _SHADOW[1], (_DENY, _BEGUN)),
        D(*_SHADOW[:2], "vcpu_events(False, exception=0xd)", (_DENY, _BEGUN)),
    ),
    "B05": (
        D(_FS, _FS_EXIT, "returned(0x1)", _L2, VMX),
        D("rdmsr(Msr.STAR)", FILTER.format("Msr.STAR"), "returned(0x1)", _L2, VMX),
        D(_FS, _FS_EXIT, "gp", _L2, VMX),
        D(_FS, _FS_EXIT, "returned(0x1)", (), VMX),
    ),
    "B05 second half": (
        D(_FS, "l1_exit('rdmsr', Msr.FS_BASE)", "returned(0x1)", _L2, VMX),
        D(_FS, "l1_exit('rdmsr', Msr.FS_BASE)", "gp", _L2, VMX),
        D(_FS, "l1_exit('rdmsr', Msr.FS_BASE)", "returned(0x1)", _L2, SVM),
        D("rdmsr(Msr.STAR)", "l1_exit('rdmsr', Msr.STAR)", "returned(0x1)", _L2, VMX),
    ),
    "B05 in a loop": (
        D("until_exits(1)", _SPUN.format("FS_BASE"), "never", (*_L2, _SPINS), VMX),
        D("until_exits(1)", _SPUN.format("STAR"), "never", (*_L2, _SPINS), VMX),
        D("until_exits(1)", _SPUN.format("FS_BASE"), "never", (_SPINS,), VMX),
        D("until_exits(1)", _SPUN.format("FS_BASE"), "never", (*_L2, _LEFT, _SPINS), VMX),
        D("until_exits(1)", _SPUN.format("FS_BASE"), "never", (*_L2, _SPINS), SVM),
        D("until_exits(1)", _SPUN.format("FS_BASE"), "Lost('x')", (*_L2, _SPINS), VMX),
    ),
    "B06": (
        D("enter_l2(fields=True)", "entered", "entry_failed('state')", (), VMX),
        D(f"enter_l2(entry_load=({_GS},))", "entered", "entry_failed('state')", (), VMX),
        D("enter_l2(fields=True)", "entered", "entry_failed('msr_load', 0x1)", (), VMX),
        D("enter_l2(fields=True)", "entered", "shutdown", (), VMX),
    ),
    "B07": (
        D(f"enter_l2(entry_load=({_GS},))", "entry_failed('msr_load', 1)", "entered", (), VMX),
        D(f"enter_l2(entry_load=({_GS},))", "entry_failed('msr_load', 1)", "shutdown", (), VMX),
        D(f"enter_l2(exit_load=({_GS},))", "shutdown", "entered", (), VMX),
    ),
    "B07 on exit": (
        D("leave_l2()", "shutdown", _CALLED, _LOADS, VMX),
        D("leave_l2()", "shutdown", _CALLED, (*_LOADS, *_L2), VMX),
        D("leave_l2()", _CALLED, "shutdown", _LOADS, VMX),
        D("leave_l2()", "shutdown", _CALLED, _L2, VMX),
    ),
    "B08": (
        D("install(MsrFilter(0x2).deny(0x474f4f40))", "rejected(EINVAL)", "done"),
        D("install(default_deny().deny(0x1, access=0x7))", "rejected(EINVAL)", "done"),
        D("install(MsrFilter(0x2).deny(0x474f4f40))", "rejected(EINVAL)", "rejected(EFAULT)"),
    ),
    "B09": (
        D("install_compat(default_allow())", "done", "rejected(ENOTTY)"),
        D("install(default_allow())", "done", "rejected(ENOTTY)"),
        D("install_compat(default_allow())", "done", "rejected(EINVAL)"),
    ),
    "B10": (
        D("rdmsr(Msr.FS_BASE, emulated=True)", "returned(0x1)", "gp", (), SVM),
        D("rdmsr(Msr.STAR, emulated=True)", "returned(0x1)", "gp", (), SVM),
        D("rdmsr(Msr.FS_BASE, emulated=True)", "returned(0x1)", "returned(0x2)", (), SVM),
        D("rdmsr(Msr.FS_BASE, emulated=True)", "returned(0x1)", "gp", (), VMX),
    ),
    "B10 from the host": (
        D("get_msr(Msr.FS_BASE)", "got(0x1)", "refused", (), SVM),
        D("get_msr(Msr.FS_BASE)", "got(0x1)", "refused", (_DENY,), SVM),
        D("get_msr(Msr.STAR)", "got(0x1)", "refused", (), SVM),
        D("get_msr(Msr.FS_BASE)", "got(0x1)", "got(0x2)", (), SVM),
        D("get_msr(Msr.FS_BASE)", "got(0x1)", "refused", (), VMX),
    ),
    "B10 from the host, as without a filter": (
        D(*_GET, (_SET_FS, _DENY), SVM),
        D(*_GET, (_DENY, _SET_FS), SVM),
        D(*_GET, (_SET_FS.replace("FS", "GS"), _DENY), SVM),
        D(*_GET, (_SET_FS.replace("refused", "done"), _DENY), SVM),
        D("get_msr(Msr.FS_BASE)", "got(0x1)", "got(0x2)", (_SET_FS, _DENY), SVM),
        D(*_GET, (_SET_FS, _DENY), VMX),
    ),
    "B10 never set by the host": (
        D(_FS, "returned(0x5)", "returned(0)", (_SET_FS, _DENY, f"{_DENIED_WRITE}, wrote"), SVM),
        D(_FS, "returned(0x5)", "returned(0)", (_SET_FS, _WROTE_FS), SVM),
        D(_FS, "returned(0x6)", "returned(0)", (_SET_FS,), SVM),
        D(_FS, "returned(0x5)", "returned(0x1)", (_SET_FS,), SVM),
        D(_FS, "returned(0x5)", "gp", (_SET_FS,), SVM),
        D(_FS, "returned(0x5)", "returned(0)", (_SET_FS.replace("refused", "done"),), SVM),
        D(_FS, "returned(0x5)", "returned(0)", (_SET_FS.replace("FS", "GS"),), SVM),
        D(_FS.replace("FS", "KERNEL_GS"), "returned(0x5)", "returned(0)", (_SET_FS,), SVM),
        D(_FS, "returned(0x5)", "returned(0)", (_SET_FS,), VMX),
    ),
    "B10 in an L2 restored": (
        D(_FS, "returned(0x1)", "gp", (*_SAVED, _ALLOW_FS, _BACK), SVM),
        D(_FS, "returned(0x1)", "gp", (*_SAVED, _ALLOW_FS, _RAN, _BACK), SVM),
        D(_FS, "returned(0x1)", "gp", (*_SAVED, _ALLOW_FS, _BACK, _LEFT), SVM),
        D(_FS, "returned(0x1)", "gp", (*_SAVED, _ALLOW_FS, _BACK), VMX),
        D(_FS, "returned(0x1)", _FS_EXIT, (*_SAVED, _ALLOW_FS, _BACK), SVM),
        D(_FS.replace("FS", "KERNEL_GS"), "returned(0x1)", "gp", (*_SAVED, _ALLOW_FS, _BACK), SVM),
    ),
    "B10 never written": (
        D(_FS, "returned(0x7)", "returned(0x5)", (_WROTE_FS, _PARKED, _FAILED_FS), SVM),
        D(_FS, "returned(0x7)", "returned(0x5)", (_WROTE_FS, _PARKED, _DENIED_WRITE), SVM),
        D(_FS, "returned(0x7)", "returned(0)", (_WROTE_FS, _PARKED, _FAILED_FS), SVM),
        D(_FS, "returned(0x5)", "returned(0x7)", (_WROTE_FS, _PARKED, _FAILED_FS), SVM),
        D(_FS, "returned(0x7)", "returned(0x5)", (_WROTE_FS, _PARKED, _FAILED_FS), VMX),
    ),
    "B10 never set by the host, in a mode": (
        D(f"{_FS[:-1]}, mode='real')", "returned(0x5)", "returned(0)", (_SET_FS, _DENY), SVM),
        D(f"{_FS[:-1]}, emulated=True)", "returned(0x5)", "returned(0)", (_SET_FS, _DENY), SVM),
        D(f"{_FS[:-1]}, vcpu=1)", "returned(0x5)", "returned(0)", (_SET_FS, _DENY), SVM),
    ),
    "B10 from the host, allowed": (
        D("get_msr(Msr.FS_BASE)", "got(0x1)", "refused", (_ALLOW_FS,), SVM),
        D("get_msr(Msr.FS_BASE)", "got(0x1)", "refused", (_ALLOW_FS, _DENY), SVM),
        D("get_msr(Msr.FS_BASE)", "got(0x1)", "got(0x2)", (_ALLOW_FS,), SVM),
        D("get_msr(Msr.FS_BASE)", "got(0x1)", "refused", (_ALLOW_FS,), VMX),
    ),
    "B11": (
        D(f"wrmsr({_FLUSH}, 0x1)", f"WrmsrExit({_FLUSH}, FILTER, 0x1), wrote", "wrote"),
        D("wrmsr(0x49, 0x1)", "WrmsrExit(0x49, FILTER, 0x1), wrote", "wrote"),
        D(f"wrmsr({_FLUSH}, 0x1)", f"WrmsrExit({_FLUSH}, FILTER, 0x1), wrote", "gp"),
        D(f"wrmsr({_FLUSH}, 0x1)", "wrote", "gp"),
        D(f"wrmsr({_FLUSH}, 0x1)", f"WrmsrExit({_FLUSH}, FILTER, 0x1), wrote", "wrote", _L2, VMX),
    ),
    "B12": (
        D(_DEADLINE, _DEADLINE_EXIT, "wrote", (_DENY,), VMX),
        D("wrmsr(0x6e1, 0)", "WrmsrExit(0x6e1, FILTER, 0x0), wrote", "wrote", (_DENY,), VMX),
        D(_DEADLINE, _DEADLINE_EXIT, "gp", (_DENY,), VMX),
        D(_DEADLINE, _DEADLINE_EXIT, "wrote", _L2, VMX),
    ),
    "B12 swept": (
        *(
            D(f"sweep('wrmsr', {msr}, 1)", _SWEPT.format(msr, 1, "FILTER"), seen, (), VMX)
            for msr, seen in (
                (_T, _SWEPT.format(_T, 1, "PASSED")),
                ("0x6e1", _SWEPT.format("0x6e1", 1, "PASSED")),
                (_T, _SWEPT.format(_T, 1, "GP")),
            )
        ),
        D("sweep('wrmsr', 0x0, 0x2000)", _SWEPT.format("0x0", "0x2000", "FILTER"), "Lost('')"),
    ),
    "B13": (
        D(_DEADLINE, _DEADLINE_EXIT, "wrote", (_DENY,), SVM),
        D("rdmsr(0x6e0)", FILTER.format("0x6e0"), "returned(0x0)", (_DENY,), SVM),
        D(_DEADLINE, _DEADLINE_EXIT, "gp", (_DENY,), SVM),
    ),
    "B17": (
        D("meanwhile(create_vcpu(1))", "done", "blocked", (_BLOCKED,)),
        D("meanwhile(create_vcpu(1))", "done", "blocked", ("begin_install(x, 'b') -> done",)),
        D("meanwhile(create_vcpu(1))", "done", "rejected(EEXIST)", (_BLOCKED,)),
        D("meanwhile(get_msr(0x10))", "got(0x0)", "blocked", (_BLOCKED,)),
        D("meanwhile(create_vcpu(1))", "done", "blocked", (_BLOCKED, "await_install('b') -> done")),
    ),
    "B18": (
        D("rdmsr(0xfffffff8)", FILTER.format("0xfffffff8"), UNKNOWN.format("0xfffffff8"), (_TOP,)),
        D("rdmsr(0xffffffe8)", FILTER.format("0xffffffe8"), UNKNOWN.format("0xffffffe8"), (_TOP,)),
        D("rdmsr(0xfffffff8)", FILTER.format("0xfffffff8"), "Lost('KVM_RUN')", (_TOP,)),
    ),
    "B19": (
        D("rdmsr(0x680)", FILTER.format("0x680"), "returned(0x0)", _LBR, VMX),
        D("rdmsr(0x174)", FILTER.format("0x174"), "returned(0x0)", _LBR, VMX),
        D("rdmsr(0x680)", FILTER.format("0x680"), "gp", _LBR, VMX),
        D("rdmsr(0x680)", FILTER.format("0x680"), "returned(0x0)", _LBR[1:], VMX),
    ),
    "B20": (
        D(_FS, _FS_EXIT, "returned(0x1)", (*_L2, _DENY), SVM),
        D(_FS, _FS_EXIT, "returned(0x1)", (_DENY, *_L2), SVM),
        D(_FS, _FS_EXIT, "gp", (*_L2, _DENY), SVM),
    ),
    "B20 on VMX": (
        D(_FS, _FS_EXIT, "returned(0x1)", (*_L2, _DENY), VMX),
        D("rdmsr(Msr.STAR)", FILTER.format("Msr.STAR"), "returned(0x1)", (*_L2, _DENY), VMX),
        D("rdmsr(0x174)", FILTER.format("0x174"), "returned(0x1)", (*_L2, _DENY), VMX),
        D("rdmsr(0x480)", FILTER.format("0x480"), "returned(0x1)", (*_L2, _DENY), VMX),
    ),
    "B20 restored": (
        D(_FS, _FS_EXIT, "returned(0x1)", (*_SAVED, _BACK, _RAN, _DENY_FS), SVM),
        D(_FS, _FS_EXIT, "returned(0x1)", (*_L2, _DENY_FS, *_SAVED[1:], _RAN), SVM),
        D(_FS, _FS_EXIT, "returned(0x1)", (*_L2, _DENY_FS, *_SAVED[1:], _RAN, _BACK), SVM),
        D(_FS, _FS_EXIT, "returned(0x1)", (*_L2, _DENY_FS, "fresh_vm() -> done"), SVM),
    ),
    "B36": (
        D(_FS, _FS_EXIT, "returned(0x1)", (*_SAVED, _DENY_FS, _BACK), SVM),
        D(_FS, _FS_EXIT, "returned(0x1)", (*_SAVED, _DENY_FS, _RAN, _BACK), SVM),
        D(_FS, _FS_EXIT, "returned(0x1)", (*_SAVED, _BACK, _RAN, _DENY_FS), SVM),
        D(_FS, _FS_EXIT, "returned(0x1)", (*_SAVED, _DENY_FS), SVM),
        D(_FS, _FS_EXIT, "returned(0x1)", (*_SAVED, _DENY_FS, _BACK, *_L2), SVM),
        D(_FS, _FS_EXIT, "returned(0x1)", (*_SAVED, _DENY_FS, _BACK, _LEFT), SVM),
        D(_FS, _FS_EXIT, "returned(0x1)", (*_SAVED, _DENY_FS, _BACK, _SAVED[-1]), SVM),
        D(_FS, _FS_EXIT, "returned(0x1)", (*_SAVED, _REFUSED, _BACK), SVM),
        D(_FS, _FS_EXIT, "gp", (*_SAVED, _DENY_FS, _BACK), SVM),
        D(_FS, "returned(0x1)", _FS_EXIT, (*_SAVED, _DENY_FS, _BACK), SVM),
    ),
    "B36 last": (
        D(_FS, _FS_EXIT, "returned(0x1)", (*_SAVED, "fresh_vm() -> done", _BACK, _DENY_FS), VMX),
        D(_FS, _FS_EXIT, "returned(0x1)", (*_SAVED, _BACK, _RAN, _DENY_FS), VMX),
        D(_FS, _FS_EXIT, "l1_exit('rdmsr', 0xc0000100)", (*_SAVED, _BACK, _DENY_FS), VMX),
    ),
    "B39": (
        D(_FS, _FS_EXIT, "returned(0x1)", (*_L2, _BACK, _LEFT, _DENY_FS), SVM),
        D(_FS, _FS_EXIT, "returned(0x1)", (*_L2, _BACK, _LEFT, _DENY_FS), VMX),
        D(_FS, _FS_EXIT, "returned(0x1)", (*_SAVED, _BACK, _LEFT, _DENY_FS), SVM),
        D(_FS, _FS_EXIT, "returned(0x1)", (*_L2, _LEFT, _BACK, _DENY_FS), SVM),
        D(_FS, _FS_EXIT, "returned(0x1)", (*_L2, _LEFT, _DENY_FS), SVM),
        D(_FS, _FS_EXIT, "returned(0x1)", (*_L2, _BACK, _LEFT, "fresh_vm() -> done"), SVM),
        D(_FS, _FS_EXIT, "gp", (*_L2, _BACK, _LEFT, _DENY_FS), SVM),
        D(_FS, "returned(0x1)", _FS_EXIT, (*_L2, _BACK, _LEFT, _DENY_FS), SVM),
    ),
    "B34": tuple(
        D(f"sweep('rdmsr', {msr}, 4)", _SWEPT.format(msr, 4, "FILTER"), seen, before, vendor)
        for msr, seen, before, vendor in (
            (_LAST, _SWEPT.format(_LAST, 4, "PASSED"), _LBR, SVM),
            (_LAST, _SWEPT.format(_LAST, 4, "PASSED"), _LBR[1:], SVM),
            (_LAST, _SWEPT.format(_LAST, 4, "PASSED"), _LBR, VMX),
            (_LAST, _SWEPT.format(_LAST, 4, "GP"), _LBR, SVM),
            ("0x680", _SWEPT.format("0x680", 4, "PASSED"), _LBR, SVM),
        )
    ),
    "B40": (
        D(_READ_SPEC, FILTER.format(_SPEC), "returned(0x1)", (_WROTE_SPEC, _DENY), VMX),
        D(_READ_SPEC, FILTER.format(_SPEC), "returned(0x1)", (_WROTE_SPEC, _DENY), SVM),
        D(_READ_SPEC, FILTER.format(_SPEC), "returned(0x1)", (_DENY, _WROTE_SPEC), VMX),
        D(_READ_SPEC, FILTER.format(_SPEC), "returned(0x1)", (_WROTE_SPEC, *_L2, _DENY), VMX),
        D(_READ_SPEC, FILTER.format(_SPEC), "gp", (_WROTE_SPEC, _DENY), VMX),
        D("rdmsr(0x49)", FILTER.format("0x49"), "returned(0x1)", (_WROTE_SPEC, _DENY), VMX),
    ),
    "B40 swept": tuple(
        D("sweep('rdmsr', 0x0, 0x80)", _SWEPT.format("0x0", "0x80", "FILTER"), seen, before, VMX)
        for seen, before in (
            (_ALONE.format(_SPEC), (_WROTE_SPEC, _DENY)),
            (_ALONE.format("Msr.IA32_PRED_CMD"), (_WROTE_SPEC, _DENY)),
            (_ALONE.format(_SPEC), (_DENY,)),
        )
    ),
    "B37": (
        D("get_regs(1)", _RESET, _HELD, _INIT),
        D("get_regs(1)", _RESET, _HELD, _INIT[:2]),
        D("get_regs(1)", _RESET, _HELD, _INIT[1:]),
        D("get_regs(1)", "regs(2, rax=0x2, rcx=0, rdx=0x1)", _HELD, _INIT),
    ),
    "B37 without NRIPS": (
        D("complete(vcpu=1)", "interrupted", "internal_error(1)", _INIT[:2]),
        D("complete(vcpu=1)", "interrupted", "internal_error(1)", _INIT[:1]),
        D("complete(vcpu=1)", "interrupted", "Lost('x')", _INIT[:2]),
    ),
    "B35": (
        D("leave_l2()", "shutdown", _CALLED, _STORES, VMX),
        D("leave_l2()", "shutdown", _CALLED, (*_STORES, *_L2), VMX),
        D("leave_l2()", "shutdown", _CALLED, _LOADS, VMX),
        D("leave_l2()", "shutdown", "done", _STORES, VMX),
    ),
}


def _explained(entry: str, difference: Difference) -> bool:
    return any(row.explains(difference) for row in SIGNATURES if row.id == entry[:3])


@pytest.mark.parametrize("entry", ROWS)
def test_a_signature_explains_its_difference_and_no_near_miss(entry: str) -> None:
    own, *near = ROWS[entry]
    assert _explained(entry, own)
    assert [miss for miss in near if _explained(entry, miss)] == []


_ALL = ("install(default_deny().allow(0x474f4f00)) -> done",)
_ENDS = "Lost('the instruction ended with {}')"
_SIDEWAYS = (
    ("execute('rdpid', 0x7, emulated=True)", "executed(0x7)", "executed(0)", "executed(0x6)"),
    ("execute('sysenter', 0x8, emulated=True)", "executed(0x8)", "gp", "Lost('HltExit()')"),
    ("execute('rsm', 0x1000)", "executed(0x1000)", "Lost('ShutdownExit()')", "executed(0)"),
    ("execute('rsm', 0x1000)", "executed(0x1000)", _ENDS.format(17), _ENDS.format(-14)),
    ("execute('sysenter', 0x8, emulated=True)", "executed(0x8)", _ENDS.format(17), _ENDS.format(8)),
    ("rdmsr(0x1, mode='smm')", "returned(0)", "Lost('RSM: ShutdownExit()')", "Lost('SMI: x')"),
    (
        "rdmsr(0x1, mode='smm')",
        "returned(0)",
        "Lost('RSM ended with 17')",
        "Lost('SMI ended with 17')",
    ),
)


@pytest.mark.parametrize("action, expected, seen, miss", _SIDEWAYS)
def test_b06_is_what_the_emulator_does_under_a_filter_and_nothing_else(
    action: str, expected: str, seen: str, miss: str
) -> None:
    assert _explained("B06", D(action, expected, seen, _ALL))
    assert not _explained("B06", D(action, expected, miss, _ALL))
    assert not _explained("B06", D(action, expected, seen))
    native = action.replace(", emulated=True", "").replace(", mode='smm'", "")
    assert native == action or not _explained("B06", D(native, expected, seen, _ALL))


def test_every_entry_has_a_signature_with_near_misses_or_a_reason_why_not() -> None:
    assert sorted([*{row.id for row in SIGNATURES}, *UNSIGNED]) == sorted(HISTORY)
    assert {row.id for row in SIGNATURES} == {name[:3] for name in ROWS}
    assert all(len(rows) > 2 for rows in ROWS.values())


@pytest.mark.parametrize(
    ("lines", "access", "allowed"),
    [
        (["install(default_deny().range(0x10, 0x8, b'\\x00'), access=0x7)"], "rdmsr(0x12)", None),
        (["begin_install(default_deny().hole(2).allow(0x12), stall_at=3) -> stalled"], "", True),
        (["begin_install(default_deny().deny(0x9).allow(0x1), stall_at=1) -> stalled"], "", False),
        (
            ["begin_install(default_deny().deny(0x9).allow(0x1), stall_at=0x1) -> stalled"],
            "",
            False,
        ),
        (["begin_install(default_deny().deny(0x9).allow(0x1), stall_at=0) -> stalled"], "", True),
        (
            [
                "begin_install(default_deny().deny(0x9).deny(0x1), stall_at=0) -> stalled",
                "resume_install(fails=True) -> rejected(EFAULT)",
            ],
            *("", True),
        ),
        (
            [
                "begin_install(default_allow().deny(0x12).deny(0x1, access=0x4), stall_at=0)",
                "resume_install() -> rejected(EINVAL)",
            ],
            *("", False),
        ),
        (
            ["install(MsrFilter(0x3).deny(0x9).deny(0x1, access=0x0)) -> rejected(EINVAL)"],
            "",
            False,
        ),
        (["install(MsrFilter(0x2).deny(0x9).deny(0x1, access=0x0)) -> rejected(EINVAL)"], "", True),
        (
            [
                "install(default_allow().range(0x10, 0x40, bitmap_of(0x40, [*range(0x1, 0x9)]))"
                ".range(0x10, 0x1, Pointer.NULL)) -> rejected(EFAULT)"
            ],
            *("", True),
        ),
        (
            [
                "install(default_allow().range(0x10, 0x40, b'\\x00' * 0x8, WRITE)"
                ".range(0x10, 0x3001, b'\\xff' * 0x608)) -> rejected(EINVAL)"
            ],
            *("wrmsr(0x12, 0x1)", False),
        ),
    ],
)
def test_what_a_half_built_filter_decides(
    lines: list[str], access: str, allowed: bool | None
) -> None:
    assert Difference(access or "rdmsr(0x12)", "", "", lines).halfway is allowed


@pytest.mark.parametrize(
    ("bitmap", "allowed"),
    [
        (r"b'\x06'", True),
        (r"b'\x03'", False),
        (r"b'\xfb' * 0x10", False),
        ("AtEdge(b'\\xff' * 0x10)", True),
        ('bytes.fromhex("04ff")', True),
        ('bytes.fromhex("fb00")', False),
        ("bitmap_of(0x40, [0x2])", True),
        ("bitmap_of(0x40, [0x1, *range(0x3, 0x9)])", False),
        ("urandom(8)", None),
        ("AtEdge(b'\\x00' * 0x7)", True),
        ("AtEdge(b'\\x00' * 0x8)", False),
    ],
)
def test_a_bitmap_is_read_as_a_case_writes_it(bitmap: str, allowed: bool | None) -> None:
    filter_ = f"default_allow().range(0x10, 0x40, {bitmap}).deny(0x1, access=0x4)"
    before = [f"install({filter_}) -> rejected(EINVAL)"]
    assert Difference("rdmsr(0x12)", "", "", before).halfway is allowed


@pytest.mark.parametrize(
    "text",
    [
        *("deny(zzz)", "deny(Msr.NONE)", "deny()", "deny(0x1, access=?)", "range()", "range(1, 2)"),
        *("range(0x10, 0x40, b'\\\\x0')", "range(0x10, 0x40, b'\u00e9')", "range(0x10, 0x40, b')"),
        *("slot(x)", "range(0x10, 0x40, bitmap_of(0x40, [?]))", "range(0x10, 0x40, b'', 0x3)"),
    ],
)
def test_no_text_of_a_record_stops_a_signature(text: str) -> None:
    for stall in ("0", "9" * 5000, "0x" + "f" * 5000):
        line = f"begin_install(default_deny().{text}.deny(0x1, access=0x4), stall_at={stall})"
        found = Difference("rdmsr(0x12)", "", "", [f"{line} -> stalled"])
        assert found.halfway in (True, False, None)
    assert Difference("rdmsr(Msr.NONE)", "", "RdmsrExit(Msr.NONE, FILTER)").is_of_its_access
