"""An install returns after the last reader of the old filter, and not before: R74.

The reader is a vCPU that waits, inside the kernel's SRCU read side, for a page of guest memory. The
new filter is published by then: it holds for every other vCPU while the install still waits.
"""

from __future__ import annotations

from errno import EINVAL

from vmm.conformance.cases.words import (
    NEW,
    OLD,
    STORAGE,
    TELL,
    TELL_FILTER,
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
from vmm.conformance.language.case import OBSERVE, Case
from vmm.conformance.language.script import (
    await_install,
    await_meanwhile,
    begin_install,
    blocked,
    create_vcpu,
    done,
    enable_exits,
    get_msr,
    got,
    meanwhile,
    park,
    parked,
    rdmsr,
    rejected,
    release,
    released,
    resume_install,
    returned,
    set_msr,
    wrmsr,
    wrote,
)
from vmm.filter import MsrFilter, default_allow, default_deny
from vmm.msr import FILTER, UNKNOWN, Msr


def parks(vcpu: int) -> Row:
    """Return the row that stops a vCPU in the kernel's read side."""
    return (park(vcpu), parked)


def releases(vcpu: int) -> Row:
    """Return the row that lets a parked vCPU go on."""
    return (release(vcpu), released)


_STARTED = (TELL, done_install(OLD), *as_old(1), *as_old())
_BLOCKS, _ENDS = (begin_install(NEW), blocked), (await_install(), done)

_IN_FORCE: dict[str, tuple[Row, ...]] = {
    "a_filter": (done_install(OLD), *as_old()),
    "no_filter": (allowed(A),),
    "an_empty_filter": (done_install(default_allow()), allowed(A)),
}

CASES = (
    Case(
        "parked.install_waits",
        "An install does not return while a vCPU may still read the old filter, though every other "
        "vCPU obeys the new one.",
        "R74 R71",
        *play(*_STARTED, parks(1), _BLOCKS, *as_new(), releases(1), _ENDS, *as_new(1), *as_new()),
    ),
    *(
        Case(
            f"parked.the_only_vcpu_under_{name}",
            "An install waits for the only vCPU of a VM as for any other, whatever was in force: "
            f"{name.replace('_', ' ')}.",
            "R74",
            *play(TELL, *before, parks(0), _BLOCKS, releases(0), _ENDS, *as_new()),
        )
        for name, before in _IN_FORCE.items()
    ),
    Case(
        "parked.clear_waits",
        "Clearing the filter waits for the readers of the old one too.",
        "R74 R12",
        *play(
            *_STARTED,
            parks(1),
            (begin_install(default_allow()), blocked),
            allowed(A),
            releases(1),
            _ENDS,
            allowed(A, 1),
            allowed(A),
        ),
    ),
    Case(
        "parked.stalled_install_waits",
        "An install that waited for its bitmap waits for readers next, and is in force meanwhile.",
        "R74 R70 R73",
        *play(
            *_STARTED,
            stalls(NEW, 1),
            parks(1),
            *as_old(),
            (resume_install(), blocked),
            *as_new(),
            releases(1),
            _ENDS,
            *as_new(1),
        ),
    ),
    Case(
        "parked.two_readers",
        "An install returns after the second of two readers, not after the first.",
        "R74 R71",
        *play(
            *_STARTED,
            *as_old(2),
            parks(1),
            parks(2),
            _BLOCKS,
            releases(1),
            (await_install(), blocked),
            *as_new(1),
            *as_new(),
            releases(2),
            _ENDS,
            *as_new(2),
        ),
    ),
    Case(
        "parked.compat_install_waits",
        "A 32-bit caller's install waits for readers like any other.",
        "R74 R05",
        *play(
            *_STARTED,
            parks(1),
            (begin_install(NEW, caller="compat"), blocked),
            *as_new(),
            releases(1),
            _ENDS,
            *as_new(1),
        ),
    ),
    Case(
        "parked.refused_installs_do_not_wait",
        "An install that fails returns at once, whoever reads: it has published nothing.",
        "R14 R74",
        *play(
            *_STARTED,
            parks(1),
            (begin_install(MsrFilter(2).deny(B)), rejected(EINVAL)),
            (begin_install(NEW.range(C, 1, b"\0", 0)), rejected(EINVAL)),
            stalls(NEW, 0),
            loses_its_bitmap(),
            stalls(NEW.range(C, 1, b"\0", 4), 1),
            fails_to_resume(EINVAL),
            *as_old(),
            releases(1),
            *as_old(1),
        ),
    ),
    Case(
        "parked.copying_does_not_wait_for_readers",
        "An install begun while another waits for readers gets as far as its bitmaps.",
        "R73 R74 R77",
        *play(
            *_STARTED,
            parks(1),
            (begin_install(default_allow().deny(C), name="a"), blocked),
            allowed(A),
            denied(C),
            stalls(NEW, 0, "b"),
            denied(C),
            releases(1),
            (await_install("a"), done),
            denied(C, 1),
            resumes("b"),
            *as_new(1),
            *as_new(),
        ),
    ),
    Case(
        "parked.mask_and_msrs_do_not_wait",
        "A mask and the host's MSR accesses take effect while an install waits for readers.",
        "R44 R34 R74",
        *play(
            *_STARTED,
            parks(1),
            _BLOCKS,
            (meanwhile(enable_exits(FILTER)), done),
            denied(B),
            (set_msr(Msr.STAR, STORAGE[Msr.STAR][0]), done),
            (get_msr(Msr.STAR), got(STORAGE[Msr.STAR][0])),
            releases(1),
            _ENDS,
            denied(B, 1),
            denied(C, 1),
        ),
    ),
    Case(
        "parked.allowed_before_hardware_knows",
        "An access that hardware still stops and the new filter already allows reaches the MSR.",
        # B10: on SVM before dad1613e0533 reading FS_BASE or GS_BASE in software failed.
        "R70 R27 R74",
        *play(
            TELL_FILTER,
            *((wrmsr(msr, one), wrote) for msr, (one, _) in STORAGE.items()),
            done_install(default_deny().allow(A)),
            *(denied(msr) for msr in STORAGE),
            parks(1),
            (begin_install(default_allow().deny(A)), blocked),
            *((rdmsr(msr), returned(one)) for msr, (one, _) in STORAGE.items()),
            *((wrmsr(msr, two), wrote) for msr, (_, two) in STORAGE.items()),
            *((rdmsr(msr), returned(two)) for msr, (_, two) in STORAGE.items()),
            releases(1),
            _ENDS,
            *((rdmsr(msr), returned(two)) for msr, (_, two) in STORAGE.items()),
            denied(A),
            denied(A, 1),
        ),
    ),
    Case(
        "parked.without_an_install",
        "A vCPU that waits for guest memory goes on as it was, and accesses of others do not wait.",
        "R70 R71",
        *play(
            *_STARTED,
            parks(1),
            *as_old(),
            parks(2),
            *as_old(),
            releases(2),
            releases(1),
            *as_old(1),
            *as_old(2),
        ),
    ),
    Case(
        "parked.two_installs_wait",
        "Two installs that wait for the same reader both succeed: what both deny is denied then.",
        "R77 R74",
        *play(
            *_STARTED,
            parks(1),
            (begin_install(default_allow().deny(A, C), name="a"), blocked),
            (begin_install(default_allow().deny(B, C), name="b"), blocked),
            releases(1),
            *((await_install("a"), done), (await_install("b"), done)),
            *(denied(C), denied(C, 1), done_install(NEW), *as_new(1), *as_new()),
        ),
    ),
    Case(
        "parked.create_vcpu_waits_or_not",
        "KVM_CREATE_VCPU returns while an install waits for readers, or waits with it (before "
        "v6.3).",
        "R74",
        [
            enable_exits(FILTER | UNKNOWN),
            park(1),
            begin_install(NEW),
            meanwhile(create_vcpu(2)),
            release(1),
            await_install(),
            await_meanwhile(),
        ],
        OBSERVE,
    ),
    Case(
        "parked.second_install_in_force_or_not",
        "Of two installs that wait for readers the second is in force, or still the first (before "
        "v6.3).",
        "R74",
        [
            enable_exits(FILTER | UNKNOWN),
            park(1),
            begin_install(default_allow().deny(A), name="a"),
            begin_install(default_allow().deny(B), name="b"),
            rdmsr(A),
            rdmsr(B),
            release(1),
            await_install("a"),
            await_install("b"),
        ],
        OBSERVE,
    ),
)
