"""Both executors on this kernel: they agree, and a mistake in either shows in the other."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from vmm.conformance.c.tape import is_playable, tape
from vmm.conformance.cases import CASES
from vmm.conformance.judge.both import Both, DisagreementError, agree, found_player, played
from vmm.conformance.judge.check import Trouble
from vmm.conformance.judge.judging import judge
from vmm.conformance.judge.recording import Options
from vmm.conformance.judge.trace import Reading
from vmm.conformance.kernel.backend import KvmBackend
from vmm.conformance.language.script import (
    ANY,
    done,
    got,
    gp,
    rdmsr,
    regs,
    rejected,
    returned,
    whatever,
    wrote,
)
from vmm.conformance.records.verdict import Verdict

NATIVE = Path(__file__).parents[3] / "native"

MISTAKES = {
    "reply_is_not_answered": ("run->msr.data = reply.data;", "run->msr.data = 0;", "completion.*"),
    "error_is_not_answered": ("run->msr.error = reply.error;", ";", "completion.*fault*"),
    "nothing_is_scribbled": (
        "memset(run->msr.pad, 0xa5, sizeof(run->msr.pad));\n\t\trun->msr.reason = run->msr.index"
        " = 0xa5a5a5a5;",
        "run->msr.data = 0;",
        "completion.scribbled*",
    ),
    "high_half_of_rcx_is_lost": (
        ".rcx = access.rcx, .rax",
        ".rcx = access.rcx + 1, .rax",
        "exits.*",
    ),
    "upper_half_is_not_looked_at": (
        "__u64 high = (regs.rdx & ~0xffffffffull) | regs.rax >> 32;",
        "__u64 high = 1;",
        "passthrough.value*",
    ),
    "value_is_swapped": (
        "regs.rdx << 32 | (regs.rax & 0xffffffff)",
        "regs.rax << 32 | (regs.rdx & 0xffffffff)",
        "completion.*",
    ),
    "every_write_changes_registers": (
        'else if (regs.rax != vcpu->access.rax || regs.rdx != vcpu->access.rdx)\n\t\tsaw("Wrote',
        'else if (1)\n\t\tsaw("Wrote',
        "masks.*",
    ),
    "reason_is_not_named": ('"0", "INVAL", "UNKNOWN",', '"0", "UNKNOWN", "INVAL",', "masks.*"),
    "index_is_not_the_exits": (
        'is_write ? "WrmsrExit" : "RdmsrExit", run->msr.index, reason,',
        'is_write ? "WrmsrExit" : "RdmsrExit", 0, reason,',
        "masks.*",
    ),
    "reads_look_like_writes": (
        'is_write ? "WrmsrExit" : "RdmsrExit", run',
        'is_write ? "RdmsrExit" : "RdmsrExit", run',
        "masks.*",
    ),
    "vector_is_off_by_one": (
        "saw_fault(vcpu, &regs, port - VECTOR_PORT);",
        "saw_fault(vcpu, &regs, port - VECTOR_PORT + 1);",
        "masks.*",
    ),
    "fault_is_taken_elsewhere": (
        "int skew = *frame - vcpu->access.rip;",
        "int skew = 1;",
        "masks.*",
    ),
    "capability_is_on_another_file": (
        "saw_result(ioctl(fd, KVM_ENABLE_CAP, &cap));",
        "saw_result(ioctl(kvm, KVM_ENABLE_CAP, &cap));",
        "masks.*",
    ),
    "arguments_of_a_capability_are_lost": (
        "static void enable_cap(int fd, struct kvm_enable_cap cap)\n{",
        "static void enable_cap(int fd, struct kvm_enable_cap cap)\n{\n\tcap.args[0] = 0;",
        "masks.*",
    ),
    "install_is_not_made": ("saw_install(ioctl(fd, number, argp));", 'saw("done");', "matching.*"),
    "install_ignores_its_argument": (
        "saw_install(ioctl(fd, number, argp));",
        "saw_install(ioctl(fd, number, NULL));",
        "matching.*",
    ),
    "child_is_the_parent": (
        "\t\tresult = ioctl(fd, number, argp);",
        "\t\tresult = 0;",
        "callers.child*",
    ),
    "compat_layout_is_off": (
        "copy->ranges[i].nmsrs = filter->ranges[i].nmsrs;",
        "copy->ranges[i].nmsrs = filter->ranges[i].base;",
        "compat.matching*",
    ),
    "edge_is_not_at_the_edge": (
        "return pages + PAGE - size;",
        "return pages;",
        "quirks.short*",
    ),
    "host_reads_another_msr": (
        "one_msr(index, 0);\n\tint count = ioctl(vm.vcpus[id].fd, KVM_GET_MSRS, msrs);\n\n",
        "one_msr(0x10, 0);\n\tint count = ioctl(vm.vcpus[id].fd, KVM_GET_MSRS, msrs);\n\n",
        "scope.*",
    ),
    "host_writes_nothing": (
        "int count = ioctl(vm.vcpus[id].fd, KVM_SET_MSRS, msrs), error = errno;",
        "int count = 1, error = errno;",
        "x2apic.*",
    ),
    "regs_are_not_set": (
        'write_regs(id, &regs);\n\tsaw("done");',
        'saw("done");',
        "quirks.*registers_set_by_ioctl*",
    ),
    "immediate_exit_is_not_asked_for": (
        "vm.vcpus[id].run->immediate_exit = 1;\n\trun_int",
        "run_int",
        "reentry.*immediate_exit*",
    ),
    "stall_is_not_seen": ('saw("stalled");', 'saw("blocked");', "stalled.*slot_1"),
    "bitmap_is_given_empty": (
        "memcpy(stall->bits, bits, size < PAGE ? size : PAGE);",
        ";",
        "stalled.*slot_1",
    ),
    "blocked_is_never_said": ("if (sleeps_through(task)) {", "if (0) {", "parked.install_waits"),
    "parked_is_not_waited_for": (
        'if (is_awaited(parked[id].page, SLICE, task)) {\n\t\t\tsaw("parked");',
        'if (is_awaited(parked[id].page, SLICE, task)) {\n\t\t\tsaw("released");',
        "parked.*",
    ),
    "sweep_counts_from_one": (
        "name_of(sweep_ended[first]));\n\t\tfirst = i;",
        "name_of(sweep_ended[first]));\n\t\tfirst = i - 1;",
        "sweep.every_other*",
    ),
    "until_exits_takes_any": (
        "saw_msr(spinner->exit_reason, &spinner->last);",
        'saw("ran");',
        "running.*star",
    ),
    "user_code_is_the_kernels": (
        "sregs->cs = segment(USER_CODE64, 11, 1);\n\tsregs->ds = sregs->es = sregs->ss"
        " = segment(USER_DATA, 3, 0);",
        ";",
        "modes.user.*",
    ),
    "exceptions_of_user_code_have_no_stack": (
        "memcpy(vm.memory + TASKS + TASK_SIZE * id + 4, &stack, sizeof(stack));",
        ";",
        "modes.user.*",
    ),
    "real_mode_counts_from_0": ("regs.rip -= mode->code;", ";", "modes.real.completion.*"),
    "frame_of_real_mode_is_of_32_bits": (".word = 2, .code", ".word = 4, .code", "modes.real.*"),
    "frame_has_no_error_code": (
        "if (has_error_code(vector) && !is_real(mode)) {",
        "if (0) {",
        "modes.protected.*",
    ),
    "gates_are_64_bit_ones": (
        "sregs->idt.base = GATES32;",
        "sregs->idt.base = IDT;",
        "modes.protected.*",
    ),
    "bases_are_lost_with_the_mode": (
        "sregs.fs.base = fs;\n\tsregs.gs.base = gs;",
        ";",
        "modes.*.scope.*_of_fs_base",
    ),
    "mode_is_not_left": (
        "enter_mode(id, &long_mode);\n\twrite_regs",
        "write_regs",
        "modes.*.in_turns*",
    ),
    "access_behind_another_is_the_other_one": (
        "access.rip & (RDMSR ^ WRMSR) ? 0x30 : 0x32",
        "access.rip & (RDMSR ^ WRMSR) ? 0x32 : 0x30",
        "shadows.allowed",
    ),
    "leaf_is_not_the_one_of_kvm": (
        'memcmp(text, "KVMKVMKVM\\0\\0", 12) ? regs->rbx : 0x40000000',
        "regs->rbx",
        "effects.cpuid*",
    ),
    "syscall_has_the_selector_of_sysret": (
        "setting->value << 32);",
        "setting->value << 48);",
        "effects.syscall*",
    ),
    "user_selector_is_the_kernels": (
        "show_cs(setting) - 16",
        "show_cs(setting)",
        "effects.sysret*",
    ),
    "bases_are_one": (
        "setting->sregs.gs.base = OTHER_BASE;",
        "setting->sregs.gs.base = setting->value;",
        "effects.swapgs*",
    ),
    "msrs_are_not_set_back": (
        "write_msr(setting->id, setting->msrs[setting->n_msrs].index,\n\t\t\t"
        "  setting->msrs[setting->n_msrs].old);",
        ";",
        "effects.leave_their_msrs",
    ),
    "state_is_not_set_back": ("write_sregs(setting->id, before);", ";", "effects.sysexit*"),
    "shadow_is_not_told": (
        'events.interrupt.shadow ? "True" : "False"',
        '"False"',
        "shadows.long_ends*",
    ),
    "queued_exception_is_not_told": (
        "if (events.exception.injected || events.exception.pending)",
        "if (0)",
        "shadows.a_failed_access_is_queued",
    ),
    "nothing_is_injected": (
        "ioctl(vcpu->fd, number, argument) < 0",
        "0",
        "shadows.long_nmi*",
    ),
    "interrupt_is_taken_elsewhere": (
        "access->skew = frame.rip - access->rip;",
        "access->skew = 0;",
        "shadows.long_interrupt*",
    ),
    "handler_returns_nowhere": ("regs.rip = frame.rip;", ";", "shadows.protected_nmi*"),
    "no_rex_but_another_byte": ("{ 0x48, 0x0f, is_write", "{ 0x90, 0x0f, is_write", "forms.rex_*"),
    "rex_is_of_the_other_access": (
        "is_write ? 0x30 : 0x32",
        "is_write ? 0x32 : 0x30",
        "forms.rex_*",
    ),
    "form_has_no_end": (
        "memcpy(vm.memory + at + size, end, sizeof(end));",
        ";",
        "forms.registers_of_rex",
    ),
    "nmi_stays_masked": ("events.nmi.masked = 0;", ";", "shadows.real_nmi*"),
}
"""What is written wrong in one file of ``native/words``, and the cases that are to see it."""


def cases_of(glob):
    return [case for case in CASES if fnmatchcase(case.id, glob) and is_playable(case)][:24]


def disagreements(player, cases, timeout=10.0):
    """Yield the ids of the cases of which the player saw something else than Python."""
    data = tape(cases, timeout=timeout)
    ran = subprocess.run([player, "-j2", "-"], input=data, capture_output=True, timeout=600)
    reading = Reading(cases, Options(timeout=timeout))
    for line in ran.stdout.decode("latin-1").splitlines():
        list(reading.line(line))
    seen = {case.actions: reading.seen.get(case.id, "nothing") for case in cases}
    with KvmBackend() as backend:
        both = Both(backend, seen)
        for case in cases:
            record = judge(case, both)
            if record["verdict"] is Verdict.ERROR:
                assert "disagree" in record["error"] or "the player" in record["error"]
                yield case.id


@pytest.fixture(scope="session")
def player(has_kvm):
    if (found := found_player()) is None:
        pytest.skip("no msrward-player: there was no static libc to link it with")
    return found


def test_the_executors_agree(player):
    for glob in sorted({glob for _, _, glob in MISTAKES.values()}):
        cases = cases_of(glob)
        assert cases, glob
        assert [*disagreements(player, cases, timeout=120.0)] == [], glob


def wrong_player(mistake, there):
    """Write the mistake into one file of the words, and return the player that they make."""
    old, new, _ = MISTAKES[mistake]
    native = shutil.copytree(NATIVE, there / mistake)
    files = (native / "words").glob("*.c")
    places = [each for each in files for _ in range(each.read_text().count(old))]
    assert len(places) == 1, f"{mistake}: {len(places)} places"
    places[0].write_text(places[0].read_text().replace(old, new))
    flags = ("-O0", "-w", "-pthread", "-o")
    command = ["cc", *flags, native / "a.out", native / "player.c"]
    subprocess.run(command, check=True, capture_output=True)
    return native / "a.out"


@pytest.fixture(scope="module")
def wrong_players(request, tmp_path_factory):
    """The wrong players that this run asks for: each CPU builds, while the first ones play."""
    if not shutil.which("cc"):
        pytest.skip("no C compiler (cc) to build a wrong player with")
    here = [each for each in request.session.items if each.path == request.path]
    asked = [each.callspec.params for each in here if hasattr(each, "callspec")]
    there = tmp_path_factory.mktemp("wrong")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {
            each["mistake"]: pool.submit(wrong_player, each["mistake"], there)
            for each in asked
            if "mistake" in each
        }
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_words_is_found(player, wrong_players, mistake, request):
    cases = cases_of(MISTAKES[mistake][2])
    if any("userfaultfd" in case.all_needs for case in cases):
        request.getfixturevalue("has_userfaultfd")
    assert any(disagreements(wrong_players[mistake].result(), cases)), mistake


def test_a_mistake_in_python_is_found(player, monkeypatch):
    from vmm.conformance.kernel import halves

    cases = cases_of("reentry.*")
    monkeypatch.setattr(halves, "answer", lambda vcpu, reply: vcpu.reply(reply.value + 1))
    assert any(disagreements(player, cases))


OPEN = (got(ANY),)


@pytest.mark.parametrize(
    "expected, one, other, fine",
    [
        (OPEN, (got(1),), (got(2),), True),
        (OPEN, (got(1),), (rejected(22),), False),
        ((whatever,), (gp,), (gp,), True),
        ((whatever,), (gp,), (wrote,), False),
        ((done,), (done,), (rejected(22),), False),
        (None, (returned(1),), (returned(1),), True),
        (None, (returned(1),), (returned(2),), False),
        ((done,), (done,), (), False),
        ((regs(ANY, 0, 0, 0),), (regs(1, 5, 0, 0),), (regs(2, 5, 0, 0),), True),
        ((regs(ANY, 0, 0, 0),), (regs(1, 5, 0, 0),), (regs(2, 6, 0, 0),), False),
        ((done,), (done,), "it died", False),
    ],
)
def test_what_agrees(expected, one, other, fine):
    script = (rdmsr(1),)
    if fine:
        agree(script, expected, one, other)
    else:
        with pytest.raises(DisagreementError, match=r"^[^\n]+$"):
            agree(script, expected, one, other)


def test_a_player_that_fails_is_trouble(monkeypatch, tmp_path):
    broken = tmp_path / "msrward-player"
    broken.write_text("#!/bin/sh\necho no >&2; exit 2\n")
    broken.chmod(0o755)
    monkeypatch.setattr("vmm.conformance.judge.both.found_player", lambda: broken)
    with pytest.raises(Trouble, match=r"^no$"):
        played(cases_of("masks.*"), Options())


@pytest.mark.parametrize("named", ["/nowhere", "/", "/etc/passwd"])
def test_a_player_that_is_no_program_is_named(monkeypatch, named):
    monkeypatch.setenv("MSRWARD_PLAYER", named)
    with pytest.raises(Trouble, match=f"^MSRWARD_PLAYER={named} is no program: [^\n]*$"):
        found_player()
