"""Scripts and traces as text: as JSON and back, and as the Python that makes them."""

import copy
import json
import pickle
from random import Random
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm.conformance.cases import CASES
from vmm.conformance.language import codec, script
from vmm.conformance.language.case import OBSERVE, Case
from vmm.conformance.language.script import (
    ANY,
    Fault,
    Lost,
    Returned,
    Wrote,
    get_msr,
    got,
    install,
    rdmsr,
)
from vmm.conformance.language.vocabulary import makers, vocabulary
from vmm.conformance.oracle.model import Model
from vmm.conformance.random.scripts import random_script
from vmm.exits import RdmsrExit
from vmm.filter import AtEdge, MsrFilter, MsrRange, Pointer, bitmap_of, default_allow
from vmm.msr import FILTER, UNKNOWN, MsrExitReason

LONG = [case for case in CASES if len(case.script) > 60]
CATALOGUE = [case for case in CASES if case not in LONG[1:]]
"""Every case but the sweeps, which say the same a thousand times; one of those stands for all."""

NAMES = """
from errno import *
from vmm.conformance.language.script import *
from vmm.filter import *
from vmm.msr import *
from vmm.exits import *
"""
ODD = (
    Returned(ANY, high=ANY),
    Fault(14, 0xFFFF, -2, (1, 2**64 - 1)),
    Wrote((0, 1)),
    Lost('exit reason 17 "quoted" \\ 0x12'),
    RdmsrExit(5, MsrExitReason(0), 2**64 - 1, 255, 2**56 - 1),
    RdmsrExit(5, FILTER | UNKNOWN, pad=1),
)


@pytest.fixture(scope="module")
def names():
    made = {}
    exec(NAMES, made)
    return made


def random_cases(count):
    draw = Random(20).randrange
    for _ in range(count):
        actions = random_script(draw)
        yield Case("a.b", "", "", actions, Model().predict(actions))


def same(one, other):
    """ANY is equal to everything, so values must also print alike."""
    return one == other and repr(one) == repr(other)


# --- JSON -------------------------------------------------------------------------------------


def test_the_catalogue_survives_json():
    for case in CATALOGUE:
        read = codec.load(codec.dump(case))
        assert (read.id, read.sentence, read.checks) == (case.id, case.sentence, case.checks)
        assert same(read.actions, case.actions) and read.needs == case.needs
        assert read.observes == case.observes
        assert case.observes or same(read.expected, case.expected)


def test_the_catalogue_survives_the_way_to_another_process():
    read = pickle.loads(pickle.dumps(CATALOGUE))
    assert same(read, CATALOGUE)
    assert pickle.loads(pickle.dumps(ANY)) is ANY


def test_random_scripts_and_their_predictions_survive_json():
    for case in random_cases(100):
        read = codec.load(codec.dump(case))
        assert same(read.actions, case.actions) and same(read.expected, case.expected)


def test_odd_events_survive_json():
    read = codec.load(codec.dump(Case("a.b", "", "", (get_msr(1),), ODD)))
    assert same(read.expected, ODD)


def test_odd_filters_survive_json():
    ranges = (MsrRange(0xFF, 2**32 - 1, 0, Pointer.KERNEL), MsrRange(1, 0, 9, AtEdge(b"\1\2")))
    action = install(MsrFilter(2**32 - 1, ranges), on="vcpu", argp=Pointer.UNMAPPED)
    assert codec.load(codec.dump(Case("a.b", "", "", (action,), OBSERVE))).actions == (action,)


def test_every_word_of_the_language_can_be_written():
    known = set(vocabulary().values())
    assert set(get_args(script.Action)) | set(get_args(script.Event)) <= known


def test_a_document_is_as_the_format_says():
    document = json.loads(codec.dump(Case("a.b", "c", "R01", (rdmsr(0x474F4F00),), (got(9),))))
    assert document == {
        "msrward": 1,
        "id": "a.b",
        "sentence": "c",
        "checks": "R01",
        "needs": [],
        "script": [{"word": "rdmsr", "index": "0x474f4f00"}],
        "trace": [{"word": "got", "value": 9}],
    }


def test_the_words_that_cases_write_are_taken():
    actions = [
        {"word": "enable_exits", "mask": 7},
        {"word": "install_compat", "filter": {"word": "MsrFilter"}},
        {"word": "rdmsr", "index": 1, "reply": {"word": "fault"}},
        {"word": "rdmsr", "index": 1, "reply": {"word": "value", "data": 3}},
    ]
    trace = [{"word": "wrote"}, {"word": "gp"}, {"word": "done"}]
    read = codec.load(json.dumps({"msrward": 1, "script": actions, "trace": trace}))
    assert same(read.expected, (script.wrote, script.gp, script.done))
    assert read.actions == (
        script.enable_exits(7),
        script.install_compat(MsrFilter()),
        *(rdmsr(1, reply=script.fault()), rdmsr(1, reply=script.value(3))),
    )


def test_the_vocabulary_is_that_of_scripts_and_traces():
    assert {"rdmsr", "Reply", "MsrFilter", "MsrRange", "AtEdge", "RdmsrExit"} <= {*vocabulary()}
    assert not {"IoExit", "Exit", "Word"} & {*vocabulary()}


def test_a_script_is_all_that_a_document_needs():
    read = codec.load('{"msrward": 1, "script": [{"word": "rdmsr", "index": 16}]}')
    assert read.actions == (rdmsr(16),) and read.observes


FILTER_WITH = (
    '{"word": "install", "filter": {"word": "MsrFilter", "ranges": [{"word": "MsrRange", '
    '"flags": 1, "base": %s, "nmsrs": 1, "bitmap": %s}]}}'
)
BAD_SCRIPTS = {
    '{"word": "rdmsr"}': "script[0].index: missing",
    '{"word": "rdmsr", "index": "STAR"}': "script[0].index: 'STAR' is no number",
    '{"word": "rdmsr", "index": true}': "script[0].index: True is no number",
    '{"word": "rdmsr", "index": 1.5}': "script[0].index: 1.5 is no number",
    '{"word": "rdmsr", "index": 4294967296}': "script[0].index: 0x100000000 does not fit 32 bits",
    '{"word": "rdmsr", "index": 1, "vcpu": 16}': "script[0].vcpu: 0x10 does not fit 4 bits",
    '{"word": "rdmsr", "index": {"any": true}}': "script[0].index: {'any': True} is no number",
    '{"word": "rdmsr", "index": 1, "indx": 1}': "script[0].indx: unknown",
    '{"word": "rdmsr", "index": 1, "reply": {"word": "Reply", "error": 256}}': (
        "script[0].reply.error: 0x100 does not fit 8 bits"
    ),
    '{"word": "rdmsr", "index": 1, "reply": {"word": "rdmsr", "index": 1}}': (
        "script[0].reply: rdmsr does not belong here"
    ),
    '{"word": "readmsr", "index": 1}': (
        f"script[0]: no word 'readmsr'; there are {', '.join(sorted(makers()))}"
    ),
    '{"word": "gp"}': "script[0]: Fault does not belong here",
    '{"word": "gp", "vector": 14}': "script[0].vector: unknown",
    '{"word": "check_extension", "cap": 1, "on": "vcpu"}': ("script[0].on: 'vcpu' is no system/vm"),
    '{"word": ["rdmsr"]}': "script[0]: {'word': ['rdmsr']} is no object with a \"word\"",
    '"rdmsr"': "script[0]: 'rdmsr' is no object with a \"word\"",
    '{"word": "got", "value": 1}': "script[0]: got does not belong here",
    '{"word": "begin", "access": {"word": "finish"}}': (
        "script[0].access: finish does not belong here"
    ),
    '{"word": "complete", "by": "force"}': (
        "script[0].by: 'force' is no immediate_exit/signal/debugger"
    ),
    '{"word": "enable_cap", "cap": 188, "args": [1, 2, 3, 4, 5]}': (
        "script[0].args: 5 elements are not what it has"
    ),
    '{"word": "enable_cap", "cap": 188, "args": [-1]}': (
        "script[0].args[0]: -0x1 does not fit 64 bits"
    ),
    '{"word": "finish"}': ("script[0]: finish() goes on with what no action before it began"),
    '{"word": "release", "vcpu": 1}': (
        "script[0]: release(1) goes on with what no action before it began"
    ),
    '{"word": "scribble_bitmaps"}': (
        "script[0]: scribble_bitmaps() goes on with what no action before it began"
    ),
    FILTER_WITH % ('"0x100000000"', '{"bytes": "00"}'): (
        "script[0].filter.ranges[0].base: 0x100000000 does not fit 32 bits"
    ),
    FILTER_WITH % (0, '{"bytes": "0"}'): (
        "script[0].filter.ranges[0].bitmap: {'bytes': '0'} is no bytes"
    ),
    FILTER_WITH % (0, '{"word": "AtEdge", "bits": {"bytes": "zz"}}'): (
        "script[0].filter.ranges[0].bitmap.bits: {'bytes': 'zz'} is no bytes"
    ),
}


@pytest.mark.parametrize("bad", BAD_SCRIPTS)
def test_a_bad_element_is_named(bad):
    with pytest.raises(ValueError) as error:
        codec.load(f'{{"msrward": 1, "script": [{bad}]}}')
    assert str(error.value) == BAD_SCRIPTS[bad]


BAD_DOCUMENTS = {
    "": "not JSON: Expecting value: line 1 column 1 (char 0)",
    "[]": 'not a case: it is no object with "msrward"',
    '{"script": []}': 'not a case: it is no object with "msrward"',
    '{"msrward": 2, "script": []}': "msrward: version 2, and this one reads 1",
    '{"msrward": 1}': "script: None is no list",
    '{"msrward": 1, "script": [], "traces": []}': "traces: unknown",
    '{"msrward": 1, "script": [], "trace": [{"word": "rdmsr", "index": 1}]}': (
        "trace[0]: rdmsr does not belong here"
    ),
    '{"msrward": 1, "script": [], "id": "a b"}': (
        "id: 'a b' has other characters than a-z 0-9 _ . -"
    ),
    '{"msrward": 1, "script": [], "needs": [1]}': "needs: 1 is no text",
    '{"msrward": 1, "script": [' + '{"word": "begin", "access": ' * 400 + "1" + "}" * 400 + "]}": (
        "script: nested without end"
    ),
}


@pytest.mark.parametrize("bad", BAD_DOCUMENTS, ids=range(len(BAD_DOCUMENTS)))
def test_a_bad_document_is_refused(bad):
    with pytest.raises(ValueError) as error:
        codec.load(bad)
    assert str(error.value) == BAD_DOCUMENTS[bad]


JUNK = (None, True, -1, 2**70, 1.5, "", "0x", "0x1", [], [[]], {}, {"word": "done"}, {"any": True})


def places(node, path=()):
    yield path
    if isinstance(node, dict | list):
        for key in node if isinstance(node, dict) else range(len(node)):
            yield from places(node[key], (*path, key))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_whatever_is_damaged_the_answer_is_a_case_or_one_line(data):
    case = data.draw(st.sampled_from(CATALOGUE[::7]))
    document = json.loads(codec.dump(case))
    *path, last = data.draw(st.sampled_from([each for each in places(document) if each]))
    node = document
    for key in path:
        node = node[key]
    node[last] = copy.deepcopy(data.draw(st.sampled_from(JUNK)))
    try:
        read = codec.load(json.dumps(document))
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert codec.load(codec.dump(read)) == read


# --- Python -----------------------------------------------------------------------------------


def test_the_catalogue_prints_as_the_code_that_makes_it(names):
    for case in CATALOGUE:
        for word in (*case.actions, *(() if case.observes else case.expected)):
            assert same(eval(repr(word), names), word), (case.id, word)


def test_random_scripts_print_as_the_code_that_makes_them(names):
    for case in random_cases(100):
        for word in (*case.actions, *case.expected):
            assert same(eval(repr(word), names), word)


@pytest.mark.parametrize("event", [event for event in ODD if event.__class__ is not RdmsrExit])
def test_odd_events_print_as_the_code_that_makes_them(names, event):
    assert same(eval(repr(event), names), event)


PRINTED = {
    "default_allow().deny(Msr.STAR).allow(Msr.IA32_TSC, access=READ).hole()": (
        default_allow().deny(0xC0000081).allow(0x10, access=1).hole()
    ),
    "default_deny().hole(2).deny(0x5, 0x6)": MsrFilter(1).hole(2).deny(5, 6),
    "MsrFilter(0x2).range(0x100, 0x1, Pointer.NULL, 0x4)": (
        MsrFilter(2).range(0x100, 1, Pointer.NULL, 4)
    ),
    "default_allow().range(0x100, 0x41, bitmap_of(0x80, [0x0, *range(0x3, 0x41)]), READ)": (
        default_allow().range(0x100, 65, bitmap_of(65, [0, *range(3, 65)]), 1)
    ),
    "default_allow().range(0x100, 0x3000, b'\\xff' * 0x600)": (
        default_allow().range(0x100, 0x3000, b"\xff" * 0x600)
    ),
    "default_allow().range(0x100, 0x1, AtEdge(b'\\x01'))": (
        default_allow().range(0x100, 1, AtEdge(b"\1"))
    ),
    "default_deny().slot(MsrRange(READ_WRITE, 0x100, 0x9, b'\\x01')).deny(0x5)": (
        MsrFilter(1, (MsrRange(3, 0x100, 9, b"\1"),)).deny(5)
    ),
}


@pytest.mark.parametrize("printed", PRINTED)
def test_a_filter_prints_as_the_calls_that_build_it(names, printed):
    assert repr(PRINTED[printed]) == printed
    assert eval(printed, names) == PRINTED[printed]


def test_no_bitmap_is_longer_in_print_than_its_digits():
    noise = default_allow().range(0, 0x3000, Random(1).randbytes(0x600))
    assert len(repr(noise)) < 2 * 0x600 + 100
    steps = default_allow().range(0, 0x3000, bitmap_of(0x3000, range(0, 0x3000, 0x1000)))
    assert len(repr(steps)) < 100
