"""What a script needs of the host, read off its words: never left to whoever writes the script."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from vmm.conformance.language import script as words
from vmm.conformance.language.script import Action

THREADS = (
    *(words.Meanwhile, words.BeginInstall, words.AwaitInstall, words.AwaitMeanwhile),
    *(words.Sleep, words.AwaitSipi),
)
"""What may end as ``blocked``, which only /proc/self/task/TID/syscall tells."""


LOW_MSRS = 0x2000
"""The MSRs below it are the first that an SVM's bitmap has (APM volume 2, 15.11)."""

OF_INSTRUCTION: dict[str, tuple[str, ...]] = {
    "rdtsc": ("guest_tsc",),
    "rdtscp": ("rdtscp",),
    "rdpid": ("rdpid",),
    "rdpmc": ("pmu",),
    **dict.fromkeys(("rdfsbase", "rdgsbase", "wrfsbase", "wrgsbase"), ("fsgsbase",)),
    **dict.fromkeys(("xsaves", "xrstors"), ("xsaves",)),
    **dict.fromkeys(("sysenter", "sysexit"), ("sep",)),
    "rsm": ("smm",),
}
"""What an instruction needs that not every x86-64 has."""
OF_FORM: dict[str, tuple[str, ...]] = {
    "wrmsrns": ("wrmsrns",),
    "immediate": ("msr_imm",),
    "rex": (),
}


def needs_of(script: Sequence[Action]) -> tuple[str, ...]:
    """Return the words of all that ``script`` needs, each once, in the order of the script.

    ``host.needs`` has the probe of each.
    """
    needs = [need for each in script for need in _needs(each)]
    for each, following in pairwise(script):
        if isinstance(following, words.GetVcpuEvents) and _is_emulated_in_a_shadow(each):
            needs.append("emulated_shadow")
    return tuple(dict.fromkeys(needs))


def _is_emulated_in_a_shadow(action: Action) -> bool:
    """Say whether the shadow is still there when the prefix makes the CPU raise #UD."""
    access = words.innermost(action)
    if not isinstance(access, words.Rdmsr | words.Wrmsr):
        return False
    return access.emulated and access.after in ("sti", "mov_ss")


def _needs(action: Action) -> Iterator[str]:
    if isinstance(action, words.Meanwhile):
        yield from _needs(action.action)
    access = action.access if isinstance(action, words.Begin | words.Spin) else action
    if isinstance(access, words.Rdmsr | words.Wrmsr):
        yield from ["force_emulation_prefix"] * access.emulated
        yield from ["single_step"] * access.single_step
        yield from OF_FORM.get(access.form, ())
        yield from ["upper_rcx"] * bool(access.rcx_high and access.index < LOW_MSRS)
        yield from ["smm"] * (access.mode == "smm")
        yield from ["put_off_debug"] * (access.single_step and access.after == "mov_ss")
    if isinstance(action, words.EnableCap) and action.cap == words.KVM_CAP_X86_DISABLE_EXITS:
        bits = action.args[0] if action.args else 0
        yield from (
            f"disable_exits_{name}" for name, bit in words.DISABLE_EXITS.items() if bits & bit
        )
    if isinstance(action, words.LevelAction):
        yield from _of_levels(action)
    if isinstance(action, words.GetMsr | words.SetMsr) and action.by == "one_reg":
        yield "one_reg"
    if isinstance(action, words.Execute):
        yield from ["force_emulation_prefix"] * action.emulated
        yield from OF_INSTRUCTION.get(action.instruction, ())
    yield from _of_the_host(action)
    if isinstance(action, words.Park) or getattr(action, "stall_at", None) is not None:
        yield "userfaultfd"
    if getattr(action, "caller", "") == "compat":
        yield "compat"
    if isinstance(action, THREADS):
        yield "task_syscall"
    if getattr(access, "vcpu", 0):
        yield "vcpus"


def _of_the_host(action: Action) -> Iterator[str]:
    if isinstance(action, words.Inject) and action.kind == "smi":
        yield "smm"
    if isinstance(action, words.WeighBitmaps):
        yield "memory_cgroup"
    if isinstance(action, words.XenHvmConfig):
        yield "xen_intercept" if action.flags & words.XEN_INTERCEPT else "xen_hvm"
    if isinstance(action, words.CreateIrqchip):
        yield "irqchip"


def _of_levels(action: words.LevelAction) -> Iterator[str]:
    yield "nested"
    if isinstance(action, words.SaveNested | words.RestoreNested | words.LeaveNested):
        yield "nested_state"
    if not isinstance(action, words.EnterL2):
        return
    has_lists = action.entry_load or action.exit_store or action.exit_load
    if has_lists or (not action.bitmap and action.passes == "none"):
        yield "nested_vmx"
    if not action.bitmap and action.passes == "all":
        yield "nested_svm"
    if action.clean:
        yield "clean_bitmap"
