"""A sweep's event: as few runs as there can be, and patterns that say no more than they mean."""

import pytest

from vmm.conformance.language.script import matches, run, runs_of, sweep, swept
from vmm.conformance.random.shrink import shrink

ALL = swept((run(0, 4, "FILTER"), run(4, 4, "UNFILTERED"), run(8, 4, "FILTER")))


def test_accesses_that_end_alike_make_one_run():
    ended = ["FILTER", "FILTER", "GP", "PASSED", "PASSED", "FILTER"]
    runs = (run(6, 2, "FILTER"), run(10, 1, "GP"), run(12, 2, "PASSED"), run(16, 1, "FILTER"))
    assert runs_of(sweep("rdmsr", 6, 6, stride=2), ended) == swept(runs)


def test_after_the_last_msr_comes_the_first():
    event = runs_of(sweep("wrmsr", 0xFFFF_FFFE, 4), ["GP", "GP", "GP", "FILTER"])
    assert event == swept((run(0xFFFF_FFFE, 3, "GP"), run(1, 1, "FILTER")))


@pytest.mark.parametrize(
    "numbers", [{"count": 0}, {"count": 1, "stride": 0}, {"count": 0x10001, "stride": 0x10000}]
)
def test_a_sweep_of_nothing_or_of_one_msr_twice_is_refused(numbers):
    with pytest.raises(ValueError, match="no sweep of"):
        sweep("rdmsr", 0, **numbers)


@pytest.mark.parametrize(
    "runs",
    [
        (run(0, 4, "FILTER"), run(4, 4, "GP"), run(8, 4, "FILTER")),
        (run(0, 4, "FILTER"), run(4, 1, "GP"), run(5, 3, "UNKNOWN"), run(8, 4, "FILTER")),
        ALL.runs,
    ],
)
def test_a_pattern_stands_for_every_access_that_no_filter_stops(runs):
    assert matches((ALL,), (swept(runs),))


@pytest.mark.parametrize(
    "runs",
    [
        (),
        (run(0, 12, "FILTER"),),
        (run(0, 4, "FILTER"), run(4, 4, "GP"), run(8, 3, "FILTER")),
        (run(0, 4, "FILTER"), run(4, 4, "GP"), run(8, 5, "FILTER")),
        (run(0, 5, "FILTER"), run(5, 3, "GP"), run(8, 4, "FILTER")),
        (run(0, 3, "FILTER"), run(3, 5, "GP"), run(8, 4, "FILTER")),
        (run(0, 4, "FILTER"), run(4, 4, "STRANGE"), run(8, 4, "FILTER")),
        (run(0, 4, "FILTER"), run(4, 6, "GP"), run(10, 2, "FILTER")),
        (run(1, 4, "FILTER"), run(5, 4, "GP"), run(9, 4, "FILTER")),
    ],
)
def test_one_access_that_ends_otherwise_is_seen(runs):
    assert not matches((ALL,), (swept(runs),))


def test_a_sweep_shrinks_to_the_msr_that_shows_it():
    shows = lambda script: any(0x123 in each.indices for each in script)  # noqa: E731
    (smallest,) = shrink((sweep("wrmsr", 0, 0x2000, value=7, vcpu=1),), shows)
    assert smallest == sweep("wrmsr", 0x123, 1)
