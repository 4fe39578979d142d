"""Which lines of a kernel's log are splats, and where each begins and ends."""

import os
import re
from pathlib import Path

import pytest
from kernel_lines import BAR, CUT, END, HEALTHY, SPLATS, TRACE

from vmm.conformance.host import splats
from vmm.conformance.host.splats import MAX_LINES, Splat, find_splats


@pytest.mark.parametrize("name", SPLATS)
def test_each_splat_is_found_whole_between_healthy_lines(name: str) -> None:
    kind, lines, pids, comms = SPLATS[name]
    trailer = [] if lines[-1] in (BAR, END) else [CUT]  # what surely begins something else
    found = find_splats([*HEALTHY, *lines, *trailer])
    assert len(found) == 1 + len(trailer)
    assert (found[0].kind, found[0].pids, found[0].comms) == (kind, pids, comms)
    assert list(found[0].lines) == lines
    assert found[0].first == [line for line in lines if line != CUT][name == "warn_with_text"]


def test_a_warning_is_named_by_its_warning_line_not_by_the_text_before_it() -> None:
    (found,) = find_splats(SPLATS["warn_with_text"][1])
    assert found.first.startswith("WARNING: CPU: 0 PID: 9")


@pytest.mark.parametrize("line", HEALTHY)
def test_a_healthy_line_is_no_splat(line: str) -> None:
    assert find_splats([line]) == []


@pytest.mark.parametrize(("kind", "pattern", "file"), splats._HEADERS)
def test_each_pattern_stands_in_the_source_that_prints_it(kind: str, pattern: str, file: str):
    source = Path(os.environ.get("MSRWARD_LINUX_SOURCE", ""), file)
    if not source.is_absolute():
        pytest.skip("MSRWARD_LINUX_SOURCE names no kernel tree to look the messages up in")
    optional = re.sub(
        r"\(\?:[^()]*\)\?|\[[0-9a-z\\][^]]*\]", "", pattern
    )  # what pr_fmt puts before it
    words = re.split(r"\(\?.|\\[a-z]|: |[][\\^$.|?*+(){}]", optional)
    words = [word for word in words if len(word) > 4] or ["%04lx [#%d]" * ("#" in pattern)]
    assert any(word in source.read_text() for word in words), f"{kind}: {words}"


ENDED = [name for name, splat in SPLATS.items() if splat[1][-1] in (BAR, END, TRACE[-1])]


@pytest.mark.parametrize("name", [*ENDED, "kmemleak", "rss", "srcu"])
def test_a_splat_ends_where_it_ends(name: str) -> None:
    (found,) = find_splats([*SPLATS[name][1], *HEALTHY])
    assert list(found.lines) == SPLATS[name][1]


def test_all_splats_in_a_row_are_told_apart() -> None:
    log = [line for splat in SPLATS.values() for line in [BAR, *splat[1], BAR]]
    assert [found.kind for found in find_splats(log)] == [splat[0] for splat in SPLATS.values()]


@pytest.mark.parametrize("prefix", ["[   12.345678] ", "[    1.000001][ T4711] ", "<4>[12.3] "])
def test_console_timestamps_are_taken_off(prefix: str) -> None:
    (found,) = find_splats(prefix + line + "\r" for line in SPLATS["kasan"][1])
    assert list(found.lines) == SPLATS["kasan"][1]


def test_a_trace_without_end_marks_ends_at_the_first_foreign_line() -> None:
    head = ["BUG: scheduling while atomic: a/1/0x2", "Call Trace:", " f+0x1/0x2", "RIP: 0033:0x1"]
    (found,) = find_splats([*head, "eth0: link up", "usb 1-1: new device"])
    assert list(found.lines) == head


def test_a_splat_that_never_ends_is_bounded() -> None:
    (found,) = find_splats([CUT, *(f"line {n}" for n in range(10 * MAX_LINES))])
    assert len(found.lines) == MAX_LINES
    assert (found.kind, found.first) == ("WARN", "line 0")


def test_a_cut_line_begins_a_new_splat_even_where_the_last_one_never_ended() -> None:
    warn = SPLATS["warn"][1]
    first, second = find_splats([*warn[:3], *warn])
    assert list(first.lines) == warn[:3]
    assert list(second.lines) == warn


def test_nothing_gives_nothing() -> None:
    assert find_splats([]) == []


def test_a_cut_line_alone_is_a_splat() -> None:
    assert find_splats([CUT]) == [Splat("WARN", CUT, (CUT,), (), ())]
