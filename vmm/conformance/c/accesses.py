"""Accesses, and what a guest does besides, as the calls of the words in C that do it."""

from __future__ import annotations

from collections.abc import Iterable

from vmm.conformance.c.layout import registers
from vmm.conformance.c.text import c_number
from vmm.conformance.language import script as s


def access(action: s.Access, _: object) -> Iterable[str]:
    """Return the call of a whole access."""
    return [_access_call("do_access", action, action.reply)]


def begin(action: s.Begin, _: object) -> Iterable[str]:
    """Return the call of an access up to its exit."""
    return [_access_call("begin", action.access, None)]


def spin(action: s.Spin, _: object) -> Iterable[str]:
    """Return the call that has a vCPU spin."""
    return [f"\tspin({action.access.vcpu}, {_struct(action.access, s.Reply())});"]


def _access_call(word: str, access: s.Access, reply: s.Reply | None) -> str:
    what = _struct(access, reply)
    if access.after != "nothing":
        what = f"behind({access.after.upper()}, {what})"
    if access.form != "register":
        what = f"by_{access.form}({what})"
    if access.mode == "long" and access.after == "nothing":
        return f"\t{word}({access.vcpu}, {what});"
    if access.mode == "smm":
        return f"\t{word}_in_smm({access.vcpu}, {what});"
    return f"\t{word}_in(&{access.mode}_mode, {access.vcpu}, {what});"


def _struct(access: s.Access, reply: s.Reply | None) -> str:
    at = _at(access)
    lines = [at] if len(", ".join(at)) < 80 else [at[:2], at[2:]]
    fields = [f"\t\t{', '.join(each)}," for each in lines]
    if reply is not None:
        fields.append(f"\t\t.reply = {_reply(reply)},")
    return "\n".join(["(struct access){", *fields, "\t}"])


def _at(access: s.Access) -> list[str]:
    is_write = isinstance(access, s.Wrmsr)
    flags = [".rflags = TF"] if access.single_step else []
    named = zip(("rcx", "rax", "rdx"), registers(access), strict=True)
    shown = [f".{name} = {c_number(content)}" for name, content in named if content]
    where = ("WRMSR" if is_write else "RDMSR") + " | PREFIXED" * access.emulated
    return [f".rip = {where}", *shown, *flags]


def _reply(reply: s.Reply) -> str:
    odd = [f".error = {c_number(reply.error)}"] if reply.error else []
    odd += [".scribble = 1"] if reply.scribble else []
    return f"{{ {', '.join([f'.data = {c_number(reply.value)}', *odd])} }}"


def _answer(action: s.Complete | s.Finish) -> list[str]:
    if action.reply is None:
        return []
    return [f"\tanswer({action.vcpu}, (struct reply){_reply(action.reply)});"]


def complete(action: s.Complete, _: object) -> Iterable[str]:
    """Return the calls that answer an exit and complete it."""
    return [*_answer(action), f"\tcomplete_by_{action.by}({action.vcpu});"]


def finish(action: s.Finish, _: object) -> Iterable[str]:
    """Return the calls that answer an exit and go on to the end."""
    return [*_answer(action), f"\tfinish({action.vcpu});"]


def set_regs(action: s.SetRegs, _: object) -> Iterable[str]:
    """Yield what changes registers."""
    yield f"\t{{\n\t\tstruct kvm_regs regs = read_regs({action.vcpu});\n"
    for name in ("rax", "rdx", "rcx"):
        if getattr(action, name) is not None:
            yield f"\t\tregs.{name} = {c_number(getattr(action, name))};"
    yield f"\t\tregs.rip += {action.rip};"
    yield f"\t\t{'sync' if action.via == 'sync' else 'set'}_regs({action.vcpu}, regs);\n\t}}"


def sweep(action: s.Sweep, _: object) -> Iterable[str]:
    """Yield the call of a sweep."""
    value = f", .value = {c_number(action.value)}" if action.value else ""
    yield f"\tsweep({action.vcpu}, (struct sweep){{"
    yield f"\t\t.rip = SWEEP_{action.access.upper()}, .first = {c_number(action.first)},"
    yield f"\t\t.count = {c_number(action.count)}, .stride = {c_number(action.stride)}{value},"
    yield f"\t\t.reply = {c_number(s.REPLY)},\n\t}});"


def execute(action: s.Execute, _: object) -> Iterable[str]:
    """Yield the call of an instruction."""
    value = c_number(action.value)
    if action.instruction == "rsm":
        yield f"\texecute_rsm({action.vcpu}, {value});"
        return
    word = "execute_emulated" if action.emulated else "execute"
    yield f"\t{word}({action.vcpu}, &{action.instruction}_effect, {value});"


def rewrite(action: s.Rewrite, _: object) -> Iterable[str]:
    """Yield the call that writes a state back."""
    name = action.what.upper()
    yield f"\trewrite({action.vcpu}, KVM_GET_{name}, KVM_SET_{name});"
