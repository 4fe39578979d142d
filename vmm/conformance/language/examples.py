"""Short scripts in which every word of the language stands at least once, for docs/words.md."""

from __future__ import annotations

from errno import EINVAL

from vmm.conformance.language.case import Case
from vmm.conformance.language.script import (
    HALTED,
    REPLY,
    Event,
    Lost,
    RdmsrExit,
    WrmsrExit,
    await_install,
    await_meanwhile,
    await_sipi,
    begin,
    begin_install,
    blocked,
    check_extension,
    close_vcpu,
    close_vm,
    complete,
    create_irqchip,
    create_vcpu,
    disable_exits,
    done,
    either,
    enable_cap,
    enable_exits,
    enter_l2,
    entered,
    entry_failed,
    execute,
    executed,
    fault,
    finish,
    fresh_vm,
    get_hypercall_page,
    get_mp_state,
    get_msr,
    get_regs,
    get_taken,
    get_vcpu_events,
    got,
    gp,
    inject,
    install,
    internal_error,
    interrupted,
    l1_exit,
    leave_l2,
    leave_nested,
    listed,
    meanwhile,
    never,
    other_exit,
    park,
    parked,
    ran,
    rdmsr,
    refused,
    regs,
    rejected,
    release,
    released,
    restore_nested,
    resume_install,
    returned,
    rewrite,
    run,
    save_nested,
    scribble_bitmaps,
    send_init,
    send_sipi,
    set_cpuid,
    set_cpuid_bits,
    set_mp_state,
    set_msr,
    set_regs,
    shutdown,
    sleep,
    spin,
    spinning,
    stalled,
    started,
    stop_spin,
    stopped,
    sweep,
    swept,
    taken,
    through,
    unfiltered,
    until_exits,
    until_runs,
    value,
    vcpu_events,
    wake,
    weigh_bitmaps,
    whatever,
    wrmsr,
    wrote,
    xen_hvm_config,
)
from vmm.filter import AtEdge, default_allow, default_deny
from vmm.msr import FILTER, UNKNOWN, Msr

_A, _B = 0x474F_4F00, 0x474F_4F01
_CAP = 188
_TELL = enable_exits(FILTER | UNKNOWN)
_DENY = default_allow().deny(_A)

EXAMPLES: tuple[Case, ...] = (
    Case(
        "words.access",
        "A denied access exits, and userspace answers it or makes it fail.",
        "R50 R60 R61",
        (_TELL, install(_DENY), rdmsr(_A, reply=value(7)), wrmsr(_A, 5), rdmsr(_A, reply=fault())),
        (
            *(done, done, RdmsrExit(_A, FILTER), returned(7)),
            *(WrmsrExit(_A, FILTER, 5), wrote, RdmsrExit(_A, FILTER), gp),
        ),
    ),
    Case(
        "words.mode",
        "A denied access exits from 16-bit code as from 64-bit code; at CPL3 it is #GP.",
        "R33 R59",
        (_TELL, install(_DENY), rdmsr(_A, mode="real"), rdmsr(_A, mode="user")),
        (done, done, RdmsrExit(_A, FILTER), returned(REPLY), gp),
    ),
    Case(
        "words.execute",
        "An instruction that uses an MSR as a side effect is not filtered.",
        "R35",
        (_TELL, install(default_deny().allow(_A)), execute("swapgs", 0x5000)),
        (done, done, executed(0x5000)),
    ),
    Case(
        "words.ioctls",
        "What the host asks for is granted, refused, or has a value.",
        "R01 R34 R43",
        (
            check_extension(_CAP),
            enable_cap(_CAP, (8,)),
            set_msr(Msr.KERNEL_GS_BASE, 0x1000),
            get_msr(Msr.KERNEL_GS_BASE),
            get_msr(_A),
        ),
        (got(1), rejected(EINVAL), done, got(0x1000), refused),
    ),
    Case(
        "words.bitmaps",
        "A bitmap is copied at the call; what is not filtered may end in any way.",
        "R29",
        (_TELL, install(_DENY), scribble_bitmaps(), rdmsr(_A), rdmsr(_B), rdmsr(Msr.STAR)),
        (
            *(done, done, done, RdmsrExit(_A, FILTER), returned(REPLY)),
            *(unfiltered, whatever),
        ),
    ),
    Case(
        "words.edge",
        "A bitmap may end where the readable memory ends.",
        "R10",
        (install(default_allow().range(_A, 64, AtEdge(bytes(8)))),),
        (done,),
    ),
    Case(
        "words.sweep",
        "Very many accesses at once leave runs of MSRs that ended alike.",
        "R19 R30",
        (
            *(_TELL, install(default_deny().allow(_A))),
            *(sweep("rdmsr", 0x7C0, 0x180), sweep("wrmsr", _A - 8, 16, value=5)),
        ),
        (
            *(done, done),
            swept(
                (
                    run(0x7C0, 0x40, "FILTER"),
                    run(0x800, 0x100, "UNFILTERED"),
                    run(0x900, 0x40, "FILTER"),
                )
            ),
            swept((run(_A - 8, 8, "FILTER"), run(_A, 1, "UNKNOWN"), run(_B, 7, "FILTER"))),
        ),
    ),
    Case(
        "words.platform",
        "Before a guest runs, the host chooses its CPUID and what else makes it exit.",
        "R33",
        (
            *(disable_exits(4), create_vcpu(0), set_cpuid_bits(1, "ecx", 1 << 24, on=False)),
            *(_TELL, install(_DENY), rdmsr(_A)),
        ),
        (done, done, done, done, done, RdmsrExit(_A, FILTER), returned(REPLY)),
    ),
    Case(
        "words.init",
        "An INIT resets a vCPU once it is looked for; until then an access ends as ever.",
        "R64 R68",
        (
            *(create_irqchip(), create_vcpu(0), create_vcpu(1), _TELL, install(_DENY)),
            *(begin(rdmsr(_A, vcpu=1)), send_init(1), complete(value(7), vcpu=1), get_regs(1)),
            get_mp_state(1),
        ),
        (
            *(done, done, done, done, done, RdmsrExit(_A, FILTER), done, interrupted),
            *(regs(2, rax=7, rcx=_A, rdx=0), got(2)),
        ),
    ),
    Case(
        "words.sipi",
        "A vCPU sleeps in the kernel until a SIPI starts it, or a signal takes it out.",
        "R72 R71",
        (
            *(create_irqchip(), create_vcpu(0), create_vcpu(1), _TELL),
            *(set_mp_state(HALTED, 1), sleep(1), wake(1), send_init(1), get_mp_state(1), sleep(1)),
            *(install(_DENY), send_sipi(1), await_sipi(1), rdmsr(_A, vcpu=1, mode="real")),
        ),
        (
            *(done, done, done, done, done, blocked, interrupted, done, got(2), blocked),
            *(done, done, started, RdmsrExit(_A, FILTER), returned(REPLY)),
        ),
    ),
    Case(
        "words.xen",
        "A write of the MSR for hypercalls is filtered before KVM writes the page.",
        "R39 R28",
        (
            *(xen_hvm_config(_A, pages=1), _TELL, install(_DENY), wrmsr(_A, 0xF0000)),
            *(get_hypercall_page(), install(default_allow()), wrmsr(_A, 0xF0000)),
            get_hypercall_page(),
        ),
        (
            *(done, done, done, WrmsrExit(_A, FILTER, 0xF0000), wrote, got(0)),
            *(done, wrote, got(0x64000000)),
        ),
    ),
    Case(
        "words.between",
        "While a new filter is on its way to a vCPU, an access ends as under the old or the new.",
        "R70",
        (_TELL, park(1), begin_install(_DENY), rdmsr(_A), release(1), await_install()),
        (
            *(done, parked, blocked),
            either(
                (RdmsrExit(_A, UNKNOWN), returned(REPLY)), (RdmsrExit(_A, FILTER), returned(REPLY))
            ),
            *(released, done),
        ),
    ),
    Case(
        "words.weigh",
        "A memory cgroup is charged for a filter's bitmaps, or it is not.",
        "R76",
        (weigh_bitmaps(),),
        (whatever,),
    ),
    Case(
        "words.setup",
        "A script may make the interrupt controller and the vCPUs itself.",
        "R45",
        (create_irqchip(), create_vcpu(0), set_cpuid("tsc_deadline", on=True), _TELL),
        (done, done, done, done),
    ),
    Case(
        "words.halves",
        "An access can be stopped at its exit, looked at, and completed in steps.",
        "R57 R65",
        (
            *(_TELL, install(_DENY), begin(rdmsr(_A)), get_regs(), set_regs(rax=1)),
            *(complete(value(7)), get_regs(), finish()),
        ),
        (
            *(done, done, RdmsrExit(_A, FILTER), regs(0, rax=0, rcx=_A, rdx=0), done),
            *(interrupted, regs(2, rax=7, rcx=_A, rdx=0), returned(7)),
        ),
    ),
    Case(
        "words.shadow",
        "An interrupt shadow lasts one instruction, and an NMI comes after a completed access.",
        "R66",
        (
            *(_TELL, install(_DENY), begin(rdmsr(_A, after="sti")), get_vcpu_events()),
            *(inject("nmi"), rewrite("sregs"), finish(value(7)), get_taken()),
        ),
        (
            *(done, done, RdmsrExit(_A, FILTER), vcpu_events(shadow=True)),
            *(done, done, returned(7), taken(2, skew=2)),
        ),
    ),
    Case(
        "words.smi",
        "An SMI that comes between an exit and its completion is taken behind the access.",
        "R64 R66",
        (
            *(_TELL, install(_DENY), begin(rdmsr(_A, after="sti_nop")), inject("smi")),
            *(finish(value(7)), get_taken()),
        ),
        (done, done, RdmsrExit(_A, FILTER), done, returned(7), taken(0xFF, skew=2)),
    ),
    Case(
        "words.stall",
        "An install waits in the kernel for its bitmap; a vCPU is made meanwhile.",
        "R70 R73",
        (
            *(_TELL, install(_DENY), begin_install(default_deny().allow(_A), stall_at=0)),
            *(rdmsr(_A), meanwhile(create_vcpu(1)), resume_install()),
        ),
        (done, done, stalled, RdmsrExit(_A, FILTER), returned(REPLY), done, done),
    ),
    Case(
        "words.park",
        "A vCPU that waits in the kernel for a page keeps an install from returning.",
        "R74",
        (
            *(_TELL, park(0), begin_install(_DENY), meanwhile(install(_DENY), "b")),
            *(release(0), await_install(), await_meanwhile("b")),
        ),
        (done, parked, blocked, blocked, released, done, done),
    ),
    Case(
        "words.spin",
        "A vCPU in a loop follows each filter, and nothing exits that is not denied.",
        "R72",
        (
            *(spin(rdmsr(Msr.FS_BASE)), _TELL, install(default_allow().deny(Msr.FS_BASE))),
            *(until_exits(0), install(default_allow()), until_runs(0), stop_spin(0)),
        ),
        (spinning, done, done, RdmsrExit(Msr.FS_BASE, FILTER), done, ran, stopped),
    ),
    Case(
        "words.close",
        "A VM lives as long as a vCPU of it is open.",
        "R76",
        (_TELL, install(_DENY), close_vm(), rdmsr(_A), close_vcpu(0)),
        (done, done, done, RdmsrExit(_A, FILTER), returned(REPLY), done),
    ),
)

_GS = Msr.KERNEL_GS_BASE
_HIDES_GS = install(default_allow().deny(_GS))
EXAMPLES += (
    Case(
        "words.levels",
        "L1 gets what it does not let pass, and what it lets pass is filtered.",
        "R36",
        (
            *(_TELL, _HIDES_GS, enter_l2(passes=(through(_GS), through(Msr.STAR, "write")))),
            *(rdmsr(_GS), wrmsr(Msr.STAR, 1), leave_l2(), enter_l2(), wrmsr(_A, 2)),
        ),
        (
            *(done, done, entered, RdmsrExit(_GS, FILTER), returned(REPLY), wrote),
            *(l1_exit("hypercall"), entered, l1_exit("wrmsr", _A, value=2)),
        ),
    ),
    Case(
        "words.lists",
        "A denied MSR of a list fails the entry, or aborts the exit.",
        "R37",
        (
            *(_TELL, _HIDES_GS, enter_l2(entry_load=(listed(Msr.STAR, 1), listed(_GS, 2)))),
            *(enter_l2(exit_store=(listed(Msr.STAR),)), rdmsr(_A)),
            *(enter_l2(exit_load=(listed(_GS, 3),)), leave_l2()),
        ),
        (
            *(done, done, entry_failed("msr_load", 2)),
            *(entered, l1_exit("rdmsr", _A, stored=(1,)), entered, shutdown),
        ),
    ),
    Case(
        "words.restored",
        "The host saves a vCPU in L2, and restores it there, in the same VM or in another.",
        "R81",
        (
            *(_TELL, enter_l2(), save_nested(), leave_nested(), _HIDES_GS, rdmsr(_GS)),
            *(restore_nested(), rdmsr(_GS), fresh_vm(), _TELL, restore_nested(), leave_l2()),
        ),
        (
            *(done, entered, got(1), done, done, RdmsrExit(_GS, FILTER), returned(REPLY)),
            *(done, RdmsrExit(_GS, FILTER), returned(REPLY), done, done, done),
            l1_exit("hypercall"),
        ),
    ),
)

BROKEN: dict[str, Event] = {
    "Lost": Lost("KVM_EXIT_SHUTDOWN"),
    "internal_error": internal_error(1),
    "other_exit": other_exit(17),
    "never": never,
}
"""Words for what a kernel that keeps the contract never leaves: no example can have them."""
