"""Threads, signals and a fork: who kicks, closes or enters what another thread uses is told."""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import pytest

from vmm.conformance.kernel.backend import KvmBackend
from vmm.conformance.kernel.pool import PooledVm
from vmm.conformance.kernel.threads import Spinner
from vmm.conformance.language.script import rdmsr
from vmm.errors import Busy, Closed, KvmError
from vmm.guest import Guest
from vmm.kicks import KICK
from vmm.msr import Msr


@pytest.mark.parametrize("thread", [0, -1, 1, 1 << 70, None, "x", math.nan])
def test_no_kick_for_a_thread_that_does_not_exist(vm, thread):
    vcpu = Guest.load("read_msr").boot(vm)
    with pytest.raises(ValueError, match="no thread"):
        vcpu.kick(thread)
    assert vcpu.kvm_run.immediate_exit == 0


def test_no_kick_for_a_thread_that_has_ended(vm):
    ended = threading.Thread(target=int)
    ended.start()
    ended.join()
    with pytest.raises(ValueError, match="no thread"):
        Guest.load("read_msr").boot(vm).kick(ended.ident)


def run_alone(code):
    return subprocess.run(
        [sys.executable, "-X", "dev", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        cwd="/",
    )


def test_a_kick_without_a_handler_kills_nobody(kvm):
    code = (
        "from vmm import *; import threading\n"
        "with Kvm() as kvm, kvm.create_vm() as vm:\n"
        "    vcpu = Guest.load('read_msr').boot(vm); vcpu.kick(threading.get_ident())\n"
        "    try: vcpu.run()\n"
        "    except KvmError as error: print(error)\n"
    )
    ran = run_alone(code)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("KVM_RUN: Interrupted system call")


def test_a_handler_of_the_users_stays(vm):
    seen = []
    before = signal.signal(KICK, lambda *_: seen.append(1))
    try:
        assert Guest.load("spin").boot(vm).run_for(0.02) is None
    finally:
        signal.signal(KICK, before)
    assert seen


def spinning(vm):
    """Return a vCPU, the thread that runs its endless loop, and where its end will be seen."""
    vcpu, ended = Guest.load("spin").boot(vm), []

    def run():
        try:
            ended.append(vcpu.run())
        except KvmError as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(0.05)
    return vcpu, thread, ended


def test_a_second_thread_in_a_vcpu_is_told(vm):
    vcpu, thread, ended = spinning(vm)
    try:
        for use in (vcpu.run, vcpu.get_regs, lambda: vcpu.get_msrs([Msr.STAR])):
            with pytest.raises(Busy):
                use()
    finally:
        vcpu.kick(thread.ident)
        thread.join(10)
    assert [type(each) for each in ended] == [KvmError]


@pytest.mark.parametrize("what", ["vcpu", "vm"])
def test_closed_by_another_thread_a_run_ends_and_says_so(kvm, what):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with kvm.create_vm() as vm:
            vcpu, thread, ended = spinning(vm)
            (vcpu if what == "vcpu" else vm).close()
            thread.join(10)
            assert not thread.is_alive()
            assert [type(each) for each in ended] == [Closed]
    assert len(os.listdir("/proc/self/fd")) == before


def test_many_threads_close_what_many_use(kvm):
    odd = []

    def use(vm):
        try:
            while True:
                vm.check_extension(188)
        except Closed:
            pass
        except BaseException as error:
            odd.append(error)

    for _ in range(20):
        vm = kvm.create_vm()
        threads = [threading.Thread(target=use, args=[vm]) for _ in range(3)]
        threads += [threading.Thread(target=vm.close) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
    assert odd == []


def test_in_a_forked_child_a_vm_says_what_to_do(vm):
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            vm.create_vcpu(5)
        except KvmError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert b"fork" in os.read(read, 1000)
    os.close(read)
    os.close(write)


def test_native_code_and_a_run_do_not_enter_a_vcpu_at_once(vm):
    vcpu = Guest.load("read_msr").boot(vm, rcx=Msr.STAR)
    with vcpu.entered():
        for use in (vcpu.run, vcpu.get_regs, lambda: vcpu.entered().__enter__()):
            with pytest.raises(Busy):
                use()
    vcpu.run()
    with pytest.raises(ZeroDivisionError), vcpu.entered():
        1 / 0  # noqa: B018
    vcpu.get_regs()
    vcpu.close()
    with pytest.raises(Closed), vcpu.entered():
        pass


def test_a_batch_or_a_look_at_a_vcpu_that_spins_is_refused(vm):
    with KvmBackend() as backend:
        pooled = PooledVm(backend.kvm, keep=False)
        pooled.create_vcpu(0)
        program = pooled.program(0)
        program.load_loop(rdmsr(Msr.STAR))
        spinner = Spinner(program.vcpu, program.rounds, 0)
        assert spinner.until(lambda: program.rounds() > 0, 10)
        for use in (lambda: program.run([rdmsr(Msr.STAR)]), program.enter, program.vcpu.run):
            before = program.rounds()
            with pytest.raises(Busy):
                use()
            goes_on = partial(lambda before: program.rounds() > before, before)
            assert spinner.until(goes_on, 10), "its loop is as it was"
        assert spinner.stop(10)
        assert program.run([rdmsr(Msr.STAR)])
        pooled.close()
