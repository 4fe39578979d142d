"""How many workers are started where nobody says: CPUs, the cgroup's quota, and 16 bound it."""

import os

import pytest

from vmm.conformance.host.cpus import MOST, default_jobs


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """What makes a host of some CPUs and cgroup files and asks it."""

    def ask(cpus: int, cgroup: str = "", **files: str) -> int:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cpus)))
        (tmp_path / "self").write_text(cgroup)
        for name, text in files.items():
            path = tmp_path / "top" / name.replace("__", "/").replace("_dot_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return default_jobs(tmp_path / "self", tmp_path / "top")

    return ask


@pytest.mark.parametrize(("cpus", "least"), [(1, 1), (2, 2), (16, 16), (17, MOST), (200, MOST)])
def test_the_cpus_bound_it_and_sixteen_do(jobs, cpus, least):
    assert jobs(cpus) == least


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("1000 100000", 1), ("x", 8)],
)
def test_the_quota_of_version_2(jobs, quota, expected):
    assert jobs(8, "0::/a/b\n", a__b__cpu_dot_max=quota) == expected


def test_a_quota_further_up_counts(jobs):
    assert jobs(8, "0::/a/b\n", a__b__cpu_dot_max="max 100000", a__cpu_dot_max="300000 100000") == 3


@pytest.mark.parametrize(("quota", "expected"), [("-1", 8), ("250000", 3), ("50000", 1)])
def test_the_quota_of_version_1(jobs, quota, expected):
    cgroup = "3:memory:/m\n1:cpu,cpuacct:/c\n"
    files = {"cpu,cpuacct__c__cpu_dot_cfs_quota_us": quota}
    files["cpu,cpuacct__c__cpu_dot_cfs_period_us"] = "100000"
    assert jobs(8, cgroup, **files) == expected


def test_this_host_carries_some():
    assert 1 <= default_jobs() <= min(MOST, len(os.sched_getaffinity(0)))
