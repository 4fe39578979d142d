"""The contract of the MSR filter: its requirements, and what explains a violation."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vmm.conformance.contract.history import HISTORY, Fix

__all__ = ["HISTORY", "REQUIREMENTS", "Fix", "Requirement", "explain"]


@dataclass(frozen=True, slots=True)
class Requirement:
    """One promise of the kernel.

    `sentence` starts in lower case and has no full stop. `since` is the first release in which
    the promise holds, "" when it is as old as the filter (5.10). `quirk` marks what may
    legitimately differ between kernels. `history` names the entries of HISTORY that explain a
    violation, the most likely first. `untested` says why no case checks it ("": one does).
    """

    id: str
    sentence: str
    since: str = ""
    quirk: bool = False
    history: tuple[str, ...] = ()
    untested: str = ""


_R = Requirement
_DISCOVERY = (
    _R("R01", "capabilities 188 and 189 report 1 on the system and the VM descriptor"),
    _R("R02", "an unreadable filter struct is EFAULT and leaves the filter as it was"),
    _R("R03", "the filter ioctl exists on the VM descriptor alone and with its exact size alone"),
    _R("R04", "the 64-bit ioctl works through the ia32 system call entry as well"),
    _R("R05", "the 32-bit compat ioctl behaves like the 64-bit one", "6.1", history=("B09",)),
)
_VALIDATION = (
    _R("R06", "unknown bits in the filter's flags are EINVAL", "5.19", history=("B08",)),
    _R("R07", "unknown bits in a used range's flags are EINVAL"),
    _R("R08", "a used range with neither READ nor WRITE is EINVAL"),
    _R("R09", "a range may cover 1 to 0x3000 MSRs; a longer bitmap is EINVAL"),
    _R(
        "R10",
        "an unreadable bitmap is EFAULT; how far past its last bit the kernel reads may differ",
        quirk=True,
        history=("B23",),
    ),
    _R("R11", "a range with nmsrs 0 is skipped whatever its other fields hold"),
    _R(
        "R12",
        "a filter without ranges turns filtering off under default-allow"
        " and is EINVAL under default-deny",
        history=("B02",),
    ),
    _R(
        "R13",
        "a bad range in any slot fails the whole call; which of two errors wins may differ",
        quirk=True,
    ),
    _R("R14", "a failing call leaves the previous filter fully in force", "5.12", history=("B03",)),
    _R("R15", "all 16 slots work, in any position and with holes before them"),
    _R("R16", "a successful call replaces the whole filter and merges nothing"),
)
_MATCHING = (
    _R("R17", "an MSR outside every matching range is allowed under default-allow"),
    _R("R18", "an MSR outside every matching range is denied under default-deny"),
    _R("R19", "bit index-base of the bitmap, lowest bit first, decides: 1 allows and 0 denies"),
    _R("R20", "a range covers [base, base+nmsrs) and no MSR beyond, whatever else was copied"),
    _R("R21", "a range may start at any 32-bit index, aligned or not"),
    _R("R22", "a READ range governs RDMSR alone, a WRITE range WRMSR alone, READ|WRITE both"),
    _R("R23", "where ranges overlap, the lowest slot that covers index and access type decides"),
    _R("R24", "a range that holds the MSR but not the access type is transparent"),
    _R(
        "R25",
        "a range that ends at 2^32 never matches, or matches like any other",
        quirk=True,
        history=("B18",),
    ),
    _R("R26", "a VM that never set a filter behaves like one with an empty default-allow filter"),
    _R("R27", "an allowed MSR keeps its behaviour: values, #GP, other exits", history=("B10",)),
    _R(
        "R28",
        "a denied access has no side effect and reads nothing but what userspace supplies",
        history=("B10",),
    ),
    _R("R29", "the bitmap is copied during the call; later writes to it change nothing"),
)
_SCOPE = (
    _R("R30", "x2APIC MSRs 0x800..0x8ff are never filtered", history=("B02",)),
    _R("R31", "MSRs 0x7ff and 0x900, next to the x2APIC window, are filtered like any other"),
    _R("R32", "x2APIC MSRs may still exit as INVAL or UNKNOWN"),
    _R(
        "R33",
        "every guest RDMSR and WRMSR is filtered, the WRMSR fastpath included",
        history=("B13", "B12"),
    ),
    _R(
        "R34",
        "the host's own accesses, KVM_GET_MSRS and KVM_SET_MSRS, are never filtered",
        history=("B10",),
    ),
    _R(
        "R35",
        "instructions that use an MSR as a side effect (RDPID, CPUID, SYSENTER) are not filtered",
        "5.18",
        history=("B06",),
    ),
    _R(
        "R36",
        "an L2 access that L1 does not intercept is filtered and exits with L2 active",
        "5.16",
        history=("B05", "B20"),
    ),
    _R(
        "R37",
        "VMX MSR lists are filtered: a denied entry fails VM entry or shuts the VM down at exit",
        "6.12",
        history=("B07", "B35"),
    ),
    _R(
        "R38",
        "MSRs loaded from VMCS or VMCB fields are never filtered",
        history=("B06",),
    ),
    _R("R39", "paravirtual MSRs are filtered before the kernel handles them"),
    _R("R40", "RDMSR and WRMSR in the emulator are filtered", "5.17", history=("B04", "B10")),
    _R("R41", "error=1 for an emulated access injects #GP", "5.17", history=("B04",)),
    _R(
        "R42",
        "completing an emulated access finishes that instruction: RIP, RF, TF, interrupt shadow",
        "5.17",
        history=("B04",),
    ),
    _R(
        "R58",
        "WRMSRNS, and RDMSR and WRMSRNS with an immediate, are filtered like the others",
        "6.18",
    ),
    _R("R59", "RDMSR and WRMSR at CPL>0 raise #GP and never exit, filtered or not"),
)
_EXIT = (
    _R("R43", "unknown bits of KVM_CAP_X86_USER_SPACE_MSR are EINVAL", "5.19", history=("B08",)),
    _R("R44", "enabling the capability replaces the mask of exit reasons; 0 switches exits off"),
    _R("R45", "mask and filter belong to the VM: they hold for earlier and later vCPUs"),
    _R("R46", "filter and mask are independent and may be set in either order"),
    _R("R47", "the default mask is 0: no access exits"),
    _R(
        "R50",
        "a failing access exits when its reason is in the mask, and raises #GP(0) otherwise",
        history=("B01",),
    ),
    _R("R51", "a denied access has reason FILTER, even where the MSR is unknown or invalid"),
    _R(
        "R52",
        "an MSR that KVM does not know has reason UNKNOWN, any other failure INVAL",
        history=("B01", "B22"),
    ),
    _R("R53", "the exit's index is ECX; the upper half of RCX is ignored"),
    _R("R54", "the exit's data is EDX:EAX for WRMSR and 0 for RDMSR"),
    _R("R55", "error and pad are 0 at the exit, whatever userspace left there"),
    _R("R56", "the filter goes before ignore_msrs, which silences UNKNOWN exits alone"),
    _R("R57", "at the exit RIP is at the instruction and RAX, RDX, RCX are untouched"),
)
_COMPLETION = (
    _R("R60", "RDMSR delivers data into EAX and EDX and clears the upper halves of RAX and RDX"),
    _R("R61", "any non-zero error byte injects #GP(0) at the instruction, which is not skipped"),
    _R("R62", "an RDMSR answered with an error leaves RAX and RDX alone", history=("B25",)),
    _R("R63", "WRMSR completion changes no register and reads nothing but the error byte"),
    _R("R64", "a completed access skips one instruction, once", history=("B04", "B37")),
    _R(
        "R65",
        "re-entry with immediate_exit or a pending signal completes the access first,"
        " then returns EINTR",
    ),
    _R("R66", "single-stepping and the interrupt shadow see the completed instruction"),
    _R(
        "R67",
        "registers that userspace sets between exit and completion may or may not survive",
        quirk=True,
        history=("B24",),
    ),
    _R(
        "R68",
        "after completion by immediate_exit the register state migrates as a whole",
        history=("B37",),
    ),
)
_ATOMICITY = (
    _R(
        "R70",
        "a running vCPU sees the complete old or the complete new filter",
        "5.12",
        history=("B03", "B10"),
    ),
    _R("R71", "a filter change reaches every vCPU"),
    _R(
        "R72",
        "after the call, the next VM entry obeys the new filter, for passed-through MSRs too",
        history=("B11", "B19", "B34", "B36", "B39", "B40"),
    ),
    _R(
        "R73",
        "the bitmap is copied with no VM lock held: KVM_CREATE_VCPU does not wait for its fault",
        "5.12",
        history=("B03",),
    ),
    _R(
        "R74",
        "the call returns after the last reader of the old filter, without holding kvm->lock",
        "6.3",
        history=("B17", "B03"),
    ),
    _R("R75", "a vCPU created after the call obeys the filter at once", history=("B21",)),
    _R(
        "R76",
        "filters are freed when replaced and with the VM, not earlier and not twice",
        "5.12",
        history=("B14", "B03", "B38"),
    ),
    _R("R77", "of concurrent calls one whole filter wins", "5.12", history=("B03",)),
    _R(
        "R78",
        "a filter change while L2 is active reaches L2's hardware bitmap at its next nested entry",
        quirk=True,
        history=("B20",),
        untested="the cases of R81, which asks for more, show who does only this",
    ),
    _R(
        "R80",
        "SEV-ES and TDX guests report MSR exits by their own protocols; not tested",
        untested="no confidential guest was at hand",
    ),
    _R(
        "R81",
        "a filter installed while L2 is active governs L2 from that vCPU's next VM entry on",
        history=("B20", "B36", "B39", "B05"),
    ),
)
_TABLES = (_DISCOVERY, _VALIDATION, _MATCHING, _SCOPE, _EXIT, _COMPLETION, _ATOMICITY)

REQUIREMENTS: Mapping[str, Requirement] = {
    entry.id: entry for entry in sorted((row for t in _TABLES for row in t), key=lambda r: r.id)
}


UNEXPLAINED = "no known kernel bug explains this"
"""What is said of a failure that is news."""


def explain(name: str, entries: Iterable[str], news: str = "") -> str:
    """Return one line for a requirement that one or more kernels broke.

    It has the requirement in words and what broke it: the ``entries`` of the history that explain
    cases about it, and ``news``, what is said of those that none explains. It never raises: an id
    that is not in the contract gets a line that says so.
    """
    if name not in REQUIREMENTS:
        return _unknown(name)
    cause = _cause([HISTORY[entry] for entry in entries], "where it fails the kernel")
    return f"{name}: {REQUIREMENTS[name].sentence}. {'; '.join(filter(None, (cause, news)))}"


def _unknown(name: str) -> str:
    return f"{name}: not a requirement of the contract"


def explain_case(requirement_ids: Sequence[str], entry: str = "") -> tuple[str, ...]:
    """Return the lines for a case that failed: it is about its first requirement.

    What broke that is the ``entry`` of the history that explains the case. Where none does, the
    line says so, and what else has broken the requirement. The others, which the case touches,
    have their sentence alone: nothing is said of what broke them.
    """
    others = (
        f"{name}, touched: {REQUIREMENTS[name].sentence}."
        for name in requirement_ids[1:]
        if name in REQUIREMENTS
    )
    return (*(_case_line(name, entry) for name in requirement_ids[:1]), *others)


def _case_line(name: str, entry: str) -> str:
    broken = REQUIREMENTS.get(name)
    if broken is None:
        return _unknown(name)
    if entry in HISTORY:
        return f"{name}: {broken.sentence}. {_cause([HISTORY[entry]], 'this kernel')}"
    known = f"; what has broken {name} elsewhere: {', '.join(broken.history)}"
    return f"{name}: {broken.sentence}. {UNEXPLAINED}{known if broken.history else ''}"


def _cause(known: Sequence[Fix], who: str) -> str:
    fixes = [f"{fix.commit[:12]} (v{fix.fixed_in})" for fix in known if not fix.is_open]
    issues = [f"{fix.id} {fix.title} ({fix.affected})" for fix in known if fix.is_open]
    parts = []
    if fixes:
        lacking = "it or undid it" if len(fixes) == 1 else "one of them or undid it"
        parts.append(f"fixed by {' or '.join(fixes)}; {who} lacks {lacking}")
    if issues:
        parts.append(f"open, no kernel has a fix: {'; '.join(issues)}")
    return "; or ".join(parts)
