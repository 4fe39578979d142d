"""Cells for a real worker: their kernels go there as bytes, and what they leave comes back."""

import pytest
from dask_here import scheduler, wait_for, worker, workers_of

from vmm.conformance.judge.selection import Chosen
from vmm.conformance.language.case import Case
from vmm.lab.kernels.kernels import Kernel
from vmm.lab.runs import away, matrix
from vmm.lab.runs.order import Inner, Orders

CHOSEN = Chosen([Case("plumbing.x", "S.", "R01", (), ())], 1)
ORDERS = Orders(CHOSEN, Inner(), 5.0, executor="python")


@pytest.fixture
def kernel(tmp_path):
    (tmp_path / "bzImage").write_bytes(b"image")
    (tmp_path / "00-kvm.ko").write_bytes(b"module")
    return Kernel("mine", "6.6.6", tmp_path / "bzImage", (tmp_path / "00-kvm.ko",))


def test_a_kernel_arrives_as_it_was_sent(kernel, cache_root):
    parcel = away.Parcel.of(kernel)
    arrived = parcel.unpacked()
    assert (arrived.name, arrived.release) == ("mine", "6.6.6")
    assert arrived.image.read_bytes() == b"image"
    assert [path.name for path in arrived.modules] == ["00-kvm.ko"]
    assert arrived.modules[0].read_bytes() == b"module"
    assert cache_root in arrived.image.parents
    other = away.Parcel("mine", "6.6.6", (("vmlinuz", b"imagf"), parcel.files[1]))
    assert other.unpacked().image.read_bytes() == b"imagf", "one release, two builds"


def test_what_a_run_leaves_comes_back_under_the_name_that_it_has_here(
    kernel, cache_root, tmp_path, monkeypatch
):
    def judge(cell, order):
        """Stands for a boot."""
        cell.directory.mkdir()
        (cell.directory / "report.txt").write_text(f"records: {cell.directory}/results.jsonl")
        assert order.kernel.image.read_bytes() == b"image"
        return f"hung; the records are in {cell.directory}/results.jsonl"

    monkeypatch.setattr(matrix, "judge", judge)
    home = str(tmp_path / "out")
    order = ORDERS.of(kernel, "svm")
    came = away.judge_there(away.Parcel.of(kernel), order, "svm", "", home)
    assert came.trouble == f"hung; the records are in {home}/results.jsonl"
    assert came.files == (("report.txt", f"records: {home}/results.jsonl".encode()),)


def test_a_cell_that_a_worker_cannot_judge_says_why(kernel, tmp_path):
    pytest.importorskip("distributed", reason="distributed: pip install 'msrward[fleet]'")
    seen = {}
    cells = [matrix.Cell(kernel, vendor, tmp_path / vendor) for vendor in ("svm", "vmx")]
    with (
        scheduler(tmp_path) as (_, address),
        worker(address, MSRWARD_CACHE="/proc/nowhere") as _,
    ):
        wait_for(lambda: workers_of(address) == 1)
        with away.team(address) as team:
            told = lambda cell, trouble: seen.update({cell.vendor: trouble})  # noqa: E731
            matrix.run(cells, ORDERS, on_cell=told, team=team)
    assert sorted(seen) == ["svm", "vmx"]
    assert all("/proc/nowhere" in trouble for trouble in seen.values()), seen
