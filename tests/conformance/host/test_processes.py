"""Who else uses /dev/kvm, read off real processes; and psutil stays out of the lab's guests."""

import subprocess
import sys

import pytest

from vmm.conformance.host import doctor, processes
from vmm.lab.initramfs import interpreter

HOLD = """
import os, sys
sys.path[:0] = {path!r}
from vmm.kvm import Kvm
with Kvm() as kvm, kvm.create_vm() as a, kvm.create_vm() as b:
    print("open", flush=True)
    sys.stdin.read()
"""


@pytest.mark.usefixtures("has_kvm")
def test_a_process_with_vms_is_found_by_name_and_number_and_gone_when_it_ends():
    program = HOLD.format(path=sys.path)
    holder = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout.readline() == b"open\n"
        found = {user.pid: user for user in processes.kvm_users()[0]}
        assert found[holder.pid].vms == 2
        said = dict(doctor.CHECKS)["users of /dev/kvm"]()
        assert said.verdict == "WARN"
        assert processes.is_alive(holder.pid)
    finally:
        holder.communicate(b"")
    assert holder.pid not in {user.pid for user in processes.kvm_users()[0]}
    assert not processes.is_alive(holder.pid)


@pytest.mark.parametrize(("load", "verdict"), [(0.1, "PASS"), (4096.0, "WARN")])
def test_a_busy_host_is_said(monkeypatch, load, verdict):
    monkeypatch.setattr(processes, "load", lambda: load)
    assert dict(doctor.CHECKS)["load"]().verdict == verdict


def test_nobody_else_is_a_pass_that_says_what_it_could_not_see(monkeypatch):
    monkeypatch.setattr(processes, "kvm_users", lambda: ([], 3))
    said = dict(doctor.CHECKS)["users of /dev/kvm"]()
    assert (said.verdict, said.fact) == ("PASS", "nobody else; 3 processes cannot be looked at")


def test_what_runs_in_a_guest_does_without_psutil():
    assert not [name for name in interpreter.NEEDED if "psutil" in name]
    program = (
        "import sys; sys.modules['psutil'] = None; sys.modules['ioctl_opt'] = None\n"
        "import vmm.cli, vmm.conformance.judge.check, vmm.conformance.churn.churn\n"
        "import vmm.conformance.stress.stress, vmm.conformance.kernel.backend\n"
        "import vmm.conformance.cases, vmm.conformance.judge.worker\n"
    )
    path = f"import sys; sys.path[:0] = {sys.path!r}\n"
    ran = subprocess.run([sys.executable, "-c", path + program], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
