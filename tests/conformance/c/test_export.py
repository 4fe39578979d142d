"""Cases as C programs: each is compiled, run on this kernel, and must know right from wrong."""

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from vmm.conformance.c import words
from vmm.conformance.c.export import c_source
from vmm.conformance.c.tape import is_playable
from vmm.conformance.c.text import step_text
from vmm.conformance.cases import CASES
from vmm.conformance.host.parameters import ignores_msrs
from vmm.conformance.judge.judging import judge
from vmm.conformance.kernel.backend import KvmBackend
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import (
    ANY,
    Execute,
    Fault,
    Wrote,
    begin,
    done,
    either,
    enable_exits,
    finish,
    get_msr,
    got,
    gp,
    install,
    l1_exit,
    rdmsr,
    regs,
    rejected,
    returned,
    steps,
    unfiltered,
    whatever,
    wrmsr,
    wrote,
)
from vmm.conformance.records.verdict import Verdict
from vmm.exits import RdmsrExit, WrmsrExit
from vmm.filter import default_allow
from vmm.msr import FILTER, INVAL, UNKNOWN

CHOSEN = (
    "conditions.no_cpuid_before_the_filter",
    "named.not_in_cpuid",
    "named.one_register_at_a_time",
    "named.rcx_set_at_the_exit_by_ioctl",
    "named.vcpu_without_a_descriptor",
    "bitmaps.bits_0x0_reads",
    "bitmaps.copied_at_the_call_default_allow",
    "completion.scribbled_fields_ignored",
    "exits.reserved_efer_bit_32_is_inval",
    "modes.higher_half.completion.read_0x100000000",
    "modes.protected.without_exits",
    "stepping.told_to_a_debugger",
    "forms.rex_in_steps",
    "modes.user.never_exits",
    "passthrough.value_of_kernel_gs_base",
    "plumbing.capability_msr_filter",
    "plumbing.not_an_ioctl_of_the_system",
    "plumbing.not_an_ioctl_of_the_vcpu",
    "plumbing.unreadable_argument_unmapped",
    "quirks.read_registers_set_by_ioctl_rax_rdx",
    "quirks.short_bitmap_of_1_at_the_edge",
    "quirks.write_registers_set_by_sync_rip_2",
    "reentry.failed_read_before_signal",
    "reentry.only_the_first_answer_to_a_read_counts",
    "reentry.read_before_immediate_exit",
    "shadows.long_interrupt_comes_after_the_access",
    "vcpus.made_after_default_deny",
    "vcpus.one_filter_for_all",
)
FLAGS = ("-std=gnu11", "-Wall", "-Wextra", "-Werror", "-pthread")


EXPORTABLE = [case for case in CASES if is_playable(case)]


def selection():
    """One case that needs each word, and one of every theme; ``scripts/exports`` does them all."""
    chosen = [case for case in EXPORTABLE if case.id in CHOSEN]
    kinds = {type(each): case for case in reversed(EXPORTABLE) for each in case.script}
    needs = {each: case for case in reversed(EXPORTABLE) for each in case.all_needs}
    instructions = {
        each.instruction: case
        for case in reversed(EXPORTABLE)
        for each in case.script
        if isinstance(each, Execute)
    }
    themes = {case.id.partition(".")[0]: case for case in reversed(EXPORTABLE)}
    some = (*chosen, *kinds.values(), *needs.values(), *themes.values(), *EXPORTABLE[::90])
    some = (*some, *instructions.values())
    return list({case.id: case for case in some}.values())


@pytest.fixture(scope="session")
def cc():
    found = shutil.which("cc")
    if not found:
        pytest.skip("no C compiler (cc) to build exported programs with")
    return found


@pytest.fixture
def build(cc, tmp_path):
    def build(source, name="repro"):
        path = tmp_path / f"{name}.c"
        path.write_text(source)
        command = [cc, *FLAGS, "-o", tmp_path / name, path]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{name}: {done.stderr}"
        return tmp_path / name

    return build


def played(program):
    ran = subprocess.run([program], capture_output=True, text=True, timeout=60)
    return ran.returncode, ran.stdout.splitlines(), ran.stderr


def weighs(case):
    return "memory_cgroup" in case.all_needs


def agree(cases, build):
    """Hold what the programs of the cases say against this kernel; return how many passed."""

    def export(case):
        return case, played(build(c_source(case), case.id))

    with ThreadPoolExecutor(2) as pool:
        ran = list(pool.map(export, cases))
    with KvmBackend() as backend:
        for case, (status, lines, complaint) in ran:
            record = judge(case, backend, ignoring=ignores_msrs())
            if record.get("need", "").startswith("msr:"):  # a pass that says nothing
                continue
            verdict, shown = record["verdict"], (*lines[-1:], complaint)
            assert status == STATUS[verdict], (case.id, record, shown)
            if verdict is Verdict.PASS:
                assert lines[-1] == ("OBSERVED" if case.observes else "PASS"), case.id
                assert len(lines) == len(case.script) + 1
    return sum(status == 0 for _, (status, _, _) in ran)


def test_exported_cases_agree_with_the_kernel(has_kvm, build):
    cases = [case for case in selection() if not weighs(case)]
    assert len(cases) >= 25
    assert agree(cases, build) > len(cases) / 2


@pytest.mark.alone("what others of the memory cgroup take and give back is weighed as well")
def test_exported_weighings_agree_with_the_kernel(has_kvm, build):
    cases = [case for case in selection() if weighs(case)]
    assert cases
    agree(cases, build)


STATUS = {Verdict.PASS: 0, Verdict.FAIL: 1, Verdict.SKIP: 4}


NO_ENTRY = """
#include <errno.h>
#include <sys/ioctl.h>
#include <linux/kvm.h>
static int ioctl_here(int fd, unsigned long number, unsigned long argument)
{
	static int has_irqchip;
	if (number == KVM_RUN && has_irqchip)
		return errno = EIO, -1;
	has_irqchip |= number == KVM_CREATE_IRQCHIP;
	return ioctl(fd, number, argument);
}
#define ioctl(fd, number, argument) ioctl_here(fd, number, (unsigned long)(argument))
"""


def test_a_program_skips_where_no_guest_runs_with_an_irqchip(has_kvm, build):
    (case,) = (case for case in CASES if case.id == "x2apic.whole_window")
    status, _, said = played(build("#define _GNU_SOURCE" + NO_ENTRY + c_source(case)))
    assert status == 4
    assert said == "skipped: no vCPU with an in-kernel APIC runs, without a filter either\n"


def test_a_program_says_what_the_parameter_has_to_be_where_it_matters():
    def needed(name):
        (case,) = (case for case in CASES if case.id == name)
        return re.findall(r'need_parameter\("ignore_msrs", (\d)\);', c_source(case))

    assert needed("ignored.denied_exits_as_filter") == ["1"]
    assert needed("exits.unknown_is_unknown") == ["0"]
    assert needed("scope.denied_write_of_star") == []


DENY = enable_exits(FILTER), install(default_allow().deny(0x474F4F00)), rdmsr(0x474F4F00)
SEEN = done, done, RdmsrExit(0x474F4F00, FILTER), returned(0x1122334455667788)
WRONG = {
    "1": (rejected(22), *SEEN[1:]),
    "2": (done, rejected(14), *SEEN[2:]),
    "3: the reason": (done, done, RdmsrExit(0x474F4F00, UNKNOWN), SEEN[3]),
    "3: the value": (*SEEN[:3], returned(0x1122334455667789)),
    "3: no exit": (done, done, returned(0x1122334455667788)),
    "3: not filtered": (done, done, unfiltered),
    "3: any value after no exit": (done, done, returned(ANY)),
    "3: only the exit": SEEN[:3],
    "3: more": (*SEEN[:3], SEEN[2], SEEN[3]),
    "3: neither": (done, done, either((gp,), (returned(1),))),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_expectation_fails_at_its_step(has_kvm, build, wrong):
    case = Case("a.b", "Wrong.", "", DENY, WRONG[wrong])
    status, lines, _ = played(build(c_source(case)))
    step = int(wrong[0])
    seen, want = (step_text(steps(DENY, each)[step - 1]) for each in (SEEN, case.trace))
    assert status == 1
    assert lines[-1] == f"FAIL: step {step}: expected {want}, saw {seen}"
    assert lines[-2] == f"{step}: {seen}"


@pytest.mark.parametrize(
    "last", [(SEEN[2], returned(ANY)), (whatever,), (either((gp,), SEEN[2:]),)]
)
def test_what_is_left_open_passes(has_kvm, build, last):
    status, lines, _ = played(build(c_source(Case("a.b", "", "", DENY, (*SEEN[:2], *last)))))
    assert (status, lines[-1]) == (0, "PASS")


@pytest.mark.parametrize("ends", [returned(0), gp])
def test_an_access_that_has_ended_ends_no_other_way(has_kvm, build, ends):
    """What is run on behind its end comes there again, in C as in Python."""
    index = 0xC0000102 if ends != gp else 0x474F4F00
    script = (begin(rdmsr(index)), finish(), finish())
    status, lines, _ = played(build(c_source(Case("a.b", "", "", script, (ends,) * 3))))
    assert (status, lines[-1]) == (0, "PASS"), lines


def test_every_step_of_a_case_is_checked(has_kvm, build):
    (case,) = (case for case in CASES if case.id == "reentry.read_before_immediate_exit")
    for number, event in enumerate(case.expected):
        other = wrote if event != wrote else gp
        trace = (*case.expected[:number], other, *case.expected[number + 1 :])
        status, lines, _ = played(build(c_source(replace(case, trace=trace))))
        step = next(
            at
            for at, both in enumerate(
                zip(steps(case.actions, trace), steps(case.actions, case.expected), strict=False)
            )
            if both[0] != both[1]
        )
        assert status == 1 and lines[-1].startswith(f"FAIL: step {step + 1}: expected ")


def test_a_program_declares_no_struct_that_it_does_not_use():
    for case in selection():
        source = c_source(case)
        for name in re.findall(r"^(?:static )?struct (\w+) \{", source, re.MULTILINE):
            said = re.findall(rf"\bstruct {name}\b|^\}} {name};", source, re.MULTILINE)
            assert len(said) > 1, (case.id, name)


@pytest.mark.parametrize(
    ("case", "known"),
    [
        ("fastpath.write_denied_by_range_no_apic_cpuid_on", {"6.18..newest", "5.10..newest"}),
        ("fastpath.no_apic_and_ia32_rtit_ctl", set()),
        ("lbr.denied_by_range", {"6.17.13..newest"}),
        ("matching.first_range_wins", set()),
        ("inside.read_of_fs_base_denied_by_range", {"5.10..newest", "5.10..5.15"}),
        ("quirks.range_below_the_top", set()),
    ],
)
def test_a_program_names_the_kernels_that_break_its_case_and_no_others(case, known):
    (case,) = (each for each in CASES if each.id == case)
    assert set(re.findall(r"Known to break it: ([^ ;]*)", c_source(case))) == known


def test_no_kvm_is_trouble_and_no_verdict(build):
    source = c_source(Case("a.b", "", "", DENY, SEEN)).replace('"/dev/kvm"', '"/dev/nothing"')
    status, lines, errors = played(build(source))
    assert (status, lines) == (2, [])
    assert errors == "/dev/nothing: No such file or directory\n"


@pytest.mark.parametrize(("trace", "status"), [(WRONG["3: more"], 1), (SEEN, 2)])
def test_what_cannot_be_told_is_no_pass(has_kvm, build, trace, status):
    """A full disk, or no stdout: then the next file that is opened is number 1."""
    program = build(c_source(Case("a.b", "Told.", "", DENY, trace)))
    for command in (f"{program} > /dev/full", f"{program} >&-"):
        ran = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
        assert (ran.returncode, ran.stderr) == (status, "stdout cannot be written\n")


def test_a_script_is_shown_and_not_judged(has_kvm, build):
    status, lines, _ = played(build(c_source(DENY, "What does it do?")))
    assert status == 0
    assert lines == [
        "1: done",
        "2: done",
        "3: RdmsrExit(0x474f4f00, FILTER), returned(0x1122334455667788)",
        "OBSERVED",
    ]


# --- the text, which needs no compiler --------------------------------------------------------


def test_no_line_is_longer_than_those_of_the_kernel():
    """But for a text, which is one so that grep finds it."""
    for case in EXPORTABLE[::9]:
        for line in c_source(case).split("int main(void)")[1].splitlines():
            assert len(re.sub('"[^"]*"', '""', line.expandtabs(8))) <= 100, (case.id, line)


def test_every_case_has_a_form_in_c():
    assert [*CASES] == EXPORTABLE and all(map(c_source, EXPORTABLE))


def test_a_need_that_no_word_finds_out_is_named():
    case = replace(Case("a.b", "", "", DENY, SEEN), needs=("moonlight",))
    with pytest.raises(ValueError, match=r"^what needs moonlight has no form in C yet$"):
        c_source(case)


def test_the_selection_needs_every_piece():
    """The compiler says what a program does not need (-Werror); here, that some program has all."""
    sources = [c_source(case) for case in selection()]
    unused = [
        sorted(words.declared(piece))
        for piece in words.pieces()[2:]
        if not any(piece in source for source in sources)
    ]
    assert unused == ONLY_THE_PLAYER


ONLY_THE_PLAYER = [["unmap_low"], ["forget_snapshots"]]


def test_a_program_says_what_it_is():
    (case,) = (case for case in CASES if case.id == "reentry.read_before_signal")
    source = c_source(case)
    assert "reentry.read_before_signal: Re-entry with a pending signal" in source
    assert "/* 2: install(default_allow().deny(0x474f4f00)) */" in source
    assert "get_msr" not in source and "msrward" not in source
    assert max(map(len, source.expandtabs(8).splitlines())) <= 115
    assert "A title" in c_source(case, "A title")


@pytest.mark.parametrize(
    "step, text",
    [
        ((done,), "done"),
        ((wrote,), "wrote"),
        ((gp,), "gp"),
        ((Wrote((0, 10)),), "Wrote((0, 0xa))"),
        ((Fault(14, 2, -2, (1, 2)),), "Fault(0xe, error_code=0x2, skew=-2, registers=(0x1, 0x2))"),
        ((regs(2, 0, ANY, 1),), "regs(2, rax=0, rcx=ANY, rdx=0x1)"),
        ((returned(1, high=2),), "returned(0x1, high=0x2)"),
        ((returned(1, high=ANY),), "whatever"),
        ((got(0),), "got(0)"),
        (
            (l1_exit("hypercall", stored=(0, ANY, 7)),),
            "l1_exit(hypercall, stored=(0, ANY, 0x7))",
        ),
        ((rejected(22),), "rejected(EINVAL)"),
        ((rejected(ANY),), "rejected(ANY)"),
        ((either((RdmsrExit(1, FILTER), gp), (wrote,)),), "RdmsrExit(0x1, FILTER), gp or wrote"),
        (
            (RdmsrExit(1, INVAL | FILTER, 2, 3, 4), wrote),
            "RdmsrExit(0x1, INVAL|FILTER, data=0x2, error=0x3, pad=0x4), wrote",
        ),
        ((WrmsrExit(1, UNKNOWN, 0),), "WrmsrExit(0x1, UNKNOWN, 0)"),
    ],
)
def test_events_are_written_as_the_program_prints_them(step, text):
    assert step_text(step) == text


def test_values_of_the_host_may_be_any(has_kvm, build):
    script = (get_msr(0x10), wrmsr(0xC0000102, 5), rdmsr(0xC0000102))
    case = Case("a.b", "", "", script, (got(ANY), unfiltered, returned(5)))
    assert played(build(c_source(case)))[0] == 0


TYPE = r"(?:int|char|long|double|__u\d+|s?size_t|struct \w+)"
DECLARES = rf"\b{TYPE} \**(?:\w+(?: = [^;]*?)?, )*(\w+)(?= *[=;,)\[])"


def test_no_variable_has_the_name_of_a_function():
    """Which names a piece uses is read without scopes: such a one would drag the function in."""
    code = [words.SPOKEN.sub('""', words.COMMENT.sub("", each)).strip() for each in words.pieces()]
    functions = {name for piece in code for name in words.DECLARED[0].findall(piece)}
    assert len(functions) > 250 and "start_task" in functions
    for piece in code:
        assert not functions & set(re.findall(DECLARES, piece)), piece
    assert re.findall(DECLARES, "\t__u64 start;\n\tint times = 1, begun = now();") == [
        "start",
        "begun",
    ]
