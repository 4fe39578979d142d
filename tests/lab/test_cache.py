import errno
import fcntl
import multiprocessing
import os

import pytest

from vmm.lab import cache
from vmm.lab.errors import LabError


def write(text):
    def build(into):
        (into / "file").write_text(text)

    return build


def refuse(into):
    pytest.fail("an intact entry was built again")


def test_an_intact_entry_is_not_built_again(cache_root):
    made = cache.entry("kind", "key", write("content"))
    assert made == cache_root / "kind/key"
    assert cache.entry("kind", "key", refuse) == made


@pytest.mark.parametrize("damage", ["", "c0ntent", "content and more"])
def test_a_damaged_file_is_noticed_and_redone(cache_root, damage):
    made = cache.entry("kind", "key", write("content"))
    (made / "file").write_text(damage)
    assert not cache.intact(made)
    assert (cache.entry("kind", "key", write("content")) / "file").read_text() == "content"


@pytest.mark.parametrize("lost", ["file", cache.MANIFEST])
def test_a_missing_file_is_noticed_and_redone(cache_root, lost):
    made = cache.entry("kind", "key", write("content"))
    (made / lost).unlink()
    assert (cache.entry("kind", "key", write("again")) / "file").read_text() == "again"


def test_a_build_that_fails_leaves_nothing(cache_root):
    def fail(into):
        (into / "file").write_text("half")
        raise LabError("cut off")

    with pytest.raises(LabError, match="cut off"):
        cache.entry("kind", "key", fail)
    assert cache.entries("kind") == []
    assert list((cache_root / "kind").iterdir()) == []


def test_a_full_disk_is_one_line(cache_root):
    def fill(into):
        raise OSError(28, "No space left on device")

    with pytest.raises(LabError, match=r"no space left on device; free some space"):
        cache.entry("kind", "key", fill)


def _build_once(log, barrier):
    def build(into):
        with open(log, "a") as file:
            file.write("built\n")
        (into / "file").write_text("content")

    barrier.wait()
    cache.entry("kind", "key", build)


def test_two_runs_at_once_build_once(cache_root, tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    log = tmp_path / "log"
    runs = [context.Process(target=_build_once, args=(log, barrier)) for _ in range(4)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(30)
    assert [run.exitcode for run in runs] == [0] * 4
    assert log.read_text() == "built\n"


def test_clean_empties_the_cache(cache_root):
    cache.entry("kind", "key", write("content"))
    assert cache.clean() > len("content")
    assert list(cache_root.iterdir()) == []


def test_a_cache_in_use_is_not_emptied(cache_root):
    (cache_root / "kernels").mkdir(parents=True)
    with cache.in_use(), cache.in_use(), pytest.raises(LabError, match="another run uses"):
        cache.clean()
    assert (cache_root / "kernels").exists()
    cache.clean()
    assert not list(cache_root.iterdir())


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_cache_of_somebody_else_is_not_mended_by_more_space(cache_root, number):
    def fill(into):
        raise OSError(number, os.strerror(number))

    with pytest.raises(LabError, match="set MSRWARD_CACHE to a directory that you may") as caught:
        cache.entry("kind", "key", fill)
    assert "space" not in str(caught.value)


def test_where_nothing_can_be_locked_one_line_says_so(cache_root, monkeypatch):
    """NFS without its lock daemon."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(LabError, match="No locks available; set MSRWARD_CACHE"), cache.lock("x"):
        pass
