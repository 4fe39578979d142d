"""Installs that overtake one that waits for a bitmap: neither waits for the other: R73, R77."""

from __future__ import annotations

from errno import EFAULT, EINVAL, ENOTTY

from vmm.conformance.cases.words import (
    NEW,
    OLD,
    TELL,
    A,
    B,
    C,
    Row,
    allowed,
    as_new,
    as_old,
    denied,
    done_install,
    fails_to_resume,
    loses_its_bitmap,
    play,
    resumes,
    stalls,
)
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import (
    KVM_X86_SET_MSR_FILTER_COMPAT,
    Event,
    Install,
    done,
    install,
    install_compat,
    meanwhile,
    rejected,
)
from vmm.filter import MsrFilter, Pointer, default_allow, default_deny

# What overtakes the stalled install, how it ends, and what is seen until the install ends.
_OVERTAKING: dict[str, tuple[Install, Event, tuple[Row, ...]]] = {
    "another_filter": (
        install(default_allow().deny(C)),
        done,
        (allowed(A), allowed(B), denied(C)),
    ),
    "a_default_deny": (
        install(default_deny().allow(B)),
        done,
        (denied(A), allowed(B), denied(C)),
    ),
    "the_same_filter": (install(NEW), done, as_new()),
    "the_old_filter": (install(OLD), done, as_old()),
    "a_clear_all": (install(default_allow()), done, (allowed(A), allowed(B), allowed(C))),
    "an_empty_deny": (install(default_deny()), rejected(EINVAL), as_old()),
    "a_bad_flag": (install(MsrFilter(2).deny(B)), rejected(EINVAL), as_old()),
    "a_bad_range": (
        install(default_deny().deny(B).range(C, 1, b"\0", 0)),
        rejected(EINVAL),
        as_old(),
    ),
    "a_bad_bitmap": (
        install(default_deny().deny(B).range(C, 1, Pointer.UNMAPPED)),
        rejected(EFAULT),
        as_old(),
    ),
    "a_bad_argument": (install(NEW, argp=Pointer.NULL), rejected(EFAULT), as_old()),
    "a_bad_number": (
        install(NEW, number=KVM_X86_SET_MSR_FILTER_COMPAT),
        rejected(ENOTTY),
        as_old(),
    ),
    "a_compat_install": (
        install_compat(default_deny().allow(C)),
        done,
        (denied(A), denied(B), allowed(C)),
    ),
}


CASES = (
    *(
        Case(
            f"overtaken.by_{name}",
            f"An install that waits does not hold up {name.replace('_', ' ')}, and replaces "
            "whatever is in force when it ends.",
            "R73 R77 R70",
            *play(
                TELL,
                done_install(OLD),
                stalls(NEW, 1),
                *as_old(),
                (meanwhile(action), event),
                *meantime,
                resumes(),
                *as_new(),
            ),
        )
        for name, (action, event, meantime) in _OVERTAKING.items()
    ),
    Case(
        "overtaken.many_times",
        "Six installs come and go while one waits: each is in force in its turn, the last is the "
        "one that waited.",
        "R73 R77 R16",
        *play(
            TELL,
            stalls(NEW, 1),
            *(
                row
                for number in range(3)
                for row in (
                    (meanwhile(install(default_allow().deny(C + number))), done),
                    denied(C + number),
                    allowed(A),
                    (meanwhile(install(default_deny().allow(C + number))), done),
                    allowed(C + number),
                    denied(A),
                )
            ),
            resumes(),
            *as_new(),
        ),
    ),
    *(
        Case(
            f"overtaken.by_{name}_and_lost",
            f"An install that fails after {name.replace('_', ' ')} overtook it leaves that in "
            "force.",
            "R73 R77 R14",
            *play(
                TELL,
                done_install(OLD),
                stalls(new, 1),
                (meanwhile(action), event),
                *meantime,
                end,
                *meantime,
            ),
        )
        for name, new, end in (
            ("another_filter", NEW, loses_its_bitmap()),
            ("a_default_deny", NEW.range(C, 1, b"\0", 0), fails_to_resume(EINVAL)),
            ("a_clear_all", NEW.range(C, 1, Pointer.NULL), fails_to_resume(EFAULT)),
        )
        for action, event, meantime in (_OVERTAKING[name],)
    ),
)
