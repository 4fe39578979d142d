"""Installs that run at the same time take effect one after another, each whole: R77.

Each installer's filter has 16 ranges and a default action of its own, and waits in a slot of its
own. Before b318e8decf6b two of them emptied, filled and freed the same ranges (B03 e).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from errno import EFAULT, EINVAL
from itertools import permutations

from vmm.conformance.cases.words import (
    TELL,
    A,
    B,
    C,
    Row,
    allowed,
    denied,
    done_install,
    fails_to_resume,
    loses_its_bitmap,
    play,
    resumes,
    stalls,
    write_allowed,
    write_denied,
)
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import begin_install, done, rejected
from vmm.filter import MsrFilter, Pointer, default_allow, default_deny

OF = {"a": 0x474F6000, "b": 0x474F6040, "c": 0x474F6080}
"""The first of the 16 MSRs that each installer's ranges are about."""

WHOLE = {
    "a": default_allow().deny(*range(OF["a"], OF["a"] + 16)),
    "b": default_deny().allow(*range(OF["b"], OF["b"] + 16)),
    "c": default_allow().deny(*range(OF["c"], OF["c"] + 16)),
}
STALL_AT = {"a": 0, "b": 15, "c": 7}
DENIES_ALL_BUT = {"b"}


def in_force(name: str, vcpu: int = 0) -> Iterable[Row]:
    """Return accesses that tell that the filter of ``name`` is in force, and all of it.

    ``name`` "" is the filter from before all installers: it denies A alone.
    """
    for other, first in OF.items():
        allows = (other == name) == (name in DENIES_ALL_BUT)
        for index in (first, first + 7, first + 15):
            yield allowed(index, vcpu) if allows else denied(index, vcpu)
        yield (write_allowed if allows else write_denied)(first + 8, vcpu=vcpu)
    yield allowed(A, vcpu) if name and name not in DENIES_ALL_BUT else denied(A, vcpu)


_FIRST = (TELL, done_install(default_allow().deny(A)), *in_force(""))


def _begun(names: Sequence[str], compat: str = "") -> tuple[Row, ...]:
    return tuple(
        stalls(WHOLE[name], STALL_AT[name], name, "compat" if name in compat else "self")
        for name in names
    )


def _in_order(names: Sequence[str], order: Sequence[str], compat: str = "") -> tuple[Row, ...]:
    """Return installs begun as ``names`` and resumed in ``order``, each seen in force."""
    ends = [row for name in order for row in (resumes(name), *in_force(name))]
    return (*_FIRST, *_begun(names, compat), *in_force(""), *ends)


def _with_a_loss(order: Sequence[str], lost: str) -> tuple[Row, ...]:
    """Return the same with one install that fails, after which the one before is in force."""
    rows, before = [*_FIRST, *_begun(sorted(order)), *in_force("")], ""
    for name in order:
        before = before if name == lost else name
        rows += [loses_its_bitmap(name) if name == lost else resumes(name), *in_force(before)]
    return tuple(rows)


CASES = (
    *(
        Case(
            f"installers.{''.join(order)}{f'_compat_{compat}' if compat else ''}",
            f"Installers {' and '.join(names)} resumed in the order {', '.join(order)}"
            f"{f' ({compat} being 32-bit)' if compat else ''} take effect in it, each whole.",
            "R77 R16 R05" if compat else "R77 R16",
            *play(*_in_order(names, order, compat)),
        )
        for names in ("ab", "abc")
        for order in permutations(names)
        for compat in (("", "a", "b", "ab") if names == "ab" else ("", "b"))
    ),
    *(
        Case(
            f"installers.{''.join(order)}_without_{lost}",
            f"Of installers resumed in the order {', '.join(order)} the one that fails, {lost}, "
            "changes nothing.",
            "R77 R14",
            *play(*_with_a_loss(order, lost)),
        )
        for order in (*permutations("ab"), *permutations("abc"))
        for lost in (order[0], order[-1])
    ),
    *(
        Case(
            f"installers.one_range_{first}{second}",
            f"Of two installs of one range each the second resumed, {second}, takes nothing of the "
            f"first, {first}, along.",
            "R77 R16",
            *play(
                TELL,
                done_install(default_allow().deny(A)),
                stalls(default_allow().deny(B), 0, "a"),
                stalls(default_allow().deny(C), 0, "b"),
                denied(A),
                resumes(first),
                *(each(msr) for msr, each in zip((A, B, C), seen_first, strict=True)),
                resumes(second),
                *(each(msr) for msr, each in zip((A, B, C), seen_last, strict=True)),
            ),
        )
        for first, second, seen_first, seen_last in (
            ("a", "b", (allowed, denied, allowed), (allowed, allowed, denied)),
            ("b", "a", (allowed, allowed, denied), (allowed, denied, allowed)),
        )
    ),
    Case(
        "installers.all_fail",
        "Three installers that fail one after another leave the filter from before them whole.",
        "R77 R14",
        *play(
            *_FIRST,
            stalls(WHOLE["a"], 0, "a"),
            stalls(default_deny().allow(A).range(A, 1, b"\0", 0), 0, "b"),
            stalls(MsrFilter(0, WHOLE["c"].ranges[:15]).range(A, 0x3001, b"\0" * 0x608), 7, "c"),
            loses_its_bitmap("a"),
            *in_force(""),
            fails_to_resume(EINVAL, "c"),
            *in_force(""),
            fails_to_resume(EINVAL, "b"),
            *in_force(""),
        ),
    ),
    *(
        Case(
            f"installers.all_stalled_in_slot_{slot}",
            f"Two installers that wait for the bitmaps of their slots {slot} hold up neither each "
            "other nor a third.",
            "R77 R73",
            *play(
                *_FIRST,
                stalls(WHOLE["a"], slot, "a"),
                stalls(WHOLE["b"], slot, "b"),
                (begin_install(WHOLE["c"], name="c"), done),
                *in_force("c"),
                resumes("b"),
                *in_force("b"),
                resumes("a"),
                *in_force("a"),
            ),
        )
        for slot in (0, 15)
    ),
    *(
        Case(
            f"installers.refused_at_once_{name}",
            f"An installer's thread gets {name} while another waits, which then succeeds.",
            "R77 R14 R73",
            *play(
                *_FIRST,
                stalls(WHOLE["b"], 15, "b"),
                (begin_install(bad, name="a"), rejected(errno)),
                (begin_install(bad, stall_at=1, name="c"), rejected(errno)),
                *in_force(""),
                resumes("b"),
                *in_force("b"),
            ),
        )
        for name, errno, bad in (
            ("einval", EINVAL, default_deny().range(A, 1, b"\0", 0).allow(A)),
            ("efault", EFAULT, default_deny().range(A, 1, Pointer.NULL).allow(A)),
        )
    ),
    Case(
        "installers.seen_by_two_vcpus",
        "Two vCPUs agree after each of three installs on whose filter is in force.",
        "R77 R71",
        *play(
            *_FIRST,
            *_begun("abc"),
            *in_force("", 1),
            *(
                row
                for name in "bca"
                for row in (resumes(name), *in_force(name, 1), *in_force(name, 0))
            ),
        ),
    ),
)
