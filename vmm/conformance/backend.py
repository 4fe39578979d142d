"""The kernel as a witness: runs a script on /dev/kvm and returns the trace."""

from __future__ import annotations

import errno
import signal
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vmm._native import lib
from vmm.conformance import script as words
from vmm.conformance.pool import PooledVm
from vmm.conformance.script import Event, Lost, Script, Trace, done, interrupted, refused
from vmm.errors import KvmError
from vmm.exits import IoExit, RdmsrExit, WrmsrExit
from vmm.kvm import Kvm
from vmm.memory import PlacedFilter, bad_address
from vmm.vcpu import Vcpu

IGNORE_MSRS = Path("/sys/module/kvm/parameters/ignore_msrs")
POOLED = 2
"""VMs taken in turns: an install right after another of the same VM waits 4-20 ms (DESIGN 6)."""


class KvmBackend:
    """Runs scripts on this host's kernel, in pooled VMs. ``KvmError`` when it cannot be opened."""

    def __init__(self, path: str = "/dev/kvm") -> None:
        """Open the device; a kernel without ``KVM_CAP_SYNC_REGS`` cannot be driven (ENOTSUP)."""
        self.kvm = Kvm(path)
        if not self.kvm.check_extension(lib.KVM_CAP_SYNC_REGS) & lib.KVM_SYNC_X86_REGS:
            self.kvm.close()
            raise KvmError(errno.ENOTSUP, "KVM_CHECK_EXTENSION", "no KVM_CAP_SYNC_REGS")
        self._pool: deque[PooledVm] = deque()

    def lacks(self, need: str) -> str | None:
        """Return why this host does not have what ``Case.needs`` names, or None when it has."""
        return NEEDS[need](self) if need in NEEDS else f"{need}: not known to this version"

    def run(self, script: Script) -> Trace:
        """Return what was seen; the trace ends with ``Lost`` where the guest did."""
        run = _Run(self._take(script), script)
        try:
            trace = tuple(run.events())
        except BaseException:
            run.vm.close()
            raise
        if run.restore():
            self._pool.append(run.vm)
        else:
            run.vm.close()
        return trace

    def close(self) -> None:
        """Destroy the pooled VMs."""
        while self._pool:
            self._pool.popleft().close()
        self.kvm.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def _take(self, script: Script) -> PooledVm:
        fresh = any(isinstance(each, words.CreateVcpu | words.CreateIrqchip) for each in script)
        if fresh or len(self._pool) < POOLED:
            return PooledVm(self.kvm, keep=not fresh)
        vm = self._pool.popleft()
        vm.reset()
        return vm


class _Run:
    """One script in one VM. An action is done by the method of its name."""

    def __init__(self, vm: PooledVm, script: Script) -> None:
        self.vm, self.script = vm, script
        self.pending: dict[int, words.Access] = {}
        self.placed: list[PlacedFilter] = []
        self.lost = False
        self.before = {
            (each.vcpu, each.index): vm.get_msr(each.vcpu, each.index)
            for each in script
            if vm.keep and isinstance(each, words.Wrmsr | words.SetMsr)
        }

    def events(self) -> Iterable[Event]:
        """Yield the events of all actions, consecutive accesses of a vCPU as one batch."""
        at = 0
        while at < len(self.script) and not self.lost:
            action = self.script[at]
            batch = self._batch(at)
            for event in self._accesses(batch) if batch else [self._do(action)]:
                self.lost = self.lost or isinstance(event, Lost)
                yield event
            at += len(batch) or 1

    def restore(self) -> bool:
        """Undo what the script did to MSRs; False when the VM must not be used again."""
        for each in self.placed:
            each.close()
        if self.lost or self.pending or not self.vm.keep:
            return False
        return all(
            self.vm.vcpu(vcpu).set_msrs({index: old}) == 1
            for (vcpu, index), old in self.before.items()
            if old is not None
        )

    def _batch(self, at: int) -> list[words.Access]:
        batch: list[words.Access] = []
        for each in self.script[at:]:
            if not isinstance(each, words.Rdmsr | words.Wrmsr):
                break
            if batch and each.vcpu != batch[0].vcpu:
                break
            batch.append(each)
        return batch

    def _accesses(self, batch: list[words.Access]) -> list[Event]:
        self.pending.pop(batch[0].vcpu, None)
        return self.vm.program(batch[0].vcpu).run(batch)

    def _do(self, action: words.Action) -> Event:
        try:
            return DO[type(action)](self, action)
        except KvmError as error:
            return words.Rejected(error.errno or 0)

    # --- one method for each action ---------------------------------------------------------

    def enable_cap(self, action: words.EnableCap) -> Event:
        self._file(action.on).enable_cap(action.cap, *action.args, flags=action.flags)
        return done

    def install(self, action: words.Install) -> Event:
        self.placed.append(PlacedFilter(action.filter))
        address = self.placed[-1].address if action.argp is None else bad_address(action.argp)
        self.vm.filtered = True
        self._file(action.on).ioctl(action.number, address)
        return done

    def scribble_bitmaps(self, action: words.ScribbleBitmaps) -> Event:
        self.placed[-1].scribble()
        return done

    def check_extension(self, action: words.CheckExtension) -> Event:
        return words.Got(self._file(action.on).check_extension(action.cap))

    def get_msr(self, action: words.GetMsr) -> Event:
        value = self.vm.get_msr(action.vcpu, action.index)
        return refused if value is None else words.Got(value)

    def set_msr(self, action: words.SetMsr) -> Event:
        count = self.vm.vcpu(action.vcpu).set_msrs({action.index: action.value})
        return done if count else refused

    def create_irqchip(self, action: words.CreateIrqchip) -> Event:
        self.vm.create_irqchip()
        return done

    def create_vcpu(self, action: words.CreateVcpu) -> Event:
        self.vm.create_vcpu(action.vcpu)
        return done

    def begin(self, action: words.Begin) -> Event:
        access = action.access
        program = self.vm.program(access.vcpu)
        program.load([access])
        self.pending[access.vcpu] = access
        program.vcpu.kvm_run.kvm_valid_regs = 0
        return self._run(access.vcpu)

    def get_regs(self, action: words.GetRegs) -> Event:
        program = self.vm.program(action.vcpu)
        regs = program.vcpu.get_regs()
        is_write = isinstance(self.pending[action.vcpu], words.Wrmsr)
        return words.Regs(regs.rip - program.instructions[is_write], regs.rax, regs.rcx, regs.rdx)

    def set_regs(self, action: words.SetRegs) -> Event:
        vcpu = self.vm.vcpu(action.vcpu)
        regs = vcpu.get_regs()
        regs.rip += action.rip
        regs.rax = regs.rax if action.rax is None else action.rax
        regs.rdx = regs.rdx if action.rdx is None else action.rdx
        if action.via == "sync":
            vcpu.sync_regs()[0] = regs[0]
            vcpu.kvm_run.kvm_dirty_regs = lib.KVM_SYNC_X86_REGS
        else:
            vcpu.set_regs(regs)
        return done

    def complete(self, action: words.Complete) -> Event:
        vcpu = self.vm.vcpu(action.vcpu)
        if action.reply:
            answer(vcpu, action.reply)
        with _signalled(vcpu) if action.by == "signal" else _immediate(vcpu):
            return self._run(action.vcpu)

    def finish(self, action: words.Finish) -> Event:
        vcpu = self.vm.vcpu(action.vcpu)
        if action.reply:
            answer(vcpu, action.reply)
        return self._run(action.vcpu)

    def _run(self, vcpu_id: int) -> Event:
        program = self.vm.program(vcpu_id)
        try:
            seen = program.vcpu.run()
        except KvmError as error:
            if error.errno == errno.EINTR:
                return interrupted
            return Lost(str(error))
        if isinstance(seen, RdmsrExit | WrmsrExit):
            return seen
        access = self.pending[vcpu_id]
        if isinstance(seen, IoExit) and (outcome := program.outcome(access)):
            del self.pending[vcpu_id]
            return outcome
        return Lost(str(seen))

    def _file(self, on: str) -> Any:
        if on == "vcpu":
            return self.vm.vcpu(0)
        return self.vm.vm if on == "vm" else self.vm.vm.kvm


DO: dict[type, Callable[[_Run, Any], Event]] = {
    words.EnableCap: _Run.enable_cap,
    words.Install: _Run.install,
    words.ScribbleBitmaps: _Run.scribble_bitmaps,
    words.CheckExtension: _Run.check_extension,
    words.GetMsr: _Run.get_msr,
    words.SetMsr: _Run.set_msr,
    words.CreateIrqchip: _Run.create_irqchip,
    words.CreateVcpu: _Run.create_vcpu,
    words.Begin: _Run.begin,
    words.GetRegs: _Run.get_regs,
    words.SetRegs: _Run.set_regs,
    words.Complete: _Run.complete,
    words.Finish: _Run.finish,
}


class _immediate:
    """Within: ``KVM_RUN`` completes what is pending and returns EINTR at once."""

    def __init__(self, vcpu: Vcpu) -> None:
        self.vcpu = vcpu

    def __enter__(self) -> None:
        self.vcpu.kvm_run.immediate_exit = 1

    def __exit__(self, *_: object) -> None:
        self.vcpu.kvm_run.immediate_exit = 0


class _signalled:
    """Within: a signal is pending that only ``KVM_RUN`` does not block, so it ends with EINTR."""

    def __init__(self, vcpu: Vcpu) -> None:
        self.vcpu = vcpu

    def __enter__(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
        self.vcpu.set_signal_mask(())
        signal.raise_signal(signal.SIGUSR2)

    def __exit__(self, *_: object) -> None:
        signal.sigtimedwait({signal.SIGUSR2}, 0)
        self.vcpu.set_signal_mask(None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})


def answer(vcpu: Vcpu, reply: words.Reply) -> None:
    """Write a reply, and what the kernel must ignore if the reply says so, to ``kvm_run``."""
    vcpu.reply(reply.value)
    if reply.error:
        vcpu.fail(reply.error)
    if reply.scribble:
        msr = vcpu.kvm_run.msr
        msr.reason = msr.index = 0xA5A5A5A5
        msr.pad = b"\xa5" * 7


def _ignores_msrs(_: KvmBackend) -> str | None:
    try:
        on = IGNORE_MSRS.read_text().strip() in ("Y", "1")
    except OSError:
        return None
    return "kvm.ignore_msrs=1: unknown MSRs succeed here" if on else None


def _missing_cap(cap: int, least: int, what: str) -> Callable[[KvmBackend], str | None]:
    def reason(backend: KvmBackend) -> str | None:
        return None if backend.kvm.check_extension(cap) >= least else f"{what} is not there"

    return reason


NEEDS: dict[str, Callable[[KvmBackend], str | None]] = {
    "no_ignore_msrs": _ignores_msrs,
    "irqchip": _missing_cap(lib.KVM_CAP_IRQCHIP, 1, "KVM_CAP_IRQCHIP"),
    "vcpus": _missing_cap(lib.KVM_CAP_MAX_VCPUS, 2, "a second vCPU"),
}
