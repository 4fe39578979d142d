"""A person reads causes: one line for each known bug and one case of it; the others are folded."""

from __future__ import annotations

from typing import Any

from vmm.conformance.records.causes import causes
from vmm.conformance.records.verdict import Verdict
from vmm.conformance.report import tap, text

_WRITE = "wrmsr(0x6e0, 0x0)"


def _case(name: str) -> dict[str, Any]:
    return {
        "id": name,
        "sentence": "It exits.",
        "requirements": ["R33"],
        "verdict": Verdict.FAIL,
        "cause": "B13",
        "script": [_WRITE],
        "trace": ["wrote"],
        "step": 1,
        "action": _WRITE,
        "expected": ["WrmsrExit(0x6e0, FILTER, 0x0)", "wrote"],
        "seen": ["wrote"],
    }


def _lines(verbose: int) -> str:
    (cause,) = causes([_case("one"), _case("two"), _case("three")], {"vendor_module": "kvm_amd"})
    return "\n".join(text.cause(cause, lambda _, words: words, verbose))


def test_one_case_a_cause_and_the_others_folded() -> None:
    assert "B13 (open): 3 cases, the first is one: " in _lines(0)
    assert "FAIL one" in _lines(0)
    assert "FAIL two" not in _lines(0)
    assert "and 2 cases more by B13; -v shows all" in _lines(0)


def test_verbose_shows_every_case() -> None:
    assert all(f"FAIL {name}" in _lines(1) for name in ("one", "two", "three"))


def test_tap_names_the_cause() -> None:
    assert '  cause: "B13"' in tap.case_lines(_case("one"), 1)
