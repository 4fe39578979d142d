"""The words for levels on the kernel: a stub of an L1 enters L2, and gets what ends it."""

from __future__ import annotations

import errno
from typing import Any

from vmm import x86
from vmm._native import lib
from vmm.conformance.kernel.pool import PooledVm
from vmm.conformance.kernel.program import Program
from vmm.conformance.kernel.wire import LOW
from vmm.conformance.language import script as words
from vmm.conformance.language.script import Event, Lost, done, entered, shutdown
from vmm.decode import EXITS
from vmm.nested import svm, vmx
from vmm.nested.area import L1_FAILED_PORT, L1_PORT, L2_PORT, READ, WRITE, Entry, Left, Passed
from vmm.nested.l1 import L1
from vmm.nested.state import Snapshot, is_in_l2, rebuild_mmu, without_l2

KINDS = {"read": (READ,), "write": (WRITE,), "both": (READ, WRITE)}
AT_ITS_INSTRUCTION = ("rdmsr", "wrmsr")

SVM_REASONS = {
    svm.EXIT_VMMCALL: "hypercall",
    svm.EXIT_VMRUN: "entry",
    svm.EXIT_SHUTDOWN: "shutdown",
}
VMX_REASONS = {
    vmx.REASON_RDMSR: "rdmsr",
    vmx.REASON_WRMSR: "wrmsr",
    vmx.REASON_VMCALL: "hypercall",
    vmx.REASON_TRIPLE_FAULT: "shutdown",
    **dict.fromkeys(vmx.REASONS_VMX, "entry"),
}
VMX_FAILURES = {vmx.REASON_MSR_LOAD: "msr_load", vmx.REASON_BAD_STATE: "state"}


class Levels:
    """Which vCPUs of a script are in L2, and the L1 of each that was."""

    def __init__(self, vm: PooledVm) -> None:
        """Start with every vCPU in L1."""
        self.vm = vm
        self._l1: dict[int, L1] = {}
        self._in_l2: dict[int, words.EnterL2] = {}
        self._saved: dict[int, tuple[Snapshot, words.EnterL2 | None]] = {}

    def move(self, vm: PooledVm) -> None:
        """Go on in another VM, with what was saved in this one."""
        self.vm = vm
        self._l1.clear()
        self._in_l2.clear()

    def save(self, action: words.SaveNested) -> Event:
        """Save what the vCPU is, and say whether it is in L2."""
        self._l1_of(action.vcpu)  # else it could enter no L2 after it was restored
        snapshot = Snapshot.of(self.vm.vcpu(action.vcpu), self.vm.memory)
        self._saved[action.vcpu] = snapshot, self._in_l2.get(action.vcpu)
        return words.Got(is_in_l2(snapshot.nested))

    def restore(self, action: words.RestoreNested) -> Event:
        """Set what was saved, on the vCPU that has the number now."""
        if action.vcpu not in self._saved:  # the kernel refused to save it
            return Lost("nothing was saved")
        snapshot, l2 = self._saved[action.vcpu]
        l1 = self._l1_of(action.vcpu)
        snapshot.restore(self.vm.vcpu(action.vcpu), self.vm.memory)
        self._is_at(action.vcpu, l1, l2)
        return done

    def take_out(self, action: words.LeaveNested) -> Event:
        """Take the vCPU out of L2 without L1's doing."""
        vcpu = self.vm.vcpu(action.vcpu)
        vcpu.set_nested_state(without_l2(vcpu.get_nested_state()))
        rebuild_mmu(vcpu)
        l1 = self._l1.get(action.vcpu)
        self._is_at(action.vcpu, l1, None)
        if l1:
            l1.forget_launch()
        return done

    def _is_at(self, vcpu_id: int, l1: L1 | None, l2: words.EnterL2 | None) -> None:
        self._in_l2.pop(vcpu_id, None)
        if l2:
            self._in_l2[vcpu_id] = l2
        if l1:
            l1.forget_entry()

    def enter(self, action: words.EnterL2) -> Event:
        """Have L1 enter L2; from L2 it is an exit that L1 gets."""
        program, l1 = self.vm.program(action.vcpu), self._l1_of(action.vcpu)
        entry = Entry(
            program.guest.symbols["l2_start"],
            x86.program_of(action.vcpu),
            action.vcpu,
            _passed(action),
            bitmap=action.bitmap,
            entry_load=_list(action.entry_load),
            exit_store=_list(action.exit_store),
            exit_load=_list(action.exit_load),
            fields=action.fields,
            clean=action.clean,
        )
        if action.vcpu in self._in_l2:
            l1.prepare_again()
        else:
            l1.prepare(entry)
            self._in_l2[action.vcpu] = action
        return self._run(program)

    def leave(self, action: words.LeaveL2) -> Event:
        """Have L2 call L1."""
        self._l1_of(action.vcpu).prepare_call()
        return self._run(self.vm.program(action.vcpu))

    def _l1_of(self, vcpu_id: int) -> L1:
        if vcpu_id not in self._l1:
            program, kvm = self.vm.program(vcpu_id), self.vm.vm.kvm
            self._l1[vcpu_id] = L1(kvm, program.vcpu, program.guest, self.vm.memory)
            program.left = lambda reason: self._left(vcpu_id, reason)
        return self._l1[vcpu_id]

    def _run(self, program: Program) -> Event:
        result = -errno.EINTR
        while result == -errno.EINTR:
            result = program.enter()
        if left := self._left(program.vcpu.vcpu_id, result):
            return left
        if result == lib.KVM_EXIT_IO and _port(program) == L2_PORT:
            return entered
        ended = program.how_ended(result)
        return Lost(ended) if ended else done

    def _left(self, vcpu_id: int, result: int) -> Event | None:
        """Return what an exit to userspace says of the end of L2, or None if L2 goes on."""
        action = self._in_l2.get(vcpu_id)
        if action is None:
            return None
        port = _port(self.vm.program(vcpu_id)) if result == lib.KVM_EXIT_IO else 0
        if port not in (L1_PORT, L1_FAILED_PORT) and result != lib.KVM_EXIT_SHUTDOWN:
            return None
        del self._in_l2[vcpu_id]
        if result == lib.KVM_EXIT_SHUTDOWN:
            return shutdown
        left = self._l1[vcpu_id].left()
        if port == L1_FAILED_PORT:
            return words.EntryFailed("instruction", left.reason & LOW)
        return self._event(vcpu_id, action, left)

    def _event(self, vcpu_id: int, action: words.EnterL2, left: Left) -> Event:
        l1 = self._l1[vcpu_id]
        if failed := _failed(l1.vendor, left):
            return failed
        reason: Any = _reason(l1.vendor, left)
        about: dict[str, Any] = {"stored": l1.stored(len(action.exit_store))}
        if reason in AT_ITS_INSTRUCTION:
            at = self.vm.program(vcpu_id).instruction_near(left.rip)
            about |= {"index": left.rcx & LOW, "skew": left.rip - at}
        if reason == "wrmsr":
            about["value"] = (left.rdx & LOW) << 32 | left.rax & LOW
        if reason == "other":
            about["number"] = left.reason
        return words.L1Exit(reason, **about)


def _port(program: Program) -> int:
    exit_: Any = EXITS[lib.KVM_EXIT_IO](program.vcpu.kvm_run)
    return int(exit_.port)


def _passed(action: words.EnterL2) -> Passed | None:
    if isinstance(action.passes, str):
        return None if action.passes == "all" else frozenset()
    return frozenset((each.index, kind) for each in action.passes for kind in KINDS[each.access])


def _list(entries: tuple[words.Listed, ...]) -> tuple[tuple[int, int], ...]:
    return tuple((each.index, each.value) for each in entries)


def _failed(vendor: str, left: Left) -> words.EntryFailed | None:
    if vendor == "svm":
        return words.EntryFailed("state") if left.reason == svm.EXIT_INVALID else None
    if not left.reason & vmx.FAILED_ENTRY:
        return None
    why: Any = VMX_FAILURES.get(left.reason & ~vmx.FAILED_ENTRY, "state")
    return words.EntryFailed(why, left.info & LOW if why == "msr_load" else 0)


def _reason(vendor: str, left: Left) -> str:
    if vendor == "vmx":
        return VMX_REASONS.get(left.reason, "other")
    if left.reason == svm.EXIT_MSR:
        return "wrmsr" if left.info & 1 else "rdmsr"
    return SVM_REASONS.get(left.reason, "other")
