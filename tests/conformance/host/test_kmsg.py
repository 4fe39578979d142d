"""How /dev/kmsg is read: what counts, what is lost, and what a log that cannot be read says."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kernel_lines import SPLATS

from vmm.conformance.host import klog
from vmm.conformance.host.klog import KernelLog, kernel_message


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("4,120,307,-;text; with, marks", (120, "text; with, marks")),
        ("6,1,0,-,caller=T4711;x", (1, "x")),
        ("4,2,0,c;", (2, "")),
        ("12,3,0,-;BUG: KASAN: says userspace", (3, "")),
        ("4,4,0,-;a\\x0ab \\x5c c", (4, "a\nb \\ c")),
        (" SUBSYSTEM=acpi", None),
        (" 4,5,0,-;x", None),
        ("", None),
        ("no record", None),
        ("a,b,c,-;x", None),
        ("4;x", None),
        ("4,5,0,-", None),
    ],
)
def test_a_kmsg_record(record: str, message: tuple[int, str] | None) -> None:
    assert kernel_message(record) == message


def records(lines: list[str], first: int = 0, prio: int = 4) -> bytes:
    return "".join(f"{prio},{first + n},99,-;{line}\n" for n, line in enumerate(lines)).encode()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(klog, "SETTLE_SECONDS", 0.0)


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[tuple[KernelLog, Callable[[bytes], object]]]:
    path = tmp_path / "kmsg"
    os.mkfifo(path)
    with KernelLog(str(path)) as log:
        writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        yield log, lambda data: os.write(writer, data)
        os.close(writer)


Pipe = tuple[KernelLog, Callable[[bytes], object]]


def test_only_what_comes_after_opening_counts(tmp_path: Path) -> None:
    path = tmp_path / "kmsg"
    path.write_bytes(records(SPLATS["kasan"][1]))
    with KernelLog(str(path)) as log, KernelLog(str(path), from_start=True) as whole:
        assert log.poll() == []
        assert [found.kind for found in whole.poll()] == ["KASAN"]
        with path.open("ab") as more:
            more.write(records(SPLATS["warn"][1], 50))
        assert [found.kind for found in log.poll()] == ["WARN"]
        assert log.poll() == []


def test_a_pipe_without_news_does_not_block(pipe: Pipe) -> None:
    assert pipe[0].poll() == []


def test_records_cut_anywhere_are_put_together(pipe: Pipe) -> None:
    log, write = pipe
    data = records(SPLATS["rcu_usage"][1])
    for begin in range(0, len(data), 7):
        write(data[begin : begin + 7])
        log._fill()
    (found,) = log.poll()
    assert list(found.lines) == SPLATS["rcu_usage"][1]
    assert log.lost == 0


def test_a_splat_still_being_printed_is_waited_for(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, write = pipe
    lines = SPLATS["warn"][1]
    write(records(lines[:2]))
    monkeypatch.setattr(klog.time, "sleep", lambda _: write(records(lines[2:], 2)))
    (found,) = log.poll()
    assert list(found.lines) == lines


def test_userspace_cannot_convict(pipe: Pipe) -> None:
    log, write = pipe
    for facility in (1, 2, 3, 23):
        write(records(SPLATS["kasan"][1], prio=facility << 3 | 4))
    assert log.poll() == []


def test_userspace_between_the_lines_of_a_splat_is_left_out(pipe: Pipe) -> None:
    log, write = pipe
    lines = SPLATS["kasan"][1]
    write(records(lines[:2]) + b"12,2,0,-;forged by task x/1\n" + records(lines[2:], 3))
    (found,) = log.poll()
    assert "forged" not in "".join(found.lines)
    assert found.pids == SPLATS["kasan"][2]


def test_continuation_lines_are_no_messages(pipe: Pipe) -> None:
    log, write = pipe
    write(
        b"6,1,0,-;acpi: ready\n SUBSYSTEM=acpi\n DEVICE=BUG: KASAN: \n4,2,0,-;BUG: KASAN: x\n K=v\n"
    )
    (found,) = log.poll()
    assert found.lines == ("BUG: KASAN: x",)


def test_a_gap_in_the_sequence_is_counted_as_lost(pipe: Pipe) -> None:
    log, write = pipe
    write(b"6,10,0,-;a\n6,11,0,-;b\n6,15,0,-;c\n")
    log.poll()
    assert log.lost == 3


def reads(monkeypatch: pytest.MonkeyPatch, *answers: bytes | int) -> None:
    """Let os.read answer bytes, or fail with an errno; EAGAIN ever after."""
    script = iter(answers)

    def read(_fd: int, _size: int) -> bytes:
        answer = next(script, errno.EAGAIN)
        if isinstance(answer, int):
            raise OSError(answer, os.strerror(answer))
        return answer

    monkeypatch.setattr(klog.os, "read", read)


@pytest.mark.parametrize("error", [errno.EPIPE, errno.EINVAL])
def test_overwritten_records_are_lost_and_reading_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    (tmp_path / "kmsg").touch()
    with KernelLog(str(tmp_path / "kmsg")) as log:
        reads(monkeypatch, b"6,10,0,-;a\n", error, b"4,14,0,-;BUG: KASAN: x\n")
        assert [found.kind for found in log.poll()] == ["KASAN"]
        assert log.lost == 3


def test_a_loss_before_the_first_record_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kmsg").touch()
    with KernelLog(str(tmp_path / "kmsg")) as log:
        reads(monkeypatch, errno.EPIPE, b"6,10,0,-;a\n")
        assert log.poll() == []
        assert log.lost == 1


def test_a_flood_does_not_hold_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kmsg").touch()
    monkeypatch.setattr(klog, "_MAX_READS", 50)
    with KernelLog(str(tmp_path / "kmsg")) as log:
        monkeypatch.setattr(klog.os, "read", lambda *_: b"6,1,0,-;again\n")
        assert log.poll() == []


def test_another_error_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kmsg").touch()
    with KernelLog(str(tmp_path / "kmsg")) as log:
        reads(monkeypatch, errno.EIO)
        with pytest.raises(OSError, match="Input/output"):
            log.poll()


def test_a_reason_instead_of_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent, hint = tmp_path / "kmsg", " (pass this container the device /dev/kmsg)"
    assert KernelLog.open_or_reason(str(absent)) == f"{absent}: No such file or directory{hint}"
    assert KernelLog.open_or_reason("/dev/null") == f"/dev/null: not the kernel log{hint}"
    assert KernelLog.open_or_reason(str(tmp_path)) == f"{tmp_path}: not the kernel log{hint}"

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(klog.os, "open", refuse)
    reason = KernelLog.open_or_reason()
    assert reason == ("/dev/kmsg: Operation not permitted (kernel.dmesg_restrict: needs root)")


def test_a_refused_read_is_a_reason_and_leaves_no_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kmsg").touch()
    closed: list[int] = []
    close = os.close
    monkeypatch.setattr(klog.os, "close", lambda fd: (closed.append(fd), close(fd)))
    reads(monkeypatch, errno.EPERM)
    assert "not permitted" in str(KernelLog.open_or_reason(str(tmp_path / "kmsg")))
    assert len(closed) == 1


def test_a_log_that_opens_keeps_what_it_read_while_opening(tmp_path: Path) -> None:
    path = tmp_path / "kmsg"
    path.touch()
    log = KernelLog.open_or_reason(str(path))
    assert isinstance(log, KernelLog)
    with log:
        path.write_bytes(records(SPLATS["kmemleak"][1]))
        log._fill()
        assert [found.kind for found in log.poll()] == ["kmemleak"]


def test_closing_twice_is_harmless(tmp_path: Path) -> None:
    (tmp_path / "kmsg").touch()
    log = KernelLog(str(tmp_path / "kmsg"))
    log.close()
    log.close()


def test_the_log_of_this_host_has_no_splats() -> None:
    """A splat here is either a false alarm of ours or a kernel worth a look: both deserve red."""
    watch = KernelLog.open_or_reason()
    if isinstance(watch, str):
        pytest.skip(watch)
    watch.close()
    with KernelLog(from_start=True) as log:
        found = log.poll()
        assert log._next_seq is not None, "the kernel log is empty"
    # A busy host, or whoever holds a task of ours in a debugger, makes these with a good kernel.
    found = [each for each in found if each.kind not in ("hung task", "soft lockup", "RCU stall")]
    assert not found, "\n".join(line for splat in found for line in splat.lines)
