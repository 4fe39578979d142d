"""What each entry of the history looks like in a failed case: small patterns over printed words.

They read what a record holds (``records.jsonl``), so that saved runs are explained too. A version
is no part of a signature: distributions backport. An open bug must not hide a new one, so each is
one exact difference, and one that is only like it stays unexplained (docs/history.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from vmm.conformance.contract import patterns as p
from vmm.conformance.contract.signature import SVM, VMX, Signature

SIGNATURES = (
    # The MSRs of the catalogue that no CPU has are 0x474fXXXX; of others B27 says more.
    Signature(
        "B01",
        p.OPEN + r"(?:rd|wr)msr\(0x474f[0-9a-f]{4}\b.*",
        rf"{p.EXIT}\bUNKNOWN\b[^()]*\)(?:, {p.END})?",
        rf"{p.EXIT}\bINVAL\b[^()]*\)(?:, {p.END})?",
    ),
    # The contract's exception is the whole range, registers that no x2APIC has included (R30).
    Signature("B02", p.at(*p.X2APIC), p.ALLOWED, p.FILTERED),
    Signature("B02", r".*install\w*\(default_deny\(\)[,)].*", r"rejected\(EINVAL\)", "done"),
    # (a), (b): while a bitmap is waited for, nothing or half of the new filter is in force.
    Signature("B03", p.ACCESS, p.FILTERED, p.UNASKED, before=p.STALLED, halfway=True),
    Signature("B03", p.ACCESS, p.UNASKED, p.FILTERED, before=p.STALLED, halfway=False),
    # (c): a failing install has replaced the filter by its ranges before the bad one.
    Signature("B03", p.ACCESS, p.FILTERED, p.UNASKED, install=p.REJECTED, halfway=True),
    Signature("B03", p.ACCESS, p.UNASKED, p.FILTERED, install=p.REJECTED, halfway=False),
    # (f): the copy holds kvm->lock.
    Signature("B03", p.WAITS, p.REFUSED, "blocked", before=p.STALLED, lasts=True),
    # The exit is prepared and lost, and KVM_RUN goes on in the guest, at the instruction again.
    Signature(
        "B04",
        p.ACCESS + r"emulated=True.*",
        rf"{p.EXIT}.*",
        rf"(?:Lost\(.*|interrupted|{p.EXIT}.*{p.EXIT}.*)",
        lasts=True,
    ),
    # What completes an emulated instruction came with it: until then #DB is in front of the exit.
    Signature(
        "B04",
        p.ACCESS + r"emulated=True, single_step=True.*",
        rf"{p.EXIT}.*",
        r"Fault\(1\)",
    ),
    # And until then the shadow of STI or MOV SS is gone: the emulator has had its instruction.
    Signature(
        "B04",
        r"get_vcpu_events\(.*",
        r"vcpu_events\(True\)",
        r"vcpu_events\(False\)",
        before=p.EMULATED_IN_SHADOW,
    ),
    # KVM loads PERF_GLOBAL_CTRL for L1 as if the guest wrote it: the filter makes the entry fail.
    Signature(
        "B06",
        r"enter_l2\((?!.*(?:load|store)=).*",
        "entered",
        r"entry_failed\('state'\)",
        vendor=VMX,
        lasts=True,
        warns="nested_vmx_enter_non_root_mode|load_vmcs12_host_state",
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
        rf"Lost\('(?:{p.GAVE_UP}))",
        install="deny",
        lasts=True,
    ),
    Signature(
        "B06",
        r"execute\('rsm', .*",
        r"executed\(.*\)",
        rf"Lost\('(?:{p.GAVE_UP}|ShutdownExit.*)",
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
        p.ENDS_L2,
        "shutdown",
        r"l1_exit\(.*",
        before=p.TSC_STORED,
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
        before=p.EXIT_LISTS,
        vendor=VMX,
        lasts=True,
    ),
    Signature("B08", rf".*install\w*\({p.FLAG}", r"rejected\(EINVAL\)", "done", lasts=True),
    Signature(
        "B08",
        rf"begin_install\({p.FLAG}",
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
        rf"{p.OPEN}(?:rd|wr)msr\((?:{'|'.join(p.BASES)})\b.*emulated=True.*",
        rf"(?:unfiltered|{p.NATIVE})",
        p.FAILS,
        vendor=SVM,
    ),
    Signature(
        "B10",
        p.BASE_FROM_THE_HOST,
        r"(?:done|got\(.*\))",
        "refused",
        without="install",
        vendor=SVM,
    ),
    # The host was refused it before there was a filter: no filter gives it back.
    Signature(
        "B10",
        p.BASE_FROM_THE_HOST,
        r"(?:done|got\(.*\))",
        "refused",
        unfiltered=True,
        vendor=SVM,
    ),
    # What the host was refused to write, or the guest failed to, is not there: it finds the last.
    Signature(
        "B10",
        rf"rdmsr\((?:{'|'.join(p.BASES)})\b.*",
        r"returned\(.*",
        r"returned\(.*",
        unset=True,
        vendor=SVM,
    ),
    # What the last filter allows it does not keep from the host either.
    Signature(
        "B10",
        p.BASE_FROM_THE_HOST,
        r"(?:done|got\(.*\))",
        "refused",
        install=rf"^install\(default_deny\(\)\.allow\((?:{'|'.join(p.BASES)})\)\) -> done$",
        vendor=SVM,
    ),
    Signature(
        "B10",
        p.at(*p.BASES),
        rf"(?:unfiltered|{p.NATIVE}|either\(.*)",
        p.FAILS,
        before=rf"\bpark\(|-> blocked|{p.INSTALL_IN_L2}|{p.RESTORED}",
        vendor=SVM,
    ),
    Signature("B11", p.at("0x10b", r"Msr\.IA32_FLUSH_CMD"), p.DENIED, "wrote", without=p.IN_L2),
    # 5.3: the denied write of exactly this MSR ends as `wrote`, and nothing exits.
    Signature("B12", p.WRITE_DEADLINE, p.DENIED, "wrote", without=p.IN_L2, vendor=VMX),
    Signature("B13", p.WRITE_DEADLINE, p.DENIED, "wrote", without=p.IN_L2, vendor=SVM),
    Signature("B12", p.DEADLINE_SWEPT, p.ONE_FILTER, p.ONE_PASSED, without=p.IN_L2, vendor=VMX),
    Signature("B13", p.DEADLINE_SWEPT, p.ONE_FILTER, p.ONE_PASSED, without=p.IN_L2, vendor=SVM),
    Signature("B17", p.WAITS, p.REFUSED, "blocked", before=p.BLOCKED, lasts=True),
    Signature("B18", p.ACCESS, p.DENIED, p.ALLOWED, at_top=True),
    Signature("B18", p.ACCESS, p.ALLOWED, p.DENIED, at_top=True),
    Signature(
        "B19",
        p.at(*p.INTEL_LBR),
        p.FILTERED,
        p.NATIVE,
        before=p.LBR_ON,
        without=p.IN_L2,
        vendor=VMX,
    ),
    # Nothing of the guest ran between the install and the restore, in either order.
    *(
        Signature(entry, p.at(*msrs), p.FILTERED, p.NATIVE, before=before, vendor=vendor)
        for entry, before in (("B36", p.RESTORED), ("B20", p.INSTALL_IN_L2))
        for vendor, msrs in ((SVM, ("[^,)]+",)), (VMX, p.OF_VMX_L2))
    ),
    # What L1 once passed is never intercepted again: L2 goes on, where L1 should have got it.
    Signature(
        "B05",
        p.at(*p.NESTED_BASES),
        r"l1_exit\(.*",
        p.NATIVE,
        before=p.IN_L2,
        vendor=VMX,
        lasts=True,
    ),
    Signature(
        "B05",
        r"until_exits\(.*",
        rf"(?:Rd|Wr)msrExit\((?:{'|'.join(p.NESTED_BASES)}), FILTER\b.*",
        "never",
        before=rf"{p.IN_L2}[\s\S]*\nspin\(",
        vendor=VMX,
    ),
    # The hardware's bitmap of an L2 is L1's alone, at this entry and each that follows.
    *(
        Signature(
            "B05", p.at(*p.NESTED_BASES), expected, seen, before=p.IN_L2, vendor=VMX, lasts=lasts
        )
        for expected, seen, lasts in (
            (p.DENIED, r"returned\([^()]*\)", False),
            (rf"{p.EXIT}FILTER\), Fault\(1, .*", r"Fault\(1, skew=2\)", False),
            (p.DENIED, "wrote", True),
        )
    ),
    Signature(
        "B34",
        p.at(*p.AMD_LBR),
        p.FILTERED,
        p.NATIVE,
        before=p.LBR_ON,
        without=p.IN_L2,
        vendor=SVM,
    ),
    Signature(
        "B34",
        p.at(*p.AMD_LBR),
        rf"(?:unfiltered|{p.NATIVE})",
        p.FAILS,
        before=p.LBR_ON,
        without=p.IN_L2,
        vendor=SVM,
    ),
    Signature(
        *("B34", p.LBR_SWEPT, p.ONE_FILTER, p.ONE_PASSED),
        before=p.LBR_ON,
        without=p.IN_L2,
        vendor=SVM,
    ),
    Signature(
        *("B34", r"until_exits\(.*", rf"{p.EXIT}\bFILTER\b.*", "never"),
        before=p.LBR_ON,
        without=p.IN_L2,
        vendor=SVM,
    ),
    # L1 runs under the bitmap of an L2 that the host restored as it ran; as that L2 did (B36).
    Signature(
        "B39", p.at("[^,)]+"), p.FILTERED, p.NATIVE, before=p.TWICE + p.BACK_IN_L1, vendor=SVM
    ),
    Signature("B39", p.at("[^,)]+"), p.FILTERED, p.NATIVE, before=p.TWICE + p.STILL, vendor=SVM),
    *(
        Signature(
            *("B40", action, expected, seen),
            before=p.SPEC_CTRL_PASSED,
            without=p.IN_L2,
            vendor=VMX,
        )
        for action, expected, seen in (
            (p.at("0x48", r"Msr\.IA32_SPEC_CTRL"), p.FILTERED, p.NATIVE),
            (r"sweep\('(?:rd|wr)msr', .*", p.ONE_FILTER, p.SPEC_CTRL_ALONE),
        )
    ),
    # What was begun before the INIT is completed after it: its data, its length, or no instruction.
    Signature(
        *("B37", r"get_regs\(.*", r"regs\(ANY, rax=0, rcx=0, .*", r"regs\(.*"),
        before=rf"{p.INIT}[\s\S]*\ncomplete\(",
    ),
    Signature(
        *("B37", r"complete\(.*", "interrupted", r"internal_error\(.*"),
        before=p.INIT,
        lasts=True,
    ),
)
"""In order: where two entries make the same difference, the one that says more of it is first."""

_OBSERVED = "what changes is no fault: `observe` cases record it"
_UNSEEN = "the guest and the VMM see no difference"

UNSIGNED: Mapping[str, str] = MappingProxyType(
    {
        "B14": "it shows as a splat, and wherever memory is used after it was freed, or as nothing",
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
