"""What ``--jobs`` promises: files run at once, each reports as ever, and nothing outlives a run."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from dask_here import wait_for

HERE = Path(__file__).parent
CONFTEST = "pytest_plugins = ['side_by_side']\n"


@pytest.fixture
def start(tmp_path):
    """Start pytest on files of tests, with two of them at a time unless other words say so."""
    started = []

    def start(*words, **files):
        (tmp_path / "conftest.py").write_text(CONFTEST)
        for name, text in files.items():
            (tmp_path / f"test_{name}.py").write_text(text)
        command = [sys.executable, "-P", "-m", "pytest", "--jobs=2", "--strict-markers", "-ra"]
        started.append(
            subprocess.Popen(
                [*command, *words],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": str(HERE), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return started[-1]

    yield start
    for each in started:
        each.kill()
        each.communicate()


@pytest.fixture
def run(start):
    """Run that, and return the status and what was printed."""

    def run(*words, **files):
        process = start(*words, **files)
        said, _ = process.communicate(timeout=60)
        return process.returncode, said

    return run


def last(said):
    return re.sub(r" in .*", "", said.splitlines()[-1].strip("= "))


MEETS = (
    "def test_it():\n    with open('fifo', '{}'):\n        pass  # the other one has opened it\n"
)


def test_two_files_run_at_once(run, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    status, said = run(a=MEETS.format("r"), b=MEETS.format("w"))
    assert (status, last(said)) == (0, "2 passed"), said


MIXED = """
import pytest, sys, warnings
def test_passes(): pass
def test_skips(): pytest.skip("no moon")
def test_fails():
    print("it was here")
    assert 1 + 1 == 3
def test_warns(): warnings.warn("beware", UserWarning)
@pytest.mark.xfail(reason="known")
def test_xfails(): assert 0
@pytest.fixture
def bad():
    yield
    raise ValueError("no way down")
def test_errs(bad): pass
"""


@pytest.mark.parametrize("words", [(), ("-v",), ("-q",)])
def test_the_summary_is_that_of_one_process(run, words):
    """But for the order of the files and the seconds."""
    files = {"a": MIXED, "b": MIXED, "c": "def test_c(): pass"}
    (status, said), (alone, one) = run(*words, **files), run(*words, "--jobs=1", **files)
    assert (status, alone) == (1, 1)
    assert last(said) == last(one) and "2 failed, 7 passed, 2 skipped, 2 xfailed" in last(said)
    for part in ("it was here", "no moon", "beware", "no way down", "assert (1 + 1) == 3"):
        assert said.count(part) == one.count(part) > 0, part
    assert set(summary(said)) == set(summary(one))


def summary(said):
    return [line for line in said.splitlines() if re.match("(FAILED|ERROR|SKIPPED|XFAIL) ", line)]


ALONE = """
import os, pytest
from pathlib import Path
def test_beside(): Path(f"beside.{__name__}").touch()
@pytest.mark.alone("it looks at what others leave")
def test_alone():
    assert len([*Path().glob("beside.*")]) == 3
    Path("alone").touch()  # of two, the second may not be there before the first is gone
    Path("alone").unlink()
"""


def test_what_is_alone_comes_after_the_rest(run):
    status, said = run(a=ALONE, b=ALONE, c=ALONE)
    assert (status, last(said)) == (0, "6 passed"), said


@pytest.mark.parametrize(
    ("marker", "status", "why"), [("lonely", 2, "'lonely' not found"), ("alone", 4, "and why?")]
)
def test_a_marker_of_another_name_or_without_a_reason_is_an_error(run, marker, status, why):
    seen = run(a=f"import pytest\n@pytest.mark.{marker}\ndef test_it(): pass")
    assert seen[0] == status and why in seen[1]


WHO = "import os\ndef test_it(): open(f'who.{os.getpid()}', 'w').close()\n"


@pytest.mark.parametrize(
    ("words", "processes"),
    [
        ((), 2),
        (("--jobs=1",), 1),
        (("-s",), 1),
        (("--setup-show",), 1),
        (("test_a.py",), 1),
        (("-k", "test_b"), 1),
    ],
)
def test_one_file_or_somebody_who_looks_on_is_one_process(start, tmp_path, words, processes):
    process = start(*words, a=WHO, b=WHO)
    process.communicate(timeout=60)
    assert process.returncode == 0
    who = {each.name for each in tmp_path.glob("who.*")}
    assert len(who) == processes and (f"who.{process.pid}" in who) == (processes == 1)


FAILS = "def test_1(): assert 0\ndef test_2(): assert 0\n"


def test_maxfail_and_last_failed(run):
    status, said = run("-x", "--jobs=2", a=FAILS, b=WAITS.format(name="b"))
    assert status == 1 and "1 failed" in last(said) and "stopping after 1 failures" in said
    status, said = run("--lf", a=FAILS, b=WAITS.format(name="b"))
    assert (status, last(said)) == (1, "1 failed"), said


WAITS = """
import pytest, signal
from pathlib import Path
def test_before(): pass
@pytest.fixture
def left():
    yield
    Path("down.{name}").touch()
def test_it(left):
    Path("began.{name}").touch()  # not in the fixture: it must stand by then
    while True:
        signal.pause()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_outlives_it_and_fixtures_come_down(start, tmp_path, number):
    process = start(a=WAITS.format(name="a"), b=WAITS.format(name="b"))
    wait_for(lambda: len([*tmp_path.glob("began.*")]) == 2)
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)  # until all have closed its stdout
    assert len([*tmp_path.glob("down.*")]) == 2
    if number == signal.SIGINT:
        assert process.returncode == 2 and "KeyboardInterrupt" in said, said
        assert last(said).startswith("2 passed"), "what had ended by then counts"


TAKES_IT = """
import signal, time
from pathlib import Path
def test_1():
    try:
        Path("began." + __name__).touch()
        while True:
            signal.pause()
    except KeyboardInterrupt:
        pass
    time.sleep({after})
def test_2():
    signal.pause()
"""


def test_an_interrupt_that_the_tested_code_takes_ends_the_run_as_well(start, tmp_path):
    """Once: the first file's end, which comes while the second is still at it, tells it nothing."""
    process = start(a=TAKES_IT.format(after=0), b=TAKES_IT.format(after=1))
    wait_for(lambda: len([*tmp_path.glob("began.*")]) == 2)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 2 and last(said).startswith("2 passed"), said


DIES = """
import os, signal
def test_1(): pass
def test_2(): os.kill(os.getpid(), signal.SIGKILL)
def test_3(): pass
"""


def test_who_is_killed_fails_and_so_does_what_came_after(run):
    status, said = run(a=DIES, b="def test_it(): pass", c="def test_it(): pass")
    assert (status, last(said)) == (1, "2 failed, 3 passed"), said
    assert said.count("its process was ended by SIGKILL") >= 2


def test_an_interrupt_in_a_test_is_its_failure(run):
    text = "import os, signal\ndef test_it(): os.kill(os.getpid(), signal.SIGINT)\n"
    status, said = run(a=text, b="def test_it(): pass")
    assert (status, last(said)) == (1, "1 failed, 1 passed") and "KeyboardInterrupt" in said


def test_the_dearest_are_there():
    import side_by_side

    assert set(side_by_side.DEAREST) <= {each.name for each in HERE.rglob("test_*.py")}
