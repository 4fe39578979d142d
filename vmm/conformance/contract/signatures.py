"""What each entry of the history looks like in a failed case: small patterns over printed words.

They read what a record holds (``records.jsonl``), so that saved runs are explained too. A version
is no part of a signature: distributions backport. An open bug must not hide a new one, so each is
one exact difference, and one that is only like it stays unexplained (docs/history.md).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from vmm.conformance.contract.difference import Difference


@dataclass(frozen=True, slots=True)
class Signature:
    """How one entry shows: every pattern given must match, and no ``without``.

    ``action``, ``expected`` and ``seen`` match the whole text, ``install`` and ``before`` a part of
    the last install and of the steps before. ``vendor`` "" stands for any. ``at_top`` asks for a
    range that reaches 2^32 and holds the MSR of the access, ``halfway`` for a half-built filter
    that allows it (True) or does not. ``unfiltered`` asks that the host was refused the MSR without
    a filter too, ``unset`` that the read looks for what a write failed to leave. ``lasts`` says
    that the steps after it prove nothing: the VM's state is no more what the script made it. None
    explains a read that ends as a write, or an exit for another MSR.
    """

    id: str
    action: str
    expected: str
    seen: str
    install: str = ""
    before: str = ""
    without: str = ""
    vendor: str = ""
    at_top: bool = False
    halfway: bool | None = None
    unfiltered: bool = False
    unset: bool = False
    lasts: bool = False

    def explains(self, difference: Difference) -> bool:
        """Say whether this entry makes a kernel differ in exactly this way."""
        return (
            bool(re.fullmatch(self.seen, difference.seen))
            and self.can_show_at(difference)
            and difference.is_of_its_access
        )

    def can_show_at(self, step: Difference) -> bool:
        """Say whether this entry can make a kernel differ at this step, whatever was seen."""
        before = "\n".join(step.before)
        return (
            self.vendor in ("", step.vendor)
            and bool(re.fullmatch(self.action, step.action))
            and bool(re.fullmatch(self.expected, step.expected))
            and bool(re.search(self.install, step.install))
            and bool(re.search(self.before, before))
            and not (self.without and re.search(self.without, before))
            and (not self.at_top or step.at_top)
            and (self.halfway is None or step.halfway is self.halfway)
            and (not self.unfiltered or step.is_refused_unfiltered)
            and (not self.unset or step.is_of_failed_write)
        )


VMX, SVM = "kvm_intel", "kvm_amd"
_ANY = r".*"
_OPEN = r"(?:begin\()?"
_ACCESS = _OPEN + r"(?:rd|wr)msr\(.*"
_EXIT = r"(?:Rd|Wr)msrExit\([^()]*"
_END = r"(?:returned\([^()]*\)|wrote|gp)"
_FILTERED = rf"{_EXIT}\bFILTER\b[^()]*\)(?:, {_END})?"
_NATIVE = r"(?:returned\([^()]*\)|wrote)"
_FAILS = rf"(?:gp|{_EXIT}\b(?:UNKNOWN|INVAL)\b[^()]*\)(?:, {_END})?)"
_ALLOWED = rf"(?:unfiltered|{_NATIVE}|{_FAILS})"
_UNKNOWN = rf"{_EXIT}, UNKNOWN(?:, [^()]*)?\)(?:, {_END})?"
_UNASKED = rf"(?:unfiltered|{_NATIVE}|{_UNKNOWN})"
_DENIED = rf"(?:{_FILTERED}|gp)"
_REFUSED = r"(?:done|rejected\(E\w+\))"


def _at(*names: str) -> str:
    """Return the pattern of a native access of one of the MSRs, by name or hexadecimal."""
    return rf"{_OPEN}(?:rd|wr)msr\((?:{'|'.join(names)})\b(?!.*emulated=).*"


_BASES = r"Msr\.FS_BASE", r"Msr\.GS_BASE", "0xc0000100", "0xc0000101"
_BASE_FROM_THE_HOST = rf"[gs]et_msr\((?:{'|'.join(_BASES)})\b.*"
_NESTED_BASES = (*_BASES, r"Msr\.KERNEL_GS_BASE", "0xc0000102")
# What VMX's hardware lets an L2 reach (nested.c, nested_vmx_prepare_msr_bitmap); SVM's is L1's all.
_OF_VMX_L2 = (
    *(*_NESTED_BASES, r"Msr\.IA32_(?:SPEC_CTRL|PRED_CMD|FLUSH_CMD)", "0x4[89]", "0x10b"),
    *("0xe[78]", "0x6a[024-7]", "0x4?c[1-8]", "0x30[9a-c]", "0x38[ef]", "0x390"),
)
_INTEL_LBR = ("0x1c[89]", "0x6[89cd][0-9a-f]", "0xd[cd][0-9a-f]")
_AMD_LBR = ("0x1d[bcde]", r"Msr\.IA32_LAST\w+")
_DEADLINE = r"(?:Msr\.IA32_TSC_DEADLINE|0x6e0)"
_WRITE_DEADLINE = rf"{_OPEN}wrmsr\({_DEADLINE}, (?!.*(?:emulated|mode)=).*"
_DEADLINE_SWEPT = rf"sweep\('wrmsr', {_DEADLINE}, 1(?:, vcpu=\w+)?\)"
_LBR_SWEPT = r"sweep\('(?:rd|wr)msr', (?:0x1db|Msr\.IA32_LASTBRANCHFROMIP), 4(?:, vcpu=\w+)?\)"
_X2APIC = (r"Msr\.APIC_\w+", "0x8[0-9a-f]{2}")
_WAITS = r"meanwhile\((?:create_vcpu|create_irqchip|install\w*)\(.*"
_STALLED = r"begin_install\([^\n]*-> stalled(?![\s\S]*\n(?:resume|await)_install)"
_BLOCKED = r"begin_install\([^\n]*-> blocked(?![\s\S]*\n(?:resume|await)_install)"
_REJECTED = r"^(?!.*(?:argp=|number=|caller='child')).*-> rejected\((?:EINVAL|EFAULT)\)"
_INTO_L2 = r"(?:enter_l2|restore_nested)\("
_STILL = r"(?![\s\S]*(?:l1_exit|\n(?:leave_nested|fresh_vm)\())"
_IN_L2 = rf"{_INTO_L2}{_STILL}"
_INSTALL_IN_L2 = rf"{_IN_L2}(?![\s\S]*\n{_INTO_L2})[\s\S]*\ninstall[^\n]*-> done"
_BY_HOST = r"install|enable_exits|(?:save|leave|restore)_nested|[gs]et_msr|create_vcpu"
_IDLE = rf"(?:(?:{_BY_HOST})\([^\n]*\n)*"
_RESTORED = (
    rf"(?:^|\n)(?:install[^\n]*-> done\n{_IDLE}restore_nested|restore_nested[^\n]*\n{_IDLE}install)"
    rf"\([^\n]*-> done(?![\s\S]*\n{_INTO_L2}){_STILL}"
)
_TWICE = (
    r"(?:^|\n)enter_l2\([^\n]*-> entered(?:(?!l1_exit|\n(?:leave_nested|fresh_vm)\()[\s\S])*"
    r"\nrestore_nested\([^\n]*-> done"
)
_BACK_IN_L1 = r"[\s\S]*l1_exit(?![\s\S]*\n(?:enter_l2|restore_nested|fresh_vm)\()"
_LBR_ON = r"wrmsr\((?:0x1d9|Msr\.IA32_DEBUGCTL\w*), (?:0x)?[0-9a-f]*[13579bdf]\b[\s\S]*install"
_FLAG = r"MsrFilter\(0x(?![01]\b)[0-9a-f]+\b.*"
_LAST_ENTRY = r"(?![\s\S]*\nenter_l2)"
_EXIT_LISTS = rf"enter_l2\([^\n]*exit_(?:store|load)=[^\n]*-> entered{_LAST_ENTRY}"
_TSC_STORED = rf"enter_l2\([^\n]*exit_store=[^\n]*\b(?:0x10|Msr\.IA32_TSC)\)[^\n]*{_LAST_ENTRY}"
_ENDS_L2 = r"(?:leave_l2|rdmsr|wrmsr)\(.*"
_ONE_FILTER = r"swept\(\(run\([\w.]+, \w+, 'FILTER'\),\)\)"
_ONE_PASSED = r"swept\(\(run\([\w.]+, \w+, 'PASSED'\),\)\)"
# The two executors each say in their own words that KVM gave up: 17 is KVM_EXIT_INTERNAL_ERROR.
_GAVE_UP = r"InternalErrorExit.*|the instruction ended with 17'\)"
_EMULATED_IN_SHADOW = r"(?:^|\n)begin\((?=[^\n]*emulated=True)[^\n]*after='(?:sti|mov_ss)'[^\n]*$"
_INIT = r"send_init\([^\n]*\n(?:[^\n]*\n)*?get_mp_state\([^\n]*-> got\([02]\)"

SIGNATURES = (
    # The MSRs of the catalogue that no CPU has are 0x474fXXXX; of others B27 says more.
    Signature(
        "B01",
        _OPEN + r"(?:rd|wr)msr\(0x474f[0-9a-f]{4}\b.*",
        rf"{_EXIT}\bUNKNOWN\b[^()]*\)(?:, {_END})?",
        rf"{_EXIT}\bINVAL\b[^()]*\)(?:, {_END})?",
    ),
    # The contract's exception is the whole range, registers that no x2APIC has included (R30).
    Signature("B02", _at(*_X2APIC), _ALLOWED, _FILTERED),
    Signature("B02", r".*install\w*\(default_deny\(\)[,)].*", r"rejected\(EINVAL\)", "done"),
    # (a), (b): while a bitmap is waited for, nothing or half of the new filter is in force.
    Signature("B03", _ACCESS, _FILTERED, _UNASKED, before=_STALLED, halfway=True),
    Signature("B03", _ACCESS, _UNASKED, _FILTERED, before=_STALLED, halfway=False),
    # (c): a failing install has replaced the filter by its ranges before the bad one.
    Signature("B03", _ACCESS, _FILTERED, _UNASKED, install=_REJECTED, halfway=True),
    Signature("B03", _ACCESS, _UNASKED, _FILTERED, install=_REJECTED, halfway=False),
    # (f): the copy holds kvm->lock.
    Signature("B03", _WAITS, _REFUSED, "blocked", before=_STALLED, lasts=True),
    # The exit is prepared and lost, and KVM_RUN goes on in the guest, at the instruction again.
    Signature(
        "B04",
        _ACCESS + r"emulated=True.*",
        rf"{_EXIT}.*",
        rf"(?:Lost\(.*|interrupted|{_EXIT}.*{_EXIT}.*)",
        lasts=True,
    ),
    # What completes an emulated instruction came with it: until then #DB is in front of the exit.
    Signature(
        "B04",
        _ACCESS + r"emulated=True, single_step=True.*",
        rf"{_EXIT}.*",
        r"Fault\(1\)",
    ),
    # And until then the shadow of STI or MOV SS is gone: the emulator has had its instruction.
    Signature(
        "B04",
        r"get_vcpu_events\(.*",
        r"vcpu_events\(True\)",
        r"vcpu_events\(False\)",
        before=_EMULATED_IN_SHADOW,
    ),
    # KVM loads PERF_GLOBAL_CTRL for L1 as if the guest wrote it: the filter makes the entry fail.
    Signature(
        "B06",
        r"enter_l2\((?!.*(?:load|store)=).*",
        "entered",
        r"entry_failed\('state'\)",
        vendor=VMX,
        lasts=True,
    ),
    # The emulator goes on with what it could not read: 0, what lay on the stack, or a fault.
    Signature(
        "B06",
        r"execute\('rd(?:tsc|pid)', .*emulated=True.*",
        r"executed\(.*\)",
        r"(?:executed\(0\)|Fault\(6\))",
        install="deny",
    ),
    Signature(
        "B06",
        r"execute\('sys(?:call|enter|exit)', .*emulated=True.*",
        r"executed\(.*\)",
        r"(?:executed\([^()]*\)|Fault\(6\)|gp|"
        rf"Lost\('(?:{_GAVE_UP}))",
        install="deny",
        lasts=True,
    ),
    Signature(
        "B06",
        r"execute\('rsm', .*",
        r"executed\(.*\)",
        rf"Lost\('(?:{_GAVE_UP}|ShutdownExit.*)",
        install="deny",
        lasts=True,
    ),
    Signature(
        "B06",
        r"(?:finish\(.*|(?:rd|wr)msr\(.*mode='smm'.*)",
        r".*",
        r"(?:.*, )?Lost\('RSM(?:: (?:InternalError|Shutdown)Exit.*| ended with 17'\))",
        install="deny",
        lasts=True,
    ),
    Signature(
        "B35",
        _ENDS_L2,
        "shutdown",
        r"l1_exit\(.*",
        before=_TSC_STORED,
        vendor=VMX,
        lasts=True,
    ),
    Signature(
        "B07",
        r"enter_l2\(.*entry_load=.*",
        r"(?:entry_failed\('msr_load', .*|shutdown)",
        "entered",
        vendor=VMX,
        lasts=True,
    ),
    Signature(
        "B07",
        r"(?:enter_l2|leave_l2|rdmsr|wrmsr)\(.*",
        "shutdown",
        r"(?:l1_exit|entry_failed)\(.*",
        before=_EXIT_LISTS,
        vendor=VMX,
        lasts=True,
    ),
    Signature("B08", rf".*install\w*\({_FLAG}", r"rejected\(EINVAL\)", "done", lasts=True),
    Signature(
        "B08",
        rf"begin_install\({_FLAG}",
        r"rejected\(EINVAL\)",
        r"(?:blocked|stalled)",
        lasts=True,
    ),
    Signature(
        "B08",
        r"enable_exits\(0x[0-9a-f]+\)",
        r"rejected\(EINVAL\)",
        "done",
        lasts=True,
    ),
    Signature(
        "B09",
        r".*(?:install_compat\(|begin_install\(.*caller='compat').*",
        r"(?:done|rejected\((?:EINVAL|EFAULT)\))",
        r"rejected\(ENOTTY\)",
        lasts=True,
    ),
    # KVM's own handlers do not know the two: neither emulated accesses nor the host's work.
    # Under a filter, what the host is refused may be what was filtered (against R34): that is news.
    Signature(
        "B10",
        rf"{_OPEN}(?:rd|wr)msr\((?:{'|'.join(_BASES)})\b.*emulated=True.*",
        rf"(?:unfiltered|{_NATIVE})",
        _FAILS,
        vendor=SVM,
    ),
    Signature(
        "B10",
        _BASE_FROM_THE_HOST,
        r"(?:done|got\(.*\))",
        "refused",
        without="install",
        vendor=SVM,
    ),
    # The host was refused it before there was a filter: no filter gives it back.
    Signature(
        "B10",
        _BASE_FROM_THE_HOST,
        r"(?:done|got\(.*\))",
        "refused",
        unfiltered=True,
        vendor=SVM,
    ),
    # What the host was refused to write, or the guest failed to, is not there: it finds the last.
    Signature(
        "B10",
        rf"rdmsr\((?:{'|'.join(_BASES)})\b.*",
        r"returned\(.*",
        r"returned\(.*",
        unset=True,
        vendor=SVM,
    ),
    # What the last filter allows it does not keep from the host either.
    Signature(
        "B10",
        _BASE_FROM_THE_HOST,
        r"(?:done|got\(.*\))",
        "refused",
        install=rf"^install\(default_deny\(\)\.allow\((?:{'|'.join(_BASES)})\)\) -> done$",
        vendor=SVM,
    ),
    Signature(
        "B10",
        _at(*_BASES),
        rf"(?:unfiltered|{_NATIVE}|either\(.*)",
        _FAILS,
        before=rf"\bpark\(|-> blocked|{_INSTALL_IN_L2}|{_RESTORED}",
        vendor=SVM,
    ),
    Signature("B11", _at("0x10b", r"Msr\.IA32_FLUSH_CMD"), _DENIED, "wrote"),
    # 5.3: the denied write of exactly this MSR ends as `wrote`, and nothing exits.
    Signature("B12", _WRITE_DEADLINE, _DENIED, "wrote", without=_IN_L2, vendor=VMX),
    Signature("B13", _WRITE_DEADLINE, _DENIED, "wrote", without=_IN_L2, vendor=SVM),
    Signature("B12", _DEADLINE_SWEPT, _ONE_FILTER, _ONE_PASSED, without=_IN_L2, vendor=VMX),
    Signature("B13", _DEADLINE_SWEPT, _ONE_FILTER, _ONE_PASSED, without=_IN_L2, vendor=SVM),
    Signature("B17", _WAITS, _REFUSED, "blocked", before=_BLOCKED, lasts=True),
    Signature("B18", _ACCESS, _DENIED, _ALLOWED, at_top=True),
    Signature("B18", _ACCESS, _ALLOWED, _DENIED, at_top=True),
    Signature(
        "B19",
        _at(*_INTEL_LBR),
        _FILTERED,
        _NATIVE,
        before=_LBR_ON,
        without=_IN_L2,
        vendor=VMX,
    ),
    # Nothing of the guest ran between the install and the restore, in either order.
    *(
        Signature(entry, _at(*msrs), _FILTERED, _NATIVE, before=before, vendor=vendor)
        for entry, before in (("B36", _RESTORED), ("B20", _INSTALL_IN_L2))
        for vendor, msrs in ((SVM, ("[^,)]+",)), (VMX, _OF_VMX_L2))
    ),
    # What L1 once passed is never intercepted again: L2 goes on, where L1 should have got it.
    Signature(
        "B05",
        _at(*_NESTED_BASES),
        r"l1_exit\(.*",
        _NATIVE,
        before=_IN_L2,
        vendor=VMX,
        lasts=True,
    ),
    Signature(
        "B05",
        r"until_exits\(.*",
        rf"(?:Rd|Wr)msrExit\((?:{'|'.join(_NESTED_BASES)}), FILTER\b.*",
        "never",
        before=rf"{_IN_L2}[\s\S]*\nspin\(",
        vendor=VMX,
    ),
    # The hardware's bitmap of an L2 is L1's alone, at this entry and each that follows.
    *(
        Signature(
            "B05", _at(*_NESTED_BASES), expected, seen, before=_IN_L2, vendor=VMX, lasts=lasts
        )
        for expected, seen, lasts in (
            (_DENIED, r"returned\([^()]*\)", False),
            (rf"{_EXIT}FILTER\), Fault\(1, .*", r"Fault\(1, skew=2\)", False),
            (_DENIED, "wrote", True),
        )
    ),
    Signature(
        "B34",
        _at(*_AMD_LBR),
        _FILTERED,
        _NATIVE,
        before=_LBR_ON,
        without=_IN_L2,
        vendor=SVM,
    ),
    Signature(
        "B34",
        _at(*_AMD_LBR),
        rf"(?:unfiltered|{_NATIVE})",
        _FAILS,
        before=_LBR_ON,
        without=_IN_L2,
        vendor=SVM,
    ),
    Signature(
        *("B34", _LBR_SWEPT, _ONE_FILTER, _ONE_PASSED),
        before=_LBR_ON,
        without=_IN_L2,
        vendor=SVM,
    ),
    Signature(
        *("B34", r"until_exits\(.*", rf"{_EXIT}\bFILTER\b.*", "never"),
        before=_LBR_ON,
        without=_IN_L2,
        vendor=SVM,
    ),
    # L1 runs under the bitmap of an L2 that the host restored as it ran; as that L2 did (B36).
    Signature("B39", _at("[^,)]+"), _FILTERED, _NATIVE, before=_TWICE + _BACK_IN_L1, vendor=SVM),
    Signature("B39", _at("[^,)]+"), _FILTERED, _NATIVE, before=_TWICE + _STILL, vendor=SVM),
    # What was begun before the INIT is completed after it: its data, its length, or no instruction.
    Signature(
        *("B37", r"get_regs\(.*", r"regs\(ANY, rax=0, rcx=0, .*", r"regs\(.*"),
        before=rf"{_INIT}[\s\S]*\ncomplete\(",
    ),
    Signature(
        *("B37", r"complete\(.*", "interrupted", r"internal_error\(.*"),
        before=_INIT,
        lasts=True,
    ),
)
"""In order: where two entries make the same difference, the one that says more of it is first."""

_OBSERVED = "what changes is no fault: `observe` cases record it"
_UNSEEN = "the guest and the VMM see no difference"

UNSIGNED: Mapping[str, str] = MappingProxyType(
    {
        "B14": "it shows as a splat or as nothing, and a splat is explained by no entry",
        "B21": "a filter that is late shows the same way whatever made it late",
        "B22": "it needs a kernel that is out of memory, which no case makes",
        "B23": _OBSERVED,
        "B24": _OBSERVED,
        "B25": "it is a race within one KVM_RUN: what it leaves is either of two outcomes",
        "B26": _OBSERVED,
        "B27": _OBSERVED,
        "B28": _OBSERVED,
        "B29": _OBSERVED,
        "B30": _UNSEEN,
        "B31": _UNSEEN,
        "B32": "no kernel was released with it",
        "B33": _UNSEEN,
        "B38": _OBSERVED,
    }
)
"""Why the other entries of the history have no signature: what they do stays news, if it fails."""
