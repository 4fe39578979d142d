"""The words that signatures are made of: patterns over printed actions and events."""

from __future__ import annotations

OPEN = r"(?:begin\()?"
ACCESS = OPEN + r"(?:rd|wr)msr\(.*"
EXIT = r"(?:Rd|Wr)msrExit\([^()]*"
END = r"(?:returned\([^()]*\)|wrote|gp)"
FILTERED = rf"{EXIT}\bFILTER\b[^()]*\)(?:, {END})?"
NATIVE = r"(?:returned\([^()]*\)|wrote)"
FAILS = rf"(?:gp|{EXIT}\b(?:UNKNOWN|INVAL)\b[^()]*\)(?:, {END})?)"
ALLOWED = rf"(?:unfiltered|{NATIVE}|{FAILS})"
UNKNOWN = rf"{EXIT}, UNKNOWN(?:, [^()]*)?\)(?:, {END})?"
UNASKED = rf"(?:unfiltered|{NATIVE}|{UNKNOWN})"
DENIED = rf"(?:{FILTERED}|gp)"
REFUSED = r"(?:done|rejected\(E\w+\))"


def at(*names: str) -> str:
    """Return the pattern of a native access of one of the MSRs, by name or hexadecimal."""
    return rf"{OPEN}(?:rd|wr)msr\((?:{'|'.join(names)})\b(?!.*emulated=).*"


BASES = r"Msr\.FS_BASE", r"Msr\.GS_BASE", "0xc0000100", "0xc0000101"
BASE_FROM_THE_HOST = rf"[gs]et_msr\((?:{'|'.join(BASES)})\b.*"
NESTED_BASES = (*BASES, r"Msr\.KERNEL_GS_BASE", "0xc0000102")
# What VMX's hardware lets an L2 reach (nested.c, nested_vmx_prepare_msr_bitmap); SVM's is L1's all.
OF_VMX_L2 = (
    *(*NESTED_BASES, r"Msr\.IA32_(?:SPEC_CTRL|PRED_CMD|FLUSH_CMD)", "0x4[89]", "0x10b"),
    *("0xe[78]", "0x6a[024-7]", "0x4?c[1-8]", "0x30[9a-c]", "0x38[ef]", "0x390"),
)
INTEL_LBR = ("0x1c[89]", "0x6[89cd][0-9a-f]", "0xd[cd][0-9a-f]")
AMD_LBR = ("0x1d[bcde]", r"Msr\.IA32_LAST\w+")
DEADLINE = r"(?:Msr\.IA32_TSC_DEADLINE|0x6e0)"
WRITE_DEADLINE = rf"{OPEN}wrmsr\({DEADLINE}, (?!.*(?:emulated|mode)=).*"
DEADLINE_SWEPT = rf"sweep\('wrmsr', {DEADLINE}, 1(?:, vcpu=\w+)?\)"
LBR_SWEPT = r"sweep\('(?:rd|wr)msr', (?:0x1db|Msr\.IA32_LASTBRANCHFROMIP), 4(?:, vcpu=\w+)?\)"
X2APIC = (r"Msr\.APIC_\w+", "0x8[0-9a-f]{2}")
WAITS = r"meanwhile\((?:create_vcpu|create_irqchip|install\w*)\(.*"
STALLED = r"begin_install\([^\n]*-> stalled(?![\s\S]*\n(?:resume|await)_install)"
BLOCKED = r"begin_install\([^\n]*-> blocked(?![\s\S]*\n(?:resume|await)_install)"
REJECTED = r"^(?!.*(?:argp=|number=|caller='child')).*-> rejected\((?:EINVAL|EFAULT)\)"
INTO_L2 = r"(?:enter_l2|restore_nested)\("
STILL = r"(?![\s\S]*(?:l1_exit|\n(?:leave_nested|fresh_vm)\())"
IN_L2 = rf"{INTO_L2}{STILL}"
INSTALL_IN_L2 = rf"{IN_L2}(?![\s\S]*\n{INTO_L2})[\s\S]*\ninstall[^\n]*-> done"
BY_HOST = r"install|enable_exits|(?:save|leave|restore)_nested|[gs]et_msr|create_vcpu"
IDLE = rf"(?:(?:{BY_HOST})\([^\n]*\n)*"
RESTORED = (
    rf"(?:^|\n)(?:install[^\n]*-> done\n{IDLE}restore_nested|restore_nested[^\n]*\n{IDLE}install)"
    rf"\([^\n]*-> done(?![\s\S]*\n{INTO_L2}){STILL}"
)
TWICE = (
    r"(?:^|\n)enter_l2\([^\n]*-> entered(?:(?!l1_exit|\n(?:leave_nested|fresh_vm)\()[\s\S])*"
    r"\nrestore_nested\([^\n]*-> done"
)
BACK_IN_L1 = r"[\s\S]*l1_exit(?![\s\S]*\n(?:enter_l2|restore_nested|fresh_vm)\()"
LBR_ON = (
    r"(?:wr|set_)msr\((?:0x1d9|Msr\.IA32_DEBUGCTL\w*), (?:0x)?[0-9a-f]*[13579bdf]\b[\s\S]*install"
)
SPEC_CTRL = r"(?:0x48|Msr\.IA32_SPEC_CTRL)"
SPEC_CTRL_PASSED = (
    rf"(?:wr|set_)msr\({SPEC_CTRL}, (?:0x)?0*[1-9a-f][^\n]*-> (?:wrote|done)[\s\S]*\ninstall"
)
# Among MSRs that are denied it alone passes.
SPEC_CTRL_ALONE = (
    rf"swept\(\((?:run\([\w.]+, \w+, 'FILTER'\), )?run\({SPEC_CTRL}, 1, 'PASSED'\)"
    r"(?:, run\([\w.]+, \w+, 'FILTER'\))?,?\)\)"
)
FLAG = r"MsrFilter\(0x(?![01]\b)[0-9a-f]+\b.*"
LAST_ENTRY = r"(?![\s\S]*\nenter_l2)"
EXIT_LISTS = rf"enter_l2\([^\n]*exit_(?:store|load)=[^\n]*-> entered{LAST_ENTRY}"
TSC_STORED = rf"enter_l2\([^\n]*exit_store=[^\n]*\b(?:0x10|Msr\.IA32_TSC)\)[^\n]*{LAST_ENTRY}"
ENDS_L2 = r"(?:leave_l2|rdmsr|wrmsr)\(.*"
ONE_FILTER = r"swept\(\(run\([\w.]+, \w+, 'FILTER'\),\)\)"
ONE_PASSED = r"swept\(\(run\([\w.]+, \w+, 'PASSED'\),\)\)"
# The two executors each say in their own words that KVM gave up: 17 is KVM_EXIT_INTERNAL_ERROR.
GAVE_UP = r"InternalErrorExit.*|the instruction ended with 17'\)"
EMULATED_IN_SHADOW = r"(?:^|\n)begin\((?=[^\n]*emulated=True)[^\n]*after='(?:sti|mov_ss)'[^\n]*$"
INIT = r"send_init\([^\n]*\n(?:[^\n]*\n)*?get_mp_state\([^\n]*-> got\([02]\)"
