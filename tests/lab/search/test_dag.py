"""Which commits are asked: held against every culprit that a graph can have."""

import random

import pytest

from vmm.lab.search.dag import Candidates

LINE = {str(n): [str(n - 1)] for n in range(100)}


def merges(seed, number=60):
    """Make a history with branches and merges; the last commit has all others."""
    rolls, heads, made = random.Random(seed), ["c0"], {"c0": ["root"]}
    for n in range(1, number):
        count = 2 if len(heads) > 1 and rolls.random() < 0.4 else 1
        above = rolls.sample(heads, count)
        if rolls.random() < 0.6:
            heads = [head for head in heads if head not in above]
        made[f"c{n}"] = above
        heads.append(f"c{n}")
    made["tip"] = heads
    return made


def ancestors(parents, name):
    found, todo = set(), [name]
    while todo:
        each = todo.pop()
        if each in parents and each not in found:
            found.add(each)
            todo += parents[each]
    return found


def bisect(parents, culprit, number):
    """Return the finding and the rounds it took, by the rule that bad is who has the culprit."""
    tip = list(parents)[-1]
    graph, asked, left, rounds = Candidates(parents), {tip: True}, list(parents), 0
    while askable := [name for name in left if name not in asked]:
        rounds += 1
        chosen = graph.split(left, askable, number)
        assert 1 <= len(chosen) == len({*chosen}) <= number and {*chosen} <= {*askable}
        asked |= {name: culprit in ancestors(parents, name) for name in chosen}
        goods = [name for name, is_bad in asked.items() if not is_bad]
        bad = graph.narrowest([name for name, is_bad in asked.items() if is_bad], goods)
        left = graph.left(bad, goods)
    return left, rounds


@pytest.mark.parametrize("number", [1, 2, 3, 7])
@pytest.mark.parametrize("seed", range(3))
def test_the_culprit_is_found_wherever_it_is(seed, number):
    parents = merges(seed)
    for culprit in parents:
        assert bisect(parents, culprit, number)[0] == [culprit]


def test_a_line_is_cut_into_even_parts():
    graph = Candidates(LINE)
    for number, cuts in ((1, {49}), (3, {24, 49, 74}), (4, {19, 39, 59, 79})):
        chosen = graph.split(graph.names, graph.names, number)
        assert all(min(abs(int(name) - cut) for cut in cuts) <= 1 for name in chosen), chosen
        assert len(chosen) == number


def test_several_at_once_take_fewer_rounds():
    for parents in (LINE, merges(7)):
        most = [max(bisect(parents, each, n)[1] for each in parents) for n in (1, 2, 4, 200)]
        assert most == sorted(most, reverse=True) and most[0] > most[2] > most[3] == 1


def test_parallel_branches_are_asked_side_by_side():
    """Two branches of ten: three tips of equal size would tell no more than one."""
    parents = {"fork": ["root"]}
    for branch in "ab":
        parents |= {f"{branch}{n}": [f"{branch}{n - 1}" if n else "fork"] for n in range(10)}
    parents["tip"] = ["a9", "b9"]
    graph = Candidates(parents)
    chosen = graph.split(graph.names, [name for name in graph.names if name != "tip"], 3)
    groups = {}
    for culprit in parents:
        told = tuple(culprit in ancestors(parents, name) for name in chosen)
        groups.setdefault(told, []).append(culprit)
    assert max(map(len, groups.values())) <= 7, chosen
