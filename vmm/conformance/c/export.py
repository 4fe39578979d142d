"""Write a case, or a script, as one C program that needs libc and linux/kvm.h and nothing else.

The program does the script's steps in order, prints what each left in the notation of a trace, and
stops at the first that is not as the case expects. Exit statuses are kselftest's: 0 PASS, 1 FAIL, 4
skipped for want of something that the host has not; 2 says that it could not be run. Its functions
are those of the words that its ``main`` needs. A step whose expectation leaves an optional value
open (``returned(1, high=ANY)``) may leave anything.
"""

from __future__ import annotations

import json
import shlex
import textwrap
from collections.abc import Iterator
from typing import Any

from vmm.conformance.c import words
from vmm.conformance.c.steps import At, calls, installs, thread_work
from vmm.conformance.c.text import filter_data, runs_data, step_comment, step_text
from vmm.conformance.contract.requirements import HISTORY, REQUIREMENTS
from vmm.conformance.language import script as s
from vmm.conformance.language.case import Case
from vmm.conformance.language.needs import needs_of
from vmm.conformance.oracle import spoiled
from vmm.conformance.records.unseen import could_show
from vmm.conformance.records.verdict import Verdict

HAS = {"single_step", "upper_rcx", "emulated_shadow", spoiled.NEED}
"""Needs that a program does not ask for: every host has them, or ``need_parameter`` does it."""
NOT_YET = (s.blocked, s.never)


def c_source(what: Case | s.Script, title: str = "", file: str = "repro.c") -> str:
    """Return the program; ValueError with one line for a need that no word in C can find out.

    A case's program judges; a script's, like that of a case that observes, only shows. Its head
    says how ``file`` is built and run.
    """
    if isinstance(what, Case):
        title = title or f"{what.id}: {what.sentence}"
        script, trace = what.actions, None if what.observes else what.expected
        ignoring, needs = spoiled.ignoring_of(what), what.all_needs
        about = _about(what)
    else:
        script, trace, ignoring, needs, about = what, None, None, needs_of(what), []
    main = "\n".join(_main(script, trace, [*_needs(needs, ignoring)]))
    cut = s.steps(script, trace) if trace is not None else []
    data = "\n".join(line for each in _numbered(script) for line in _data(*each, script, cut))
    body = [words.includes(), *words.needed(data + main), data, main]
    head = _head(title, about, file, threads="pthread_create(" in "\n".join(body))
    return "\n\n".join([head, *(part.strip("\n") for part in body if part.strip())]) + "\n"


def _head(title: str, about: list[str], file: str, *, threads: bool) -> str:
    built, source = (shlex.quote(name) for name in (file.removesuffix(".c"), file))
    command = f" * cc -Wall -Wextra{' -pthread' * threads} -o {built} {source} && ./{built}"
    text = [line for each in (title, *about) if each for line in (*_comment(each), " *")]
    statuses = " * Ends with 0 PASS, 1 FAIL, 2 could not be run, 4 skipped."
    lines = ["/*", *text, statuses, command, " */"]
    return "\n".join(["// SPDX-License-Identifier: Apache-2.0", *lines])


def _comment(text: str) -> list[str]:
    return [f" * {line}".rstrip() for line in textwrap.wrap(text.replace("*/", "* /"), 76)]


def _about(case: Case) -> list[str]:
    """Return the contract that the case is about, and which kernels are known to break it."""
    known = [REQUIREMENTS[name] for name in case.requirements if name in REQUIREMENTS]
    said = [f"{each.id}: {each.sentence}." for each in known]
    fixes = [HISTORY[entry] for entry in could_show(case)] if not case.observes else []
    said += [
        f"Known to break it: {fix.affected} ({fix.title})"
        + (" (open)." if fix.is_open else f", fixed by {fix.commit[:12]} in v{fix.fixed_in}.")
        for fix in fixes
    ]
    return said


# --- main -----------------------------------------------------------------------------------------


def _numbered(script: s.Script) -> list[tuple[int, s.Action]]:
    return list(enumerate(script, 1))


def _data(number: int, action: s.Action, script: s.Script, cut: list[s.Step]) -> Iterator[str]:
    if _is_swept(action, number, cut):
        yield from runs_data(number, cut[number - 1][0])
    if (install := installs(action)) is not None:
        yield from filter_data(number, install)
    if work := thread_work(action, At(number, script)):
        yield from (*work, "")


def _needs(needs: tuple[str, ...], ignoring: bool | None) -> Iterator[str]:
    if ignoring is not None:
        yield f'\tneed_parameter("ignore_msrs", {int(ignoring)});'
    for each in needs:
        if each in HAS or (each == "no_ignore_msrs" and ignoring is not None):
            continue
        if f"lacks_{each}" not in {name for p in words.pieces() for name in words.declared(p)}:
            raise ValueError(f"what needs {each} has no form in C yet")
        yield f"\tneed(lacks_{each}());"


def _main(script: s.Script, trace: s.Trace | None, needs: list[str]) -> Iterator[str]:
    cut = s.steps(script, trace) if trace is not None else []
    there = _first_vcpus(script)
    yield "int main(void)\n{"
    yield "\topen_kvm();"
    yield from needs
    yield "\topen_vm();"
    yield from (f"\tneed_vcpu({vcpu});" for vcpu in sorted(there))
    for number, action in _numbered(script):
        yield "\n" + step_comment(f"{number}: {action!r}")
        for vcpu in sorted(_vcpus(action) - there):
            there.add(vcpu)
            if not isinstance(s.innermost(action), s.CreateVcpu):
                yield f"\tneed_vcpu({vcpu});"
        yield from _patience(number, action, cut)
        yield from calls(action, At(number, script))
        yield _check(number, action, cut)
        if isinstance(action, s.FreshVm):
            there = _first_vcpus(script)
            yield from (f"\tneed_vcpu({vcpu});" for vcpu in there)
    yield ""
    if any(isinstance(each, s.Spin) for each in script):
        yield "\tstop_spinners();"
    if any(isinstance(each, s.Sleep) for each in script):
        yield "\twake_sleepers();"
    if any(isinstance(each, STARTS) for each in script):
        yield "\tend_race();"
    yield f'\tprintf("{"OBSERVED" if trace is None else Verdict.PASS}\\n");'
    yield "\treturn told(PASS);\n}"


def _first_vcpus(script: s.Script) -> set[int]:
    """Return the vCPUs that a VM has from its beginning."""
    return set() if s.makes_vcpus(script) else {0}


STARTS = (s.BeginInstall, s.Meanwhile, s.Park, s.Spin, s.Sleep)
WAITS = (
    *(s.BeginInstall, s.ResumeInstall, s.AwaitInstall, s.Meanwhile, s.AwaitMeanwhile),
    *(s.UntilExits, s.UntilRuns, s.Sleep, s.AwaitSipi),
)
"""What may end with ``blocked`` or ``never``."""


def _patience(number: int, action: s.Action, cut: list[s.Step]) -> Iterator[str]:
    if isinstance(action, WAITS) and number <= len(cut):
        yield f"\tpatient = {int(cut[number - 1][-1] not in NOT_YET)};"


def _check(number: int, action: s.Action, cut: list[s.Step]) -> str:
    if number > len(cut):
        return f"\tobserve({number});"
    if _is_swept(action, number, cut):
        return f"\texpect_swept({number}, runs_{number});"
    return f"\texpect({number}, {json.dumps(step_text(cut[number - 1]))});"


def _is_swept(action: s.Action, number: int, cut: list[s.Step]) -> bool:
    """Say whether a sweep has to come to its end: in L2, L1 may get it before."""
    return isinstance(action, s.Sweep) and any(
        isinstance(each, s.Swept) for step in cut[number - 1 : number] for each in step
    )


def _vcpus(action: Any) -> set[int]:
    action = s.innermost(action)
    if isinstance(action, s.Spin):
        action = action.access
    if getattr(action, "on", "") == "vcpu":
        return {0}
    return {action.vcpu} if hasattr(action, "vcpu") else set()
