"""Descriptors are closed in every order, and what is left goes on as filtered as before: R76, R71.

A vCPU keeps its VM, and an ioctl in flight keeps the descriptor it came by.
"""

from __future__ import annotations

from errno import EBADF

from vmm.conformance.cases.parked import parks, releases
from vmm.conformance.cases.running import exits, spins, stops
from vmm.conformance.cases.words import (
    DATA,
    NEW,
    OLD,
    STORAGE,
    TELL,
    TELL_FILTER,
    A,
    B,
    allowed,
    as_new,
    as_old,
    bad_install,
    done_install,
    loses_its_bitmap,
    play,
    resumes,
    stalls,
)
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import (
    await_install,
    begin,
    begin_install,
    blocked,
    close_vcpu,
    close_vm,
    create_vcpu,
    done,
    enable_exits,
    finish,
    meanwhile,
    rdmsr,
    rejected,
    returned,
    value,
    wrmsr,
    wrote,
)
from vmm.exits import RdmsrExit
from vmm.filter import default_deny
from vmm.msr import FILTER

_CLOSED = (close_vm(), done)

CASES = (
    Case(
        "teardown.vm_first",
        "A vCPU outlives its VM's descriptor and obeys the filter; the VM's ioctls are gone.",
        "R76 R71",
        *play(
            TELL,
            done_install(OLD),
            *as_old(),
            _CLOSED,
            *as_old(),
            bad_install(NEW, EBADF),
            (enable_exits(0), rejected(EBADF)),
            *as_old(),
        ),
    ),
    Case(
        "teardown.vm_before_any_filter",
        "A vCPU whose VM's descriptor is closed before any install stays unfiltered.",
        "R76 R26",
        *play(TELL, _CLOSED, allowed(A), bad_install(NEW, EBADF), allowed(A), allowed(B)),
    ),
    Case(
        "teardown.vm_while_vcpus_run_on",
        "Two vCPUs outlive their VM's descriptor, one that ran before and one that did not.",
        "R76 R71",
        *play(
            TELL,
            done_install(OLD),
            (create_vcpu(1), done),
            *as_old(0),
            _CLOSED,
            *as_old(1),
            *as_old(0),
        ),
    ),
    Case(
        "teardown.vm_with_passed_through_msrs",
        "A vCPU keeps what it stored in MSRs, and is kept from those denied, when its VM's "
        "descriptor is closed.",
        "R76 R72 R28",
        *play(
            TELL_FILTER,
            *((wrmsr(msr, one), wrote) for msr, (one, _) in STORAGE.items()),
            _CLOSED,
            *((rdmsr(msr), returned(one)) for msr, (one, _) in STORAGE.items()),
            (enable_exits(0), rejected(EBADF)),
            bad_install(default_deny().allow(A), EBADF),
            *((rdmsr(msr), returned(one)) for msr, (one, _) in STORAGE.items()),
        ),
    ),
    Case(
        "teardown.vm_between_exit_and_answer",
        "An access that exited is completed though the VM's descriptor is closed by then.",
        "R76 R64",
        *play(
            TELL,
            done_install(OLD),
            (begin(rdmsr(A)), RdmsrExit(A, FILTER)),
            _CLOSED,
            (finish(value(DATA)), returned(DATA)),
            *as_old(),
        ),
    ),
    *(
        Case(
            f"teardown.vm_during_an_install_in_slot_{slot}",
            f"An install that waits for slot {slot} when the VM's descriptor is closed goes on, "
            "and is in force on the vCPUs that are left.",
            "R76 R70 R71",
            *play(
                TELL,
                done_install(OLD),
                *as_old(1),
                stalls(NEW, slot),
                _CLOSED,
                *as_old(),
                *as_old(1),
                resumes(),
                *as_new(1),
                *as_new(),
            ),
        )
        for slot in (0, 1)
    ),
    Case(
        "teardown.vm_during_an_install_that_fails",
        "An install that fails after the VM's descriptor was closed leaves the old filter whole.",
        "R76 R14",
        *play(TELL, done_install(OLD), stalls(NEW, 0), _CLOSED, loses_its_bitmap(), *as_old()),
    ),
    Case(
        "teardown.vm_during_two_installs",
        "Two installs that wait when the VM's descriptor is closed take effect one after another.",
        "R76 R77",
        *play(
            TELL,
            stalls(NEW, 0, "a"),
            stalls(OLD, 0, "b"),
            _CLOSED,
            allowed(A),
            resumes("b"),
            *as_old(),
            resumes("a"),
            *as_new(),
        ),
    ),
    Case(
        "teardown.vm_during_a_compat_install",
        "A 32-bit caller's install goes on when the VM's descriptor is closed.",
        "R76 R05",
        *play(
            TELL,
            done_install(OLD),
            stalls(NEW, 1, caller="compat"),
            _CLOSED,
            *as_old(),
            resumes(),
            *as_new(),
        ),
    ),
    Case(
        "teardown.vm_during_an_install_that_waits_for_a_reader",
        "An install waits for its reader when the VM's descriptor is closed, and ends after it.",
        "R76 R74",
        *play(
            TELL,
            done_install(OLD),
            *as_old(1),
            parks(1),
            (begin_install(NEW), blocked),
            _CLOSED,
            *as_new(),
            releases(1),
            (await_install(), done),
            *as_new(1),
        ),
    ),
    Case(
        "teardown.vm_while_a_vcpu_is_in_the_kernel",
        "A vCPU that waits for guest memory when the VM's descriptor is closed goes on, as "
        "filtered as before.",
        "R76 R71",
        *play(TELL, done_install(OLD), parks(1), _CLOSED, *as_old(), releases(1), *as_old(1)),
    ),
    Case(
        "teardown.vm_while_a_vcpu_is_in_the_guest",
        "A running vCPU is as filtered as before when the VM's descriptor is closed.",
        "R76 R71",
        *play(
            TELL,
            done_install(OLD),
            spins(rdmsr(A, vcpu=1)),
            exits(rdmsr(A, vcpu=1)),
            _CLOSED,
            exits(rdmsr(A, vcpu=1)),
            stops(),
            *as_old(1),
            *as_old(),
        ),
    ),
    Case(
        "teardown.vcpu_first",
        "Installs go on, and reach the other vCPUs, when one vCPU's descriptor is closed.",
        "R76 R71",
        *play(
            TELL,
            done_install(OLD),
            *as_old(1),
            (close_vcpu(1), done),
            *as_old(),
            done_install(NEW),
            *as_new(),
            *as_new(2),
        ),
    ),
    Case(
        "teardown.every_vcpu_first",
        "A VM without an open vCPU takes filters, which hold for the next vCPU it makes.",
        "R76 R75",
        *play(
            TELL,
            done_install(OLD),
            (create_vcpu(0), done),
            (create_vcpu(1), done),
            *as_old(1),
            (close_vcpu(0), done),
            (close_vcpu(1), done),
            done_install(NEW),
            (create_vcpu(2), done),
            *as_new(2),
        ),
    ),
    Case(
        "teardown.vcpu_between_exit_and_answer",
        "A vCPU closed with an access that nobody answered holds up no install.",
        "R76 R74",
        *play(
            TELL,
            done_install(OLD),
            (begin(rdmsr(A, vcpu=1)), RdmsrExit(A, FILTER)),
            (close_vcpu(1), done),
            done_install(NEW),
            *as_new(),
        ),
    ),
    Case(
        "teardown.vcpu_during_an_install",
        "A vCPU closed while an install waits for a bitmap does not disturb it.",
        "R76 R73",
        *play(
            TELL,
            done_install(OLD),
            *as_old(1),
            stalls(NEW, 1),
            (close_vcpu(1), done),
            (meanwhile(create_vcpu(2)), done),
            *as_old(2),
            resumes(),
            *as_new(2),
            *as_new(),
        ),
    ),
)
