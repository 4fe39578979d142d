"""The Model against the humans of the catalogue; what it may know; it answers every script."""

from __future__ import annotations

import ast
import dataclasses
import itertools
from pathlib import Path
from typing import get_args

import pytest
from agreed import MUST, parted
from hypothesis import given, settings
from hypothesis import strategies as st
from mutant import disagreement
from predicted import X

from vmm.conformance.cases import CASES
from vmm.conformance.language import script as s
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import (
    ANY,
    enable_exits,
    first_difference,
    get_regs,
    gp,
    install,
    rdmsr,
    regs,
    returned,
    unfiltered,
    whatever,
    wrmsr,
)
from vmm.conformance.language.word import Word
from vmm.conformance.oracle import model as model_module
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.spoiled import model_of
from vmm.exits import RdmsrExit, WrmsrExit
from vmm.filter import AtEdge, MsrFilter, MsrRange, Pointer, default_allow
from vmm.msr import FILTER, UNKNOWN, Msr

# --- the edge between the humans and the Model ----------------------------------------------------


@pytest.mark.parametrize("case", MUST.values(), ids=lambda case: case.id)
def test_model_says_what_the_human_expects(case: Case) -> None:
    number = parted(case.id)
    assert number is None, (
        f"{case.id}: step {number}, {case.actions[number]}: "
        f"human {s.steps(case.actions, case.expected)[number:][:1]}, "
        f"Model {s.steps(case.actions, model_of(case).predict(case.actions))[number:][:1]}"
    )


@pytest.mark.parametrize("case", [c for c in CASES if c.observes], ids=lambda case: case.id)
def test_model_survives_what_is_only_observed(case: Case) -> None:
    assert len(s.steps(case.actions, Model().predict(case.actions))) == len(case.actions)


@pytest.mark.parametrize(
    ("human", "model", "agree"),
    [
        ((gp,), (gp,), True),
        ((gp,), (unfiltered,), False),
        ((unfiltered,), (gp,), True),
        ((unfiltered,), (unfiltered,), True),
        ((unfiltered,), (RdmsrExit(X, UNKNOWN), gp), True),
        ((unfiltered,), (RdmsrExit(X, FILTER), gp), False),
        ((unfiltered,), (whatever,), False),
        ((returned(1),), (returned(ANY),), False),
        ((returned(ANY),), (returned(1),), True),
        ((RdmsrExit(X, FILTER), gp), (RdmsrExit(X, ANY), gp), False),
    ],
)
def test_the_model_may_say_more_and_never_less(
    human: s.Step, model: s.Step, agree: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case("a.b", "A case.", "R50", [rdmsr(X)], human)
    oracle = Model()
    monkeypatch.setattr(oracle, "predict", lambda script: model)
    assert (disagreement(case, oracle) is None) is agree


# --- what the Model may know ----------------------------------------------------------------------


ROOMS = {"vmm.conformance", "vmm.conformance.language", "vmm.conformance.oracle"}


def _imports(path: Path) -> set[str]:
    """Return the modules of ours that a file imports, by their full names."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module in ROOMS:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name for name in names if name.split(".")[0] == "vmm"}


def test_model_never_reaches_the_kernel() -> None:
    files = sorted(Path(model_module.__file__).parent.glob("*.py"))
    allowed = {"vmm.msr", "vmm.filter", "vmm.exits", "vmm.conformance.language.script"}
    allowed.add("vmm.conformance.language.case")
    allowed |= {f"vmm.conformance.oracle.{path.stem}" for path in files}
    assert {path.name: _imports(path) - allowed for path in files} == {
        path.name: set() for path in files
    }


def test_every_word_that_is_no_event_is_an_action() -> None:
    words = {
        word
        for word in vars(s).values()
        if isinstance(word, type)
        and issubclass(word, Word)
        and dataclasses.is_dataclass(word)
        and word.__module__.startswith("vmm.conformance.language.")
    }
    not_actions = {*s.Event.__args__, s.Reply, s.Run, s.Through, s.Listed}
    assert words - not_actions == {*get_args(s.Action)}  # and of these mypy says that all have one


def test_predict_keeps_nothing() -> None:
    model = Model()
    script = (enable_exits(7), install(default_allow().deny(X)), wrmsr(Msr.STAR, 5), rdmsr(X))
    assert model.predict(script) == model.predict(script)
    assert model.predict((rdmsr(X), rdmsr(Msr.STAR), get_regs())) == (
        gp,
        returned(ANY),
        regs(ANY, ANY, ANY, ANY),
    )


# --- anything that can be said --------------------------------------------------------------------

U32, U64 = (1 << 32) - 1, (1 << 64) - 1
_indices = st.sampled_from([X, 0x802, 0xFFFFFFFF, *Msr]) | st.integers(0, U32)
_numbers = st.integers(0, U64)
_vcpus = st.integers(0, 2)
_replies = st.builds(s.Reply, _numbers, st.integers(0, 255), st.booleans())
_bitmaps = (
    st.binary(max_size=9) | st.sampled_from(Pointer) | st.builds(AtEdge, st.binary(max_size=9))
)
_ranges = st.builds(MsrRange, st.integers(0, 4), _indices, st.integers(0, 70), _bitmaps)
_filters = st.builds(MsrFilter, st.integers(0, 2), st.lists(_ranges, max_size=4).map(tuple))
_accesses = st.builds(
    s.Rdmsr, _indices, _numbers, _numbers, st.integers(0, U32), _replies, _vcpus
) | st.builds(s.Wrmsr, _indices, _numbers, _numbers, st.integers(0, U32), _replies, _vcpus)
_maybe = st.none() | _numbers
_on = st.sampled_from(["vm", "vcpu", "system"])
_actions = (
    _accesses
    | st.builds(s.EnableCap, st.integers(187, 190), st.lists(_numbers, max_size=4).map(tuple))
    | st.builds(s.Install, _filters, st.just(0x4188AEC6) | st.integers(0, U32), _on)
    | st.builds(s.ScribbleBitmaps)
    | st.builds(s.CheckExtension, st.integers(0, 200), _on)
    | st.builds(s.GetMsr, _indices, _vcpus)
    | st.builds(s.SetMsr, _indices, _numbers, _vcpus)
    | st.builds(s.CreateIrqchip)
    | st.builds(s.CreateVcpu, st.integers(-1, 300))
    | st.builds(s.SetCpuid, st.just("tsc_deadline"), st.booleans(), _vcpus)
    | st.builds(s.Begin, _accesses)
    | st.builds(s.GetRegs, _vcpus)
    | st.builds(s.SetRegs, _maybe, _maybe, st.integers(-9, 9), st.sampled_from(["ioctl", "sync"]))
    | st.builds(s.Complete, st.none() | _replies, st.sampled_from(["immediate_exit", "signal"]))
    | st.builds(s.Finish, st.none() | _replies, _vcpus)
)


@settings(max_examples=300, deadline=None)
@given(st.lists(_actions, max_size=12).map(tuple))
def test_every_script_has_a_prediction(script: s.Script) -> None:
    trace = Model().predict(script)
    cut = s.steps(script, trace)
    assert len(cut) == len(script)
    for action, step in zip(script, cut, strict=True):
        assert len(step) == (
            2 if isinstance(step[0], RdmsrExit | WrmsrExit) else 1
        ) or not isinstance(action, s.Rdmsr | s.Wrmsr)
    assert not any(isinstance(event, s.Lost) for event in trace)
    repr(trace)
    shown = [(gp,) if step in ((unfiltered,), (whatever,)) else step for step in cut]
    assert first_difference(script, trace, tuple(itertools.chain(*shown))) is None
