"""Random races: interleavings of installs, readers and accesses, made valid, shrunk and printed.

Hypothesis draws a script word by word, each from those that have a meaning at its place: the
Model's own state says which installs can be resumed and which vCPUs are there. What comes of it is
an ordinary script, and is shrunk as one, word by word. Hypothesis is imported only when used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

from vmm.conformance.language import script as s
from vmm.conformance.language.soundness import is_sound
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.races import MEANWHILE
from vmm.conformance.oracle.state import VmState
from vmm.conformance.random.shrink import shrink
from vmm.filter import READ, READ_WRITE, WRITE, MsrFilter, MsrRange, Pointer, bitmap_of
from vmm.msr import FILTER, UNKNOWN, Msr

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

Draw = Callable[..., Any]
Words = tuple[s.Action, ...]

A, B, C = 0x474F4F00, 0x474F4F40, 0x474F4F80
MSRS = (A, B, C, int(Msr.STAR))
"""Three that no KVM knows, each access of which asks the filter, and one that hardware may pass."""

NAMES, VCPUS, CALLERS = ("a", "b", "c"), (0, 1, 2), ("self", "child")
START = (s.enable_exits(FILTER | UNKNOWN),)
MASKS = tuple(s.enable_exits(each) for each in (FILTER | UNKNOWN, FILTER, 0))
EMPTY = MsrRange(0, 0, 0, Pointer.NULL)
BAD = (
    MsrRange(8, A, 1, b"\0"),
    MsrRange(0, A, 1, b"\0"),
    MsrRange(3, A, 0x3001, b"\0"),
    MsrRange(3, A, 1, Pointer.NULL),
    MsrRange(3, A, 1, Pointer.UNMAPPED),
)
"""Ranges for which an install is refused: flags, size, bitmap."""


# --- what is drawn --------------------------------------------------------------------------------


def interleavings(callers: Sequence[str] = CALLERS, size: int = 14) -> SearchStrategy[s.Script]:
    """Return the strategy of valid scripts of up to ``size`` moves, by ``callers`` of installs."""
    from hypothesis import strategies as st

    @st.composite
    def script(draw: Draw) -> s.Script:
        model = Model()
        played: list[s.Action] = [*START]
        vm = model.new_vm(START)
        model.step(vm, START[0])
        for _ in range(size):
            for move in (draw(st.sampled_from([each for each, can in MOVES if can(vm)])), _look):
                for word in move(draw, vm, callers):
                    model.step(vm, word)
                    played.append(word)
        return tuple(played)

    return script()


@cache
def _filters() -> SearchStrategy[MsrFilter]:
    """Mostly good ones: what is refused tells least."""
    from hypothesis import strategies as st

    access = st.sampled_from([READ_WRITE, READ, WRITE])
    single = st.builds(
        MsrRange, access, st.sampled_from(MSRS), st.just(1), st.sampled_from([b"\0", b"\1"])
    )
    bits = st.sets(st.sampled_from([0, B - A, C - A])).map(lambda bits: bitmap_of(0x81, bits))
    wide = st.builds(MsrRange, access, st.just(A), st.just(0x81), bits)
    good = st.lists(st.one_of(single, single, single, single, wide), min_size=1, max_size=3)
    odd = st.lists(st.one_of(single, wide, st.sampled_from((EMPTY, *BAD))), max_size=4)
    ranges = st.one_of(good, good, good, good, odd).map(tuple)
    return st.builds(MsrFilter, st.sampled_from([0, 1]), ranges)


def _one_of(draw: Draw, values: Sequence[Any]) -> Any:
    from hypothesis import strategies as st

    return draw(st.sampled_from(values))


def _nothing(draw: Draw, vm: VmState, callers: Sequence[str]) -> Words:
    return ()


def _access(draw: Draw, vm: VmState, callers: Sequence[str]) -> Words:
    return (_one_of(draw, look(_one_of(draw, _here(vm)))),)


def _look(draw: Draw, vm: VmState, callers: Sequence[str]) -> Words:
    vcpu = _one_of(draw, [None, *_here(vm)])
    return () if vcpu is None else look(vcpu)


def look(vcpu: int) -> Words:
    """Return accesses of ``vcpu`` that tell most filters of ours apart."""
    reads = tuple(s.rdmsr(each, vcpu=vcpu) for each in MSRS)
    return (*reads, *[s.wrmsr(each, 7, vcpu=vcpu) for each in MSRS])


def _install(draw: Draw, vm: VmState, callers: Sequence[str]) -> tuple[s.Install]:
    new, caller = draw(_filters()), _one_of(draw, callers)
    return (s.install_compat(new) if caller == "compat" else s.install(new, caller=caller),)


def _begin(draw: Draw, vm: VmState, callers: Sequence[str]) -> Words:
    """Begin an install that stalls in a slot of its own, or (None) in none."""
    new = draw(_filters())
    rules = Model.filters
    slots = [n for n, each in enumerate(new.ranges) if not rules.range_errors(each) and each.nmsrs]
    slot = _one_of(draw, [None, *slots * 2])
    caller = _one_of(draw, [each for each in callers if each != "child"])
    return (s.begin_install(new, slot, _one_of(draw, _free(vm)), caller),)


def _resume(draw: Draw, vm: VmState, callers: Sequence[str]) -> Words:
    return (s.resume_install(_one_of(draw, sorted(vm.stalls)), _one_of(draw, FAILS)),)


def _await(draw: Draw, vm: VmState, callers: Sequence[str]) -> Words:
    name: str = _one_of(draw, sorted(vm.waits))
    if name.startswith(MEANWHILE):
        return (s.await_meanwhile(name.removeprefix(MEANWHILE)),)
    return (s.await_install(name),)


def _park(draw: Draw, vm: VmState, callers: Sequence[str]) -> Words:
    return (s.park(_one_of(draw, _here(vm))),)


def _release(draw: Draw, vm: VmState, callers: Sequence[str]) -> Words:
    return (s.release(_one_of(draw, sorted(vm.parked))),)


def _mask(draw: Draw, vm: VmState, callers: Sequence[str]) -> Words:
    return (s.meanwhile(_one_of(draw, MASKS)),)


def _meanwhile_install(draw: Draw, vm: VmState, callers: Sequence[str]) -> Words:
    return (s.meanwhile(*_install(draw, vm, callers)),)


def _create(draw: Draw, vm: VmState, callers: Sequence[str]) -> Words:
    return (s.meanwhile(s.create_vcpu(_one_of(draw, VCPUS))),)


# --- when it has a meaning ------------------------------------------------------------------------


def _here(vm: VmState) -> list[int]:
    return [each for each in VCPUS if each not in vm.parked]


def _free(vm: VmState) -> list[str]:
    return [each for each in NAMES if each not in vm.stalls and each not in vm.waits]


def _is_free(vm: VmState) -> bool:
    """Say whether a ``meanwhile`` can begin."""
    return MEANWHILE + "m" not in vm.waits


Move = tuple[Callable[[Draw, VmState, Sequence[str]], Words], Callable[[VmState], Any]]

FAILS = (False, False, True)
MOVES: tuple[Move, ...] = (
    (_nothing, lambda vm: True),
    (_access, _here),
    # In the script's own thread, and so nothing that a parked vCPU would block.
    (_install, lambda vm: not vm.parked),
    *[(_begin, _free)] * 5,
    *[(_resume, lambda vm: vm.stalls)] * 3,
    *[(_await, lambda vm: vm.waits)] * 3,
    # A reader that comes after an install has published may delay it, or not.
    *[(_park, lambda vm: _here(vm) and not vm.waits)] * 2,
    *[(_release, lambda vm: vm.parked)] * 4,
    (_mask, _is_free),
    (_meanwhile_install, _is_free),
    # It may have to wait for an install that waits (B17).
    (_create, lambda vm: _is_free(vm) and not vm.waits),
)
"""What can be drawn, as often as it is here, when the state that the Model is in has a use for it;
first what a script shrinks to."""


# --- a search -------------------------------------------------------------------------------------

Disagrees = Callable[[s.Script], bool]


def search(
    disagrees: Disagrees, seed: int, examples: int = 200, callers: Sequence[str] = CALLERS
) -> s.Script | None:
    """Return a script that ``disagrees``, shrunk, or None if ``examples`` scripts do not.

    A script that disagrees only sometimes is returned as it was when it last did.
    """
    from random import Random

    from hypothesis import HealthCheck, Phase, find, settings
    from hypothesis.errors import Flaky, NoSuchExample

    found: list[s.Script] = []

    def condition(script: s.Script) -> bool:
        if disagrees(script):
            found.append(script)
        return found[-1:] == [script]

    limits = settings(
        max_examples=examples,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    with suppress(NoSuchExample, Flaky):
        find(interleavings(callers), condition, settings=limits, random=Random(seed))
    return shrunk(found[-1], disagrees) if found else None


def shrunk(script: s.Script, disagrees: Disagrees) -> s.Script:
    """Return the smallest script that still has a meaning and ``disagrees``.

    Hypothesis would shrink what it drew, thousands of draws for one script; a script is smaller.
    """
    return shrink(script, lambda each: has_a_meaning(each) and disagrees(each))


def has_a_meaning(script: s.Script) -> bool:
    """Say whether each word can be done at its place and leaves what the contract promises.

    More than that it can be run: the Model says of each what it leaves.
    """
    if not is_sound(script):
        return False
    model = Model()
    vm = model.new_vm(script)
    for word in script:
        left = model.step(vm, word)
        if not isinstance(word, s.Access) and left in HANGS.get(type(word), UNPROMISED):
            return False
    return True


UNPROMISED: frozenset[s.Step] = frozenset({(s.whatever,)})
HANGS: dict[type, frozenset[s.Step]] = {s.Install: UNPROMISED | {(s.blocked,)}}
"""What words leave that have no meaning; an install in the script's own thread may not block."""
