from vmm.lab import initramfs, machine, matrix
from vmm.lab.errors import LabError
from vmm.lab.kernels import Kernel
from vmm.lab.machine import LabResult, Outcome


def cell(tmp_path, release, vendor):
    return matrix.Cell(Kernel(release, release, tmp_path), vendor, tmp_path / f"{release}-{vendor}")


def pretend(kernel, vendor, argv, *, on_line, timeout):
    """Stands for a boot: what is tested is the bookkeeping round it, in real processes."""
    if vendor == "vmx":
        return LabResult(Outcome.HANG, None, (), ("stuck",), None, timeout, "bochs", 2, "hung")
    on_line(f"{kernel.release} {' '.join(argv)}")
    return LabResult(Outcome.DONE, 0, (), ("tail",), 1.0, 2.0, "qemu")


def run(cells, monkeypatch, **options):
    monkeypatch.setattr(machine, "boot", pretend)
    monkeypatch.setattr(initramfs, "base", lambda: b"")
    seen = []
    matrix.run(cells, ["check"], on_cell=seen.append, timeout=5.0, jobs=2, **options)
    return seen


def test_a_kernel_that_cannot_be_had_does_not_stop_the_rest(tmp_path):
    missing = []
    wish = str(tmp_path / "no-such-kernel")
    assert matrix.cells([wish], ["svm"], tmp_path, lambda *why: missing.append(why)) == []
    assert missing[0][0] == wish
    assert "no kernel" in str(missing[0][1])


def test_every_cell_keeps_what_it_said(tmp_path, monkeypatch):
    cells = [cell(tmp_path, release, vendor) for release in "ab" for vendor in ("svm", "vmx")]
    seen = run(cells, monkeypatch)
    assert sorted(c.directory.name for c in seen) == ["a-svm", "a-vmx", "b-svm", "b-vmx"]
    assert (tmp_path / "b-svm/results.jsonl").read_text() == "b check\n"
    assert (tmp_path / "a-vmx/console.txt").read_text() == "stuck"
    assert cells[1].summary["outcome"] == "hang"
    assert cells[1].summary["reason"] == "hung"
    assert cells[0].summary["kernel"] == "a"


def test_resume_boots_only_what_is_unfinished(tmp_path, monkeypatch):
    cells = [cell(tmp_path, release, "svm") for release in "abc"]
    run(cells[:2], monkeypatch)
    (tmp_path / "a-svm/results.jsonl").write_text("kept")
    (tmp_path / "b-svm/lab.json").write_text("{cut o")
    assert len(run(cells, monkeypatch, resume=True)) == 3
    assert (tmp_path / "a-svm/results.jsonl").read_text() == "kept"
    assert (tmp_path / "b-svm/results.jsonl").read_text() == "b check\n"


def test_an_error_ends_the_run_as_itself(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise LabError("no qemu here")

    monkeypatch.setattr(machine, "boot", refuse)
    monkeypatch.setattr(initramfs, "base", lambda: b"")
    try:
        matrix.run([cell(tmp_path, "a", "svm")], [], on_cell=print)
    except LabError as error:
        assert str(error) == "no qemu here"
    else:
        raise AssertionError("the error was swallowed")
