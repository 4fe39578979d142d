"""The results on disk: whole lines, resumed, refused where they are damaged or another's."""

import errno
import fcntl
import json
import os

import pytest
from recorded import case_record

from vmm.conformance.records.results import FILE, Held, Results, ResultsError, default_directory

pytestmark = pytest.mark.usefixtures("nothing_left")

HOST = {"release": "6.1.0", "version": "#1", "hostname": "here", "cpu_model": "a CPU"}


def write(directory, *names, host=HOST):
    with Results(directory, host) as results:
        for name in names:
            results.write(case_record(name))


def test_each_record_is_one_line_with_schema_and_host(tmp_path):
    write(tmp_path, "a", "b")
    lines = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert [line["id"] for line in lines] == ["a", "b"]
    assert all((line["schema"], line["host"]) == (1, HOST) for line in lines)


def test_lines_are_on_disk_before_the_file_is_closed(tmp_path):
    with Results(tmp_path, HOST) as results:
        line = results.write(case_record("a"))
        assert (tmp_path / FILE).read_text() == line


def test_an_earlier_file_is_kept_as_old(tmp_path):
    write(tmp_path, "a")
    write(tmp_path, "b")
    assert '"a"' in (tmp_path / (FILE + ".old")).read_text()
    assert '"a"' not in (tmp_path / FILE).read_text()


def test_resume_knows_what_is_recorded_and_drops_a_line_cut_short(tmp_path):
    write(tmp_path, "a", "b")
    whole = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole[:-7])
    with Results(tmp_path, HOST, resume=True) as results:
        assert set(results.recorded) == {"a"}
        results.write(case_record("b"))
    assert (tmp_path / FILE).read_bytes() == whole
    assert not (tmp_path / (FILE + ".old")).exists()


def test_resume_of_nothing_starts_anew(tmp_path):
    with Results(tmp_path / "new", HOST, resume=True) as results:
        assert not results.recorded


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (b"not json\n", "line 2"),
        (b"\xff\xfe\n", "line 2"),
        (b'{"schema": 9, "type": "case"}\n', "schema '9'"),
        (b'{"schema": 1, "type": "case", "host": {}}\n', "verdict is missing"),
        (b'{"schema": 1, "type": "end"}\n', "seconds is missing"),
        (b"[]\n", "not a record"),
    ],
)
def test_a_damaged_file_is_refused_and_left_alone(tmp_path, damage, why):
    write(tmp_path, "a")
    with (tmp_path / FILE).open("ab") as file:
        file.write(damage)
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(ResultsError, match=why):
        Results(tmp_path, HOST, resume=True)
    assert (tmp_path / FILE).read_bytes() == before


@pytest.mark.parametrize("fact", ["release", "hostname", "vendor_module"])
def test_results_of_another_kernel_or_host_are_not_continued(tmp_path, fact):
    write(tmp_path, "a")
    with pytest.raises(ResultsError, match=f"another kernel or host .{fact}"):
        Results(tmp_path, {**HOST, fact: "other"}, resume=True)
    assert (tmp_path / FILE).exists()


def test_one_run_at_a_time(tmp_path):
    with Results(tmp_path, HOST), pytest.raises(Held, match="in use by another run"):
        Results(tmp_path, HOST)
    write(tmp_path, "a")  # free again


def without_locks(monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_where_nothing_can_be_locked_no_other_run_is_blamed(tmp_path, monkeypatch):
    """NFS without its lock daemon."""
    without_locks(monkeypatch)
    with pytest.raises(ResultsError, match=r"No locks available\); give a dir") as error:
        Results(tmp_path, HOST)
    assert not isinstance(error.value, Held)


def test_the_default_directory_steps_aside_for_a_run_that_has_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with Results.open_default(HOST) as first, Results.open_default(HOST) as second:
        assert first.directory == default_directory() == tmp_path / "msrward" / "latest"
        assert second.directory.name == f"latest-{os.getpid()}"


def test_an_unwritable_directory_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match=r"cannot write to .*file/dir: Not a directory"):
        Results(tmp_path / "file" / "dir", HOST)
