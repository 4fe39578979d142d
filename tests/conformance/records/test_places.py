"""Where records are written and read: no link is followed, nothing is waited for."""

import os
import shutil

import pytest

from vmm.conformance.records import places
from vmm.conformance.records.results import Results, ResultsError
from vmm.conformance.records.saved import load

HOST = {"release": "6.1"}
RUN = {"type": "run", "cases": 1, "catalogue": 1, "resumed": 0, "kernel_log": "watched"}


@pytest.fixture
def victim(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("dear")
    return victim


@pytest.mark.parametrize("resume", [False, True])
def test_no_link_in_the_directory_is_followed(tmp_path, victim, resume):
    (tmp_path / "o").mkdir()
    (tmp_path / "o/results.jsonl").symlink_to(victim)
    (tmp_path / "o/results.jsonl.old").symlink_to(victim)
    try:
        with Results(tmp_path / "o", HOST, resume=resume) as results:
            results.write(RUN)
    except ResultsError as error:
        assert resume and "symbolic link" in str(error)
    assert victim.read_text() == "dear"
    assert resume or not (tmp_path / "o/results.jsonl").is_symlink()


def test_no_link_is_taken_for_the_directory_or_its_lock(tmp_path, victim):
    (tmp_path / "o").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "o")
    with pytest.raises(ResultsError, match="symbolic link"):
        Results(tmp_path / "link", HOST)
    (tmp_path / "o/lock").symlink_to(tmp_path / "made")
    with pytest.raises(ResultsError, match="cannot write to the output directory"):
        Results(tmp_path / "o", HOST)
    assert not (tmp_path / "made").exists()


def test_the_directory_is_the_one_that_was_opened(tmp_path, victim):
    with places.directory(tmp_path / "o") as held:
        (tmp_path / "o").rename(tmp_path / "away")
        (tmp_path / "o").symlink_to(tmp_path)
        os.close(places.create("victim", held))
    assert victim.read_text() == "dear" and (tmp_path / "away/victim").exists()


def test_a_text_replaces_a_link_and_not_what_it_leads_to(tmp_path, victim):
    (tmp_path / "page").symlink_to(victim)
    places.write_new(tmp_path / "page", "new \ud800")
    assert (victim.read_text(), (tmp_path / "page").read_text()) == ("dear", r"new \ud800")


def test_a_directory_that_disappears_is_said(tmp_path):
    with Results(tmp_path / "o", HOST) as results:
        results.write(RUN)
        assert results.where == f"the records are in {tmp_path}/o/results.jsonl"
        shutil.rmtree(tmp_path / "o")
        with pytest.raises(ResultsError, match="has been removed while"):
            results.write(RUN)
        assert results.where == "the records are lost"


def test_a_flood_of_records_ends_at_its_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(places, "MOST", 1 << 20)
    with (
        Results(tmp_path / "o", HOST) as results,
        pytest.raises(ResultsError, match="more than 1 MiB"),
    ):
        for _ in range(1 << 14):
            results.write(RUN)
    assert (tmp_path / "o/results.jsonl").stat().st_size <= 1 << 20
    with Results(tmp_path / "o", HOST, resume=True) as results, pytest.raises(ResultsError):
        for _ in range(1 << 4):
            results.write({**RUN, "kernel_log": "x" * (1 << 16)})


def test_what_is_no_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with (tmp_path / "sparse").open("w") as file:
        file.truncate(10 << 30)
    for place, why in (("fifo", "regular"), ("sparse", "larger than 64 MiB")):
        with pytest.raises(ResultsError, match=why):
            load(tmp_path / place)
    with pytest.raises(ResultsError, match="regular"):
        load(places.Path("/dev/zero"))
    (tmp_path / "o").mkdir()
    os.mkfifo(tmp_path / "o/results.jsonl")
    with pytest.raises(ResultsError, match="regular"):
        Results(tmp_path / "o", HOST, resume=True)
