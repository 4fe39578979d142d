"""Write a case, or a script, as one C program that needs libc and linux/kvm.h and nothing else.

The program does the script's steps in order, prints what each left in the notation of a trace, and
stops at the first that is not as the case expects: exit status 0 PASS, 1 FAIL, 2 it could not be
run. Its functions are the pieces of ``reproducer.c`` that its ``main`` needs. A step whose
expectation leaves an optional value open (``returned(1, high=ANY)``) may leave anything.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

from vmm.conformance.c.text import c_number, filter_data, step_text
from vmm.conformance.language import script as s
from vmm.conformance.language.case import Case
from vmm.conformance.oracle import spoiled
from vmm.conformance.records.verdict import Verdict
from vmm.filter import AtEdge, Pointer
from vmm.msr import KVM_CAP_X86_MSR_FILTER, KVM_CAP_X86_USER_SPACE_MSR

PIECES = Path(__file__).with_name("reproducer.c")
PIECE = re.compile(r"^/\*\*\* (\w+) \*\*\*/\n", re.MULTILINE)
COMMENT, CALL = re.compile(r"/\*.*?\*/", re.DOTALL), re.compile(r"\b(\w+)\(")
ALWAYS = ("includes", "guest")

FD = {"vm": "vm", "system": "kvm", "vcpu": "vcpus[0].fd"}
CAPS = {
    KVM_CAP_X86_USER_SPACE_MSR: "KVM_CAP_X86_USER_SPACE_MSR",
    KVM_CAP_X86_MSR_FILTER: "KVM_CAP_X86_MSR_FILTER",
}
POINTER = {
    Pointer.NULL: "NULL",
    Pointer.UNMAPPED: "unmapped()",
    Pointer.KERNEL: "(void *)0xffff800000000000",
}
NUMBERS = {s.KVM_X86_SET_MSR_FILTER: "KVM_X86_SET_MSR_FILTER"}


def c_source(what: Case | s.Script, title: str = "") -> str:
    """Return the program; ValueError with one line for a word that has no form in C.

    A case's program judges; a script's, like that of a case that observes, only shows.
    """
    if isinstance(what, Case):
        title = title or f"{what.id}: {what.sentence}"
        script, trace = what.actions, None if what.observes else what.expected
        ignoring = spoiled.ignoring_of(what)
    else:
        script, trace, ignoring = what, None, None
    main = "\n".join(_main(script, trace, ignoring))
    vcpus = f"static struct vcpu vcpus[{max(map(_highest_vcpu, script), default=0) + 1}];"
    data = "\n".join(line for step in _numbered(script) for line in filter_data(*step))
    pieces = _pieces(main)
    body = [pieces.pop(name) for name in ALWAYS] + [vcpus, *pieces.values(), data, main]
    return "\n\n".join([_head(title), *(part.strip("\n") for part in body if part.strip())]) + "\n"


def _head(title: str) -> str:
    about = [*_comment(title), " *"] if title else []
    lines = ["/*", *about, " * cc -Wall -Wextra -o repro repro.c && ./repro", " */"]
    return "\n".join(["// SPDX-License-Identifier: Apache-2.0", *lines])


def _comment(text: str) -> list[str]:
    return [f" * {line}" for line in textwrap.wrap(text.replace("*/", "* /"), 76)]


def _pieces(main: str) -> dict[str, str]:
    """Return the pieces of the template that ``main`` needs, in their order."""
    parts = PIECE.split(PIECES.read_text())
    every = dict(zip(parts[1::2], parts[2::2], strict=True))
    needed, text = {*ALWAYS}, COMMENT.sub("", main) + "".join(map(every.__getitem__, ALWAYS))
    while new := {*CALL.findall(text)} & every.keys() - needed:
        needed |= new
        text = COMMENT.sub("", "".join(map(every.__getitem__, new)))
    return {name: part for name, part in every.items() if name in needed}


# --- main -----------------------------------------------------------------------------------------


def _numbered(script: s.Script) -> list[tuple[int, s.Action]]:
    return list(enumerate(script, 1))


def _main(script: s.Script, trace: s.Trace | None, ignoring: bool | None) -> Iterator[str]:
    cut = s.steps(script, trace) if trace is not None else []
    there = set() if s.makes_vcpus(script) else {0}
    yield "int main(void)\n{"
    if any(map(_is_emulated, script)):
        yield '\tneed_parameter("force_emulation_prefix", 1);'
    if ignoring is not None:
        yield f'\tneed_parameter("ignore_msrs", {int(ignoring)});'
    yield "\topen_vm();"
    yield from (f"\tneed_vcpu({vcpu});" for vcpu in sorted(there))
    for number, action in _numbered(script):
        yield "\n" + _step_comment(f"{number}: {action!r}")
        for vcpu in sorted(_vcpus(action) - there):
            there.add(vcpu)
            if not isinstance(action, s.CreateVcpu):
                yield f"\tneed_vcpu({vcpu});"
        yield from _action(number, action, script)
        yield _check(number, cut)
    yield f'\n\tprintf("{"OBSERVED" if trace is None else Verdict.PASS}\\n");\n\treturn 0;\n}}'


def _step_comment(text: str) -> str:
    lines = textwrap.wrap(text.replace("*/", "* /"), 84, subsequent_indent="   ")
    if len(lines) > 6:
        lines[5:] = ["   ..."]
    body = "\n".join(f"\t * {line}" for line in lines)
    return f"\t/* {lines[0]} */" if len(lines) == 1 else f"\t/*\n{body}\n\t */"


def _check(number: int, cut: list[s.Step]) -> str:
    if number > len(cut):
        return f"\tobserve({number});"
    return f"\texpect({number}, {json.dumps(step_text(cut[number - 1]))});"


def _vcpus(action: Any) -> set[int]:
    if isinstance(action, s.Begin):
        action = action.access
    if getattr(action, "on", "") == "vcpu":
        return {0}
    return {action.vcpu} if hasattr(action, "vcpu") else set()


def _is_emulated(action: Any) -> bool:
    return getattr(action.access if isinstance(action, s.Begin) else action, "emulated", False)


def _highest_vcpu(action: s.Action) -> int:
    return max(_vcpus(action), default=0)


NO_FORM = (s.SetCpuid, s.Sweep, *get_args(s.RaceAction))
"""What has no form in C."""


def _action(number: int, action: Any, script: s.Script) -> Iterable[str]:
    if isinstance(action, NO_FORM) or getattr(action, "caller", "self") != "self":
        raise ValueError(f"step {number}: {action!r} has no form in C")
    return EMIT[type(action)](number, action, script)


# --- one function for each action -----------------------------------------------------------------


def _access(_: int, action: Any, __: s.Script) -> Iterable[str]:
    return [f"\tdo_access({action.vcpu}, (struct access){{", *_access_fields(action, True), "\t});"]


def _begin(_: int, action: Any, __: s.Script) -> Iterable[str]:
    fields = _access_fields(action.access, False)
    return [f"\tbegin({action.access.vcpu}, (struct access){{", *fields, "\t});"]


def _access_fields(access: Any, has_reply: bool) -> Iterator[str]:
    is_write = isinstance(access, s.Wrmsr)
    low, high = access.value if is_write else access.before, access.high
    registers = {
        "rcx": access.rcx_high << 32 | access.index,
        "rax": (high & 0xFFFFFFFF) << 32 | low & 0xFFFFFFFF,
        "rdx": high >> 32 << 32 | low >> 32,
    }
    flags = [".rflags = TF"] if access.single_step else []
    shown = [f".{name} = {c_number(content)}" for name, content in registers.items() if content]
    at = ("WRMSR" if is_write else "RDMSR") + " | PREFIXED" * access.emulated
    yield f"\t\t.rip = {', '.join([at, *shown, *flags])},"
    if has_reply:
        yield f"\t\t.reply = {_reply(access.reply)},"


def _reply(reply: s.Reply) -> str:
    odd = [f".error = {c_number(reply.error)}"] if reply.error else []
    odd += [".scribble = 1"] if reply.scribble else []
    return f"{{ {', '.join([f'.data = {c_number(reply.value)}', *odd])} }}"


def _answer(action: Any) -> list[str]:
    if action.reply is None:
        return []
    return [f"\tanswer({action.vcpu}, (struct reply){_reply(action.reply)});"]


def _complete(_: int, action: s.Complete, __: s.Script) -> Iterable[str]:
    return [*_answer(action), f"\tcomplete_by_{action.by}({action.vcpu});"]


def _finish(_: int, action: s.Finish, __: s.Script) -> Iterable[str]:
    return [*_answer(action), f"\tfinish({action.vcpu});"]


def _set_regs(_: int, action: s.SetRegs, __: s.Script) -> Iterable[str]:
    yield f"\t{{\n\t\tstruct kvm_regs regs = get_kvm_regs(&vcpus[{action.vcpu}]);\n"
    for name in ("rax", "rdx"):
        if getattr(action, name) is not None:
            yield f"\t\tregs.{name} = {c_number(getattr(action, name))};"
    yield f"\t\tregs.rip += {action.rip};"
    yield f"\t\t{'sync' if action.via == 'sync' else 'set'}_regs({action.vcpu}, regs);\n\t}}"


def _enable_cap(_: int, action: s.EnableCap, __: s.Script) -> Iterable[str]:
    flags = f", .flags = {c_number(action.flags)}" if action.flags else ""
    args = ", ".join(map(c_number, action.args or (0,)))
    yield f"\tenable_cap({FD[action.on]}, (struct kvm_enable_cap){{"
    yield f"\t\t.cap = {CAPS.get(action.cap, action.cap)}{flags}, .args = {{ {args} }},"
    yield "\t});"


def _install(number: int, action: s.Install, _: s.Script) -> Iterable[str]:
    argp = f"&filter_{number}" if action.argp is None else POINTER[action.argp]
    for slot, each in enumerate(action.filter.ranges if action.argp is None else ()):
        if isinstance(each.bitmap, AtEdge):
            bits = f"bitmap_{number}_{slot}, {len(each.bitmap.bits)}"
            yield f"\tfilter_{number}.ranges[{slot}].bitmap = at_edge({bits});"
        elif isinstance(each.bitmap, Pointer) and each.bitmap is not Pointer.NULL:
            yield f"\tfilter_{number}.ranges[{slot}].bitmap = {POINTER[each.bitmap]};"
    name = NUMBERS.get(action.number, c_number(action.number))
    yield f"\tset_filter({FD[action.on]}, {name}, {argp});"


def _scribble(number: int, _: Any, script: s.Script) -> Iterable[str]:
    last = max(at for at, each in _numbered(script[:number]) if isinstance(each, s.Install))
    install = script[last - 1]
    assert isinstance(install, s.Install)
    for slot, each in enumerate(install.filter.ranges if install.argp is None else ()):
        if isinstance(each.bitmap, bytes):
            yield f"\tscribble(bitmap_{last}_{slot}, sizeof(bitmap_{last}_{slot}));"
    yield '\tsaw("done");'


EMIT: dict[type, Callable[[int, Any, s.Script], Iterable[str]]] = {
    s.Rdmsr: _access,
    s.Wrmsr: _access,
    s.Begin: _begin,
    s.Complete: _complete,
    s.Finish: _finish,
    s.SetRegs: _set_regs,
    s.EnableCap: _enable_cap,
    s.Install: _install,
    s.ScribbleBitmaps: _scribble,
    s.GetRegs: lambda _, each, __: [f"\tget_regs({each.vcpu});"],
    s.GetMsr: lambda _, each, __: [f"\tget_msr({each.vcpu}, {c_number(each.index)});"],
    s.SetMsr: lambda _, each, __: [
        f"\tset_msr({each.vcpu}, {c_number(each.index)}, {c_number(each.value)});"
    ],
    s.CheckExtension: lambda _, each, __: [
        f"\tcheck_extension({FD[each.on]}, {CAPS.get(each.cap, each.cap)});"
    ],
    s.CreateIrqchip: lambda _, __, ___: ["\tcreate_irqchip();"],
    s.CreateVcpu: lambda _, each, __: [f"\tcreate_vcpu({each.vcpu});"],
}
