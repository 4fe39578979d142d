"""VMs that end in every way, and the measurement of what the kernel keeps of them."""

import os
import random
import signal
import subprocess
import sys

import pytest

from vmm.conformance.churn import leak
from vmm.conformance.churn import result as churned
from vmm.conformance.churn.leak import SAMPLES, UNRECLAIMABLE, measure, slope_of
from vmm.conformance.host.watch import Watch
from vmm.errors import KvmError

MiB = 1 << 20


@pytest.fixture
def churn(has_kvm):
    from vmm.conformance.churn import churn

    return churn


@pytest.fixture
def endings(has_kvm):
    from vmm.conformance.churn import endings

    return endings


def test_installs_that_fail_are_measured_and_must_fail(churn, kvm, monkeypatch, nothing_left):
    result = churn.run(1, 100, 0)
    assert [(slope.what, slope.operations) for slope in result.slopes] == [
        ("installs", 96),
        ("failed installs", 96),
    ]
    monkeypatch.setattr(churn, "ENDS_BADLY", churn.THICK)
    with kvm.create_vm() as vm, pytest.raises(KvmError, match="EINVAL was expected"):
        churn.fail(vm, 1)


# --- endings ----------------------------------------------------------------------------------


def test_every_ending_leaves_nothing(churn, has_userfaultfd, nothing_left):
    lines = []
    result = churn.run(8, 0, 0, seed=1, on_progress=lines.append)
    assert result.conforms, churned.render(result)
    assert set(result.ended.values()) == {8} and not result.skipped
    assert "8 ended by SIGKILL" in churned.render(result)


def test_without_userfaultfd_one_ending_is_skipped_and_told(churn, monkeypatch, nothing_left):
    def refuse():
        raise KvmError(1, "userfaultfd")

    from vmm.conformance.churn import endings

    monkeypatch.setattr(endings, "Userfaultfd", refuse)
    result = churn.run(2, 0, 0)
    assert list(result.skipped) == ["during a stalled install"]
    assert result.conforms and "SKIP ended during a stalled install" in churned.render(result)


def test_a_vcpu_that_never_exits_is_stuck_and_released(churn, endings, monkeypatch, nothing_left):
    monkeypatch.setattr(endings, "DEADLINE", 0.2)
    monkeypatch.setattr(endings, "A", 0x474F4F00 - 1)  # not denied: #GP without an IDT
    result = churn.run(1, 0, 0)
    assert not result.conforms
    assert "STUCK" in churned.render(result), churned.render(result)


def test_an_install_that_stays_stalled_is_stuck(
    kvm, endings, has_userfaultfd, monkeypatch, nothing_left
):
    monkeypatch.setattr(endings, "DEADLINE", 0.1)
    monkeypatch.setattr(endings, "THICK", endings.MsrFilter.default_allow().deny(endings.A))
    with pytest.raises(endings.Stuck, match="never reached"):
        endings.during_a_stalled_install(kvm, random.Random(1))


def test_a_child_that_does_not_start_is_told(kvm, endings, monkeypatch, nothing_left):
    monkeypatch.setattr(endings, "DEADLINE", 0.5)
    monkeypatch.setattr(endings, "_live_until_killed", lambda tell, parent: os._exit(1))
    with pytest.raises(endings.Stuck, match="forked"):
        endings.by_death(kvm, random.Random(1))


def test_ctrl_c_leaves_nothing(churn, monkeypatch, nothing_left):
    monkeypatch.setattr(churn, "TICK", 0.05)

    def interrupt(_):
        signal.raise_signal(signal.SIGINT)

    result = churn.run(100_000, 0, 0, on_progress=interrupt)
    assert result.interrupted and not result.failure
    assert sum(result.ended.values()) > 0


INTERRUPTED = """
import os, random
from vmm.conformance.churn import endings
from vmm.kvm import Kvm

def pidfd_open(pid):
    raise KeyboardInterrupt

os.pidfd_open = pidfd_open
with Kvm() as kvm:
    endings.by_death(kvm, random.Random(1))
"""


def test_who_is_interrupted_before_he_kills_leaves_nobody_behind(has_kvm):
    """The child has our stdout: whoever reads it would wait for ever."""
    command = [sys.executable, "-P", "-c", INTERRUPTED]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.stderr.endswith("KeyboardInterrupt\n")


def test_nothing_done_is_no_success(churn):
    assert not churn.run(0, 0, 0).conforms


# --- leaks ------------------------------------------------------------------------------------


def series(each: float, noise: int, seed: int = 1):
    """Return samples of a counter that grows by ``each`` bytes an operation, and wobbles."""
    rng = random.Random(seed)
    return [
        (n * 4000, {UNRECLAIMABLE: int(50 * MiB + n * 4000 * each + rng.uniform(-1, 1) * noise)})
        for n in range(SAMPLES + 1)
    ]


@pytest.mark.parametrize("seed", range(20))
def test_a_leak_is_told_from_noise(seed):
    assert not slope_of("installs", series(0, MiB, seed)).leaks
    assert slope_of("installs", series(128, MiB, seed)).leaks
    assert slope_of("installs", series(24576, 50 * MiB, seed)).leaks


def test_one_jump_is_no_leak():
    jump = [(n, {UNRECLAIMABLE: 50 * MiB + (n > 48000) * 40 * MiB}) for n, _ in series(0, 0)]
    assert not slope_of("installs", jump).leaks


def test_the_slope_is_in_bytes_an_operation():
    assert slope_of("x", series(100, 0)).bytes_each[UNRECLAIMABLE] == pytest.approx(100)


def test_what_looks_like_a_leak_is_measured_again():
    values = iter([*(n * MiB for n in range(SAMPLES + 1)), *[0] * (SAMPLES + 1)])
    calls = []
    found = measure("x", 100, calls.append, lambda: {UNRECLAIMABLE: next(values)})
    assert not found.leaks and sum(calls) == 200


def test_without_counters_there_is_no_leak(tmp_path):
    assert leak.read_counters(tmp_path / "none") == {}
    assert not measure("x", 50, lambda count: None, dict).leaks


@pytest.mark.alone("it measures the memory of the whole machine")
def test_this_kernel_frees_what_it_replaces_and_what_its_vms_held(churn, nothing_left):
    result = churn.run(0, 500, 50)
    assert [each.operations for each in result.slopes] == [480, 480, 48]
    assert not result.failure and not any(each.leaks for each in result.slopes), churned.render(
        result
    )


@pytest.mark.alone("it measures the memory of the whole machine")
def test_filters_that_are_kept_are_a_leak(churn, kvm, nothing_left):
    kept = []

    def keep(count):
        for _ in range(count):
            kept.append(kvm.create_vm())
            kept[-1].set_msr_filter(churn.THICK)

    try:
        found = measure("VMs kept", 120, keep)
    finally:
        for vm in kept:
            vm.close()
    assert found.leaks and found.bytes_each[UNRECLAIMABLE] > 20_000
    assert found.line().startswith("LEAK")


# --- the kernel's complaints ------------------------------------------------------------------


def test_new_splats_and_new_taint_are_complaints(tmp_path):
    log, tainted = tmp_path / "kmsg", tmp_path / "tainted"
    log.write_text("4,1,1,-;WARNING: CPU: 0 PID: 1 at kernel/old.c:1 old+0x1/0x2\n")
    tainted.write_text("1")
    with Watch(str(log), tainted) as watch:
        assert watch.complaints() == () and not watch.blind
        with log.open("a") as more:
            more.write("4,2,2,-;WARNING: CPU: 1 PID: 2 at arch/x86/kvm/x86.c:1 new+0x1/0x2\n")
        tainted.write_text(str(1 | 1 << 9))
        splat, taint = watch.complaints()
    assert "new+0x1" in splat and taint.endswith("W")


def test_a_log_that_cannot_be_read_is_told(tmp_path):
    with Watch(str(tmp_path / "none"), tmp_path / "none") as watch:
        assert watch.complaints() == () and "No such file" in watch.blind


def test_a_complaint_fails_churn_and_stress(churn, monkeypatch):
    from vmm.conformance.stress import stress

    monkeypatch.setattr(Watch, "complaints", lambda self: ("BUG: here",))
    for result, render in (
        (churn.run(1, 0, 0), churned.render),
        (stress.run(0.1, 1, 1, 1), stress.render),
    ):
        assert not result.conforms and "the kernel: BUG: here" in render(result)


def test_what_is_foreign_is_told_by_churn_and_stress_and_fails_neither(churn, monkeypatch):
    from vmm.conformance.stress import stress

    def nothing_of_ours(watch):
        watch.foreign.append("it names qemu (900): WARNING: there")
        return ()

    monkeypatch.setattr(Watch, "complaints", nothing_of_ours)
    for result, render in (
        (churn.run(1, 0, 0), churned.render),
        (stress.run(0.1, 1, 1, 1), stress.render),
    ):
        assert result.conforms and "foreign, and no matter here: it names qemu" in render(result)
