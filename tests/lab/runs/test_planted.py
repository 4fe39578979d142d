"""Mistakes planted in words that the lab alone can execute show there: nested state, WRMSRNS."""

import shutil
import subprocess
from pathlib import Path

import pytest

from vmm.conformance.cases import CASES
from vmm.conformance.judge.selection import Chosen
from vmm.conformance.records.saved import load
from vmm.conformance.records.verdict import Verdict
from vmm.conformance.report.view import View
from vmm.lab.errors import LabError
from vmm.lab.kernels import kernels
from vmm.lab.machines import emulators
from vmm.lab.runs import check, order

NATIVE = Path(__file__).parents[3] / "native"
# None of them shows B36, which no kernel here has a fix for.
NAMES = (
    *("registers", "saved_in_l1", "saved_at_an_exit", "saved_at_an_end", "l1_first", "values"),
    *("entered_after", "another_entry_between", "no_mask_in_a_fresh_vm", "untold", "star_before"),
)
SOME = [case for case in CASES if case.id in {f"restored.{name}" for name in NAMES}]

SECONDS = 5
"""What a case may take: a wrong player may wait for what never comes."""

MISTAKES = {
    "registers_are_not_restored": ("\twrite_regs(id, &from->regs);\n", ""),
    "state_is_not_restored": (
        "result = ioctl(vm.vcpus[id].fd, KVM_SET_NESTED_STATE, from->nested);",
        "result = 0;",
    ),
    "memory_of_l1_is_not_restored": ("memcpy(l1_memory(id, 0), from->area, L1_SIZE);", ";"),
    "level_is_not_restored": ("levels[id].is_in_l2 = from->is_in_l2;", ";"),
    "level_is_told_wrong": ("->flags & IN_L2)", "->flags & 0)"),
    "no_snapshot_of_registers": ("to->regs = read_regs(id);", ";"),
    "no_snapshot_of_the_system_registers": ("to->sregs = read_sregs(id);", ";"),
    "l2_is_not_left": ("state->flags &= INTERRUPTS_ON;", ";"),
    "vm_is_the_old_one": ("\tdrop_vm();\n\topen_vm();\n\tmemcpy(vm.memory, memory, MEMORY);\n", ""),
}
"""What is written wrong in ``words/restored.c``."""

FORMS = [
    case
    for case in CASES
    # No kernel here has a fix for B12, which tsc_deadline shows.
    if case.id.startswith("forms.wrmsrns_") and "deadline" not in case.id
]
IN_FORMS = {
    "right": ("", "", {Verdict.PASS}),
    # That is no WRMSRNS: the probe finds none, and the reason says so.
    "another_opcode": ("{ 0x0f, 0x01, 0xc6 }", "{ 0x0f, 0x01, 0xc7 }", {Verdict.SKIP}),
    "always_the_same_msr": (
        "access.rip = WRMSRNS;",
        "access.rip = WRMSRNS;\n\taccess.rcx = 0x474f4f00;",
        {Verdict.PASS, Verdict.FAIL},
    ),
}
"""What is written wrong in ``words/forms.c``, and the verdicts of the cases on VMX."""


@pytest.fixture(scope="module")
def kernel():
    """A kernel with SVM's nested state, and QEMU to boot it on."""
    try:
        emulators.find("qemu")
        return kernels.resolve("debian:6.12")
    except LabError as error:
        pytest.skip(str(error))


def verdicts(kernel, player, directory, monkeypatch, vendor="svm", cases=SOME):
    monkeypatch.setenv("MSRWARD_PLAYER", str(player))
    how = order.Inner(timeout=SECONDS)
    chosen = Chosen(cases, len(CASES))
    ordered = order.Order(kernel, vendor, chosen, how, executor="player", again=False)
    check.check(ordered, View(), directory)
    return {name: record["verdict"] for name, record in load(directory).cases.items()}


def build(into, old="", new="", place="words/restored.c"):
    if not shutil.which("cc"):
        pytest.skip("no C compiler (cc) to build a wrong player with")
    native = shutil.copytree(NATIVE, into / "native")
    text = (native / place).read_text()
    assert not old or text.count(old) == 1
    (native / place).write_text(text.replace(old, new) if old else text)
    command = ["cc", "-O0", "-w", "-static", "-pthread", native / "player.c", "-o", into / "player"]
    made = subprocess.run(command, capture_output=True, text=True)
    if "cannot find" in made.stderr:
        pytest.skip("no static libc to link a player with")
    assert made.returncode == 0, made.stderr
    return into / "player"


def test_the_words_are_right(kernel, tmp_path, monkeypatch):
    seen = verdicts(kernel, build(tmp_path), tmp_path / "o", monkeypatch)
    assert seen == {case.id: Verdict.PASS for case in SOME} and len(SOME) == len(NAMES)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found(kernel, mistake, tmp_path, monkeypatch):
    seen = verdicts(kernel, build(tmp_path, *MISTAKES[mistake]), tmp_path / "o", monkeypatch)
    assert len(seen) == len(SOME)
    assert {Verdict.FAIL, Verdict.ERROR, Verdict.TIMEOUT} & {*seen.values()}, mistake


@pytest.mark.parametrize("mistake", IN_FORMS)
def test_a_mistake_in_the_forms_is_found(kernel, mistake, tmp_path, monkeypatch):
    try:
        emulators.find("bochs")
    except LabError as error:
        pytest.skip(str(error))
    old, new, expected = IN_FORMS[mistake]
    player = build(tmp_path, old, new, "words/forms.c")
    seen = verdicts(kernel, player, tmp_path / "o", monkeypatch, "vmx", FORMS)
    assert {*seen.values()} == expected and len(seen) == len(FORMS)
