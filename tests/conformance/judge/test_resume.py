"""Whatever ends a run, however often: gone on with, it is what one undisturbed run would be."""

import json
import os
import random
import signal
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import pytest

from vmm.conformance.host import facts
from vmm.conformance.judge.check import Trouble, check
from vmm.conformance.judge.recording import Options
from vmm.conformance.language.case import OBSERVE, Case
from vmm.conformance.language.script import Got, get_msr, got
from vmm.conformance.records.results import FILE
from vmm.conformance.records.saved import load
from vmm.conformance.records.summary import count
from vmm.conformance.records.verdict import Verdict
from vmm.conformance.report.view import View

GOOD, WRONG, BROKEN, LACKING, SEEN = range(5)
DOING = [GOOD, WRONG, GOOD, BROKEN, SEEN, LACKING, GOOD, WRONG, SEEN, GOOD] * 3


def case(number, doing):
    needs = ("what_is_lacking",) if doing == LACKING else ()
    trace = OBSERVE if doing == SEEN else (got(0),)
    return Case(f"t.{number:02}", "A sentence.", "R14", [get_msr(doing)], trace, needs)


CASES = [case(number, doing) for number, doing in enumerate(DOING)]


class Backend:
    """Answers as the case's MSR says; ``victims`` has who is judging."""

    def __init__(self, victims):
        self.victims = victims

    def run(self, script, *, expected=None):
        (self.victims / str(os.getpid())).touch()
        doing = script[0].index
        if doing == BROKEN:
            raise RuntimeError("broken")
        return (Got(7 if doing == WRONG else doing),)

    def lacks(self, need):
        return "it is not here"

    def close(self):
        pass


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Judge all cases in a process of its own, which ends as ``ends`` says when it can."""
    monkeypatch.setattr(facts, "facts", lambda: {"release": "6.6"})
    victims = tmp_path / "victims"
    victims.mkdir()

    def judged(out, resume):
        with open(os.devnull, "w") as null, redirect_stdout(null), redirect_stderr(null):
            how = Options(jobs=2, timeout=60.0)
            factory = lambda: Backend(victims)  # noqa: E731
            with suppress(Trouble):
                check(CASES, len(CASES), how, View(), directory=out, resume=resume, factory=factory)

    def run(out, *, resume=False, lines=None, worker=None, cut=0):
        """End it by SIGKILL once it has so many ``lines`` more; or one of its workers."""
        file = out / FILE
        already = written(file) if resume else 0
        for each in victims.iterdir():
            each.unlink()
        child = os.fork()
        if not child:
            with suppress(BaseException):
                judged(out, resume)
            os._exit(0)
        pidfd = os.pidfd_open(child)
        while not is_over(pidfd):
            if lines is not None and written(file) >= already + lines:
                os.kill(child, signal.SIGKILL)
            if worker is not None and written(file) >= already + worker:
                for each in sorted(victims.iterdir()):
                    with suppress(ProcessLookupError):
                        os.kill(int(each.name), signal.SIGKILL)
                worker = None
        os.close(pidfd)
        os.waitpid(child, 0)
        if cut and file.exists():
            with file.open("rb+") as cutting:
                cutting.truncate(max(0, file.stat().st_size - cut))

    return run


def is_over(pidfd):
    import select

    return bool(select.select([pidfd], [], [], 0.0005)[0])


def written(file):
    return file.read_bytes().count(b"\n") if file.exists() else 0


def verdicts(out):
    saved = load(out)
    assert saved.end, "it got to its end"
    return saved.end["counts"], {name: case["verdict"] for name, case in saved.cases.items()}


@pytest.mark.parametrize("seed", range(10))
def test_any_kills_and_then_a_resume_are_one_undisturbed_run(tmp_path, run, seed):
    random_ = random.Random(seed)
    run(tmp_path / "whole")
    whole = verdicts(tmp_path / "whole")
    assert whole[0] == {"PASS": 12, "FAIL": 6, "ERROR": 3, "SKIP": 3, "observed": 6}
    for number in range(random_.randint(1, 4)):
        at = random_.randrange(25)
        if random_.random() < 0.5:
            run(tmp_path / "o", resume=number > 0, lines=at, cut=random_.choice([0, 0, 7, 300]))
        else:
            run(tmp_path / "o", resume=number > 0, worker=at)
    run(tmp_path / "o", resume=True)
    assert verdicts(tmp_path / "o") == whole


def test_a_worker_that_was_killed_is_an_error_until_it_is_gone_on_with(tmp_path, run):
    while True:  # whom the signal meets between two cases has no record of it
        run(tmp_path / "o", worker=3)
        records = [json.loads(line) for line in (tmp_path / "o" / FILE).read_text().splitlines()]
        if any("died: Killed" in str(record.get("error")) for record in records):
            break
    run(tmp_path / "o", resume=True)
    run(tmp_path / "whole")
    assert verdicts(tmp_path / "o") == verdicts(tmp_path / "whole")


def rewritten(file: Path, change):
    records = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(change(record)) + "\n" for record in records))


def test_a_timeout_is_judged_again_and_its_evidence_kept(tmp_path, run):
    def hung(record):
        more = {"verdict": "TIMEOUT", "error": "killed at its deadline", "script": ["x"]}
        return {**record, **more} if record.get("id") == "t.00" else record

    run(tmp_path / "o")
    rewritten(tmp_path / "o" / FILE, hung)
    run(tmp_path / "o", resume=True)
    record = load(tmp_path / "o").cases["t.00"]
    assert (record["verdict"], record["first"]) == (Verdict.UNSTEADY, Verdict.TIMEOUT)
    assert record["again"]["verdict"] == "PASS"


def test_the_end_of_a_run_that_was_gone_on_with_is_not_the_end(tmp_path, run):
    run(tmp_path / "o")
    line = (tmp_path / "o" / FILE).read_text().splitlines(keepends=True)
    (tmp_path / "o" / FILE).write_text("".join([*line, line[0]]))
    saved = load(tmp_path / "o")
    assert not saved.end and saved.trouble == "the run did not get to its end"
    assert count(saved.cases.values())["PASS"] == 12
