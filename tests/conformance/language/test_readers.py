"""No reader of the language forgets a word; of the executor and the Model mypy says it itself."""

from typing import get_args

from vmm.conformance.c.layout import WORDS
from vmm.conformance.c.steps import CALLS
from vmm.conformance.language import script as s

ACTIONS = {*get_args(s.Action)}


def test_the_actions_are_accesses_and_what_host_and_races_do():
    unions = (s.Access, s.HostAction, s.RaceAction, s.LevelAction)
    parts = [(s.Execute,), *map(get_args, unions)]
    assert sorted(map(str, sum(parts, ()))) == sorted(map(str, ACTIONS))


def test_every_action_has_a_form_in_c():
    assert CALLS.keys() == WORDS.keys() == ACTIONS
