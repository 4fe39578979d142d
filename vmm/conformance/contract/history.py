"""The kernel bugs and behaviour changes of the MSR filter, by their id (docs/history.md)."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fix:
    """One entry of the history: what was wrong, where, and the commit that ended it.

    `commit` is the commit that a kernel lacks ("" while the problem is open or never was
    merged); entries B26 to B33 are changes of behaviour, and `commit` then made the change.
    `fixed_in` is the first release with it, "" while open. Both explain; neither decides.
    """

    id: str
    commit: str
    title: str
    fixed_in: str
    affected: str
    symptom: str

    @property
    def is_open(self) -> bool:
        """Whether no kernel has a fix yet."""
        return not self.fixed_in


_FIXES = (
    Fix(
        "B01",
        "cc4cb017678aa66d3fb4501b2f7424ed28fc7f4d",
        "KVM: x86: use positive error values for msr emulation that causes #GP",
        "5.10",
        "5.10-rc1..5.10-rc3",
        "unknown MSRs exit as INVAL, and a denied WRMSR with mask 0 can make KVM_RUN fail",
    ),
    Fix(
        "B02",
        "9389b9d5d3566b5687829a4098e715f0016451c7",
        "KVM: VMX: Ignore userspace MSR filters for x2APIC",
        "5.10",
        "5.10 merge window",
        "x2APIC MSRs can be filtered; and, before 043248b3280c, an empty default-deny filter"
        " is accepted",
    ),
    Fix(
        "B03",
        "b318e8decf6b9ef1bcf4ca06fae6d6a2cb5d5c5c",
        "KVM: x86: Protect userspace MSR filter with SRCU, and set atomically-ish",
        "5.12",
        "5.10..5.11",
        "the live filter is torn down and rebuilt in place: vCPUs see half of it, a failing call"
        " leaves it half built, and KVM_CREATE_VCPU waits for the bitmap's page fault",
    ),
    Fix(
        "B04",
        "adbfb12d4c4517a8adde23a7fc46538953d56eea",
        "KVM: x86: Exit to userspace if emulation prepared a completion callback",
        "5.17",
        "5.10..5.16",
        "an emulated RDMSR/WRMSR fills kvm_run but does not exit, and the instruction runs twice",
    ),
    Fix(
        "B05",
        "67f4b9969c305be515e47f809ecacfd86bd20a9c",
        "KVM: nVMX: Handle dynamic MSR intercept toggling",
        "5.16",
        "5.10..5.15 (VMX)",
        "L2 reaches FS_BASE, GS_BASE and KERNEL_GS_BASE past the filter unless L1 intercepts them",
    ),
    Fix(
        "B06",
        "ac8d6cad3c7b39633d5899dc2fa9abec7135e83e",
        "KVM: x86: Only do MSR filtering when access MSR by rdmsr/wrmsr",
        "5.18",
        "5.10..5.17",
        "emulated RDPID, RDTSC, SYSENTER, CPUID and KVM's own accesses are filtered too",
    ),
    Fix(
        "B07",
        "653ea4489e6989f14a87abf8653f77c089097326",
        "KVM: nVMX: Honor userspace MSR filter lists for nested VM-Enter/VM-Exit",
        "6.12",
        "5.18..6.11 (VMX)",
        "L1 reads and writes any denied MSR through its VM-entry and VM-exit MSR lists",
    ),
    Fix(
        "B08",
        "cf5029d5dd7cb0aaa53250fa9e389abd231606b3",
        "KVM: x86: Protect the unused bits in MSR exiting flags",
        "5.19",
        "5.10..5.18",
        "unknown bits of the filter's flags and of KVM_CAP_X86_USER_SPACE_MSR are accepted",
    ),
    Fix(
        "B09",
        "1739c7017fb1d759965dcbab925ff5980a5318cb",
        "KVM: x86: Add compat handler for KVM_X86_SET_MSR_FILTER",
        "6.1",
        "5.10..6.0",
        "a 32-bit VMM on a 64-bit kernel gets ENOTTY for KVM_X86_SET_MSR_FILTER",
    ),
    Fix(
        "B10",
        "dad1613e0533b380318281c1519e1a3477c2d0d2",
        "KVM: SVM: fix emulation of msr reads/writes of MSR_FS_BASE and MSR_GS_BASE",
        "6.11",
        "5.10..6.10 (SVM)",
        "emulated RDMSR/WRMSR of FS_BASE and GS_BASE fail, also while a filter change that"
        " allows them is still on its way to the hardware bitmap",
    ),
    Fix(
        "B11",
        "52887af5650e35ea78b37602722313ff7b3c0c30",
        "KVM: x86: Revert MSR_IA32_FLUSH_CMD.FLUSH_L1D enabling",
        "6.4",
        "6.4 merge window",
        "FLUSH_CMD is passed through but missing from the list that a filter change re-applies",
    ),
    Fix(
        "B12",
        "",
        "TSC_DEADLINE WRMSR fastpath does not consult the filter (VMX)",
        "",
        "5.10..newest (VMX with the preemption timer)",
        "a denied WRMSR 0x6e0 completes in the kernel without an exit",
    ),
    Fix(
        "B13",
        "",
        "TSC_DEADLINE WRMSR fastpath does not consult the filter (all vendors)",
        "",
        "6.18..newest (since 0a94b2042419)",
        "a denied WRMSR 0x6e0 completes in the kernel without an exit, now on SVM as well",
    ),
    Fix(
        "B14",
        "17bcd714426386fda741a4bccd96a2870179344b",
        "KVM: x86: Free vCPUs before freeing VM state",
        "6.14",
        "5.12..6.13",
        "destroying a VM whose vCPU is in L2 consults the filter after it was freed",
    ),
    Fix(
        "B17",
        "708f799d22fe6b69d2e6e3e0625c30666d5e798a",
        "KVM: x86: Optimize kvm->lock and SRCU interaction (KVM_X86_SET_MSR_FILTER)",
        "6.3",
        "5.12..6.2",
        "the ioctl waits for SRCU readers with kvm->lock held, so KVM_CREATE_VCPU waits too",
    ),
    Fix(
        "B18",
        "",
        "the end of a range is computed in 32 bits",
        "",
        "5.10..newest",
        "a range that reaches 2^32 never matches, so under default-allow it filters nothing",
    ),
    Fix(
        "B19",
        "",
        "VMX LBR pass-through is not re-evaluated by a filter change",
        "",
        "every version that passes LBR through (VMX)",
        "LBR MSRs already passed through stay reachable after a filter denies them",
    ),
    Fix(
        "B20",
        "",
        "a filter change while L2 runs does not reach the nested MSR bitmap",
        "",
        "5.10..newest",
        "L2 keeps the old pass-through MSRs until L1 enters it again",
    ),
    Fix(
        "B21",
        "",
        "a vCPU created during a filter change can miss it",
        "",
        "5.10..newest (healed at KVM_SET_CPUID2 since 6.17)",
        "the hardware bitmap of a vCPU born inside the ioctl shows the old filter",
    ),
    Fix(
        "B22",
        "",
        "a WRMSR handler's internal error is reported as an INVAL exit",
        "",
        "5.10..newest",
        "-ENOMEM from a WRMSR handler shows as reason INVAL instead of failing KVM_RUN",
    ),
    Fix(
        "B23",
        "",
        "the bitmap is read in multiples of 8 bytes",
        "",
        "5.10..newest",
        "a short bitmap at the end of a mapping fails with EFAULT",
    ),
    Fix(
        "B24",
        "",
        "KVM_SET_REGS between exit and completion depends on the path",
        "",
        "5.10..newest",
        "the RIP that userspace sets is advanced on VMX and overwritten on SVM and emulator",
    ),
    Fix(
        "B25",
        "",
        "RDMSR completion reads kvm_run.msr.error twice",
        "",
        "5.10..newest",
        "a thread that writes kvm_run meanwhile can get the data delivered and #GP injected",
    ),
    Fix(
        "B26",
        "8a056ece45d2",
        "KVM: VMX: Manually recalc all MSR intercepts on userspace MSR filter change",
        "6.17",
        "6.17..newest",
        "intercepts are recomputed from scratch; SPEC_CTRL is intercepted when CPUID lacks it",
    ),
    Fix(
        "B27",
        "1cec2034980a",
        "UNKNOWN against INVAL moves between releases for feature-dependent MSRs",
        "6.12",
        "5.10..newest",
        "the exit reason of a feature-dependent MSR is not stable across versions",
    ),
    Fix(
        "B28",
        "6057497336bb",
        "KVM_REQ_MSR_FILTER_CHANGED becomes KVM_REQ_RECALC_INTERCEPTS",
        "6.18",
        "6.18..newest",
        "with it came the immediate forms of RDMSR and WRMSRNS and their fastpath",
    ),
    Fix(
        "B29",
        "",
        "mediated PMU passes counters through",
        "",
        "7.0..newest",
        "PMU counters and GLOBAL_CTRL join the MSRs that a filter change must re-apply",
    ),
    Fix(
        "B30",
        "37352c4fbdd7",
        "arch/x86/kvm/msrs.c is split from x86.c",
        "7.3",
        "7.3..newest",
        "the filter moved to another file; its logic is that of 6.12",
    ),
    Fix(
        "B31",
        "b93d2ec34ef3",
        "documentation of ranges, denied accesses and x2APIC",
        "6.2",
        "6.2..newest",
        "the documentation changed, the code did not",
    ),
    Fix(
        "B32",
        "",
        "skipping redundant MSR bitmap writes (never merged)",
        "",
        "no release",
        "interception is dropped but not set again, or leaks from the read to the write half",
    ),
    Fix(
        "B33",
        "",
        "update PT intercepts on filter change only in host and guest mode (2022)",
        "",
        "no known harm",
        "processor-trace intercepts are recomputed without need",
    ),
    Fix(
        "B34",
        "",
        "SVM recalculates the LBR intercepts only when LBR virtualization itself changes",
        "",
        "6.17.13..newest (SVM with LBRV); 6.17.8 is good, and no package lies between",
        "once the guest has set DEBUGCTL.LBR, 0x1db-0x1de ignore every filter that comes after;"
        " denied before and allowed after, their WRMSR exits as UNKNOWN or INVAL",
    ),
    Fix(
        "B35",
        "",
        "the VM-exit store list takes IA32_TSC from KVM's own slot and asks no filter",
        "",
        "6.12..newest (VMX)",
        "L1 reads a denied IA32_TSC through its VM-exit MSR-store list",
    ),
    Fix(
        "B36",
        "",
        "KVM_SET_NESTED_STATE merges L2's bitmap before the intercepts are recalculated",
        "",
        "6.12..newest",
        "an L2 restored before its vCPU has run under a new filter runs under the one before",
    ),
    Fix(
        "B37",
        "",
        "INIT between exit and completion does not drop the completion",
        "",
        "6.1..newest",
        "a vCPU that INIT resets is completed afterwards: its RIP and registers are wrong",
    ),
    Fix(
        "B38",
        "",
        "the copied bitmaps are not charged to the memory cgroup",
        "",
        "5.10..newest (5.10, 6.12, 6.18 and 7.3 observed)",
        "up to 16 bitmaps of 2 KiB a VM are charged to nobody: memdup_user() allocates them as"
        " GFP_USER, while the filter's struct is charged (recorded, never failed)",
    ),
    Fix(
        "B39",
        "4995a3685f1b",
        "KVM: SVM: Use a separate vmcb for the nested L2 guest",
        "5.13",
        "5.10..5.12 (SVM)",
        "KVM_SET_NESTED_STATE of a vCPU that is in L2 keeps L2's controls as L1's: back in L1 the"
        " guest runs under L2's bitmap, and no filter that comes after reaches it",
    ),
    Fix(
        "B40",
        "8a056ece45d2",
        "KVM: VMX: Manually recalc all MSR intercepts on userspace MSR filter change",
        "6.17",
        "6.12..6.16 (VMX)",
        "a SPEC_CTRL that the guest has written stays passed through: the lookup of what a filter"
        " change re-applies takes 0x48 for one of the LBRs, 0x40 and 8 more",
    ),
)

HISTORY: Mapping[str, Fix] = {fix.id: fix for fix in _FIXES}
OPEN = tuple(fix.id for fix in _FIXES if fix.is_open)
"""What no kernel has a fix for."""
