import subprocess

import pytest

from vmm.lab.search.bisect import Place


@pytest.fixture
def place(tmp_path):
    (tmp_path / "records").mkdir()
    return Place("svm", tmp_path / "records")


@pytest.fixture
def in_git(tmp_path):
    """An empty directory, and what runs git in it."""
    tree = tmp_path / "tree"
    tree.mkdir()

    def run(*arguments):
        identity = ("-c", "user.name=t", "-c", "user.email=t@localhost")
        done = subprocess.run(["git", "-C", tree, *identity, *arguments], capture_output=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode().strip()

    return tree, run
