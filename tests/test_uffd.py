import ctypes
import os
import threading

import pytest

from vmm.errors import Closed, KvmError
from vmm.memory import PAGE, Mapping
from vmm.uffd import Userfaultfd


@pytest.fixture
def uffd(has_userfaultfd):
    with Userfaultfd() as opened:
        yield opened


def reader(mapping, seen):
    """Return a thread that reads the first byte of ``mapping`` without holding the GIL."""
    write, read = os.pipe()[::-1]

    def run():
        # write(2) faults inside the kernel, as an ioctl that copies from the user does.
        ctypes.CDLL(None).write(write, ctypes.c_void_p(mapping.address), 1)
        seen.append(os.read(read, 1))
        os.close(read)
        os.close(write)

    return threading.Thread(target=run, daemon=True)


def test_who_reads_a_missing_page_waits_until_it_is_given(uffd):
    with Mapping(PAGE) as mapping:
        uffd.watch(mapping)
        seen: list[bytes] = []
        thread = reader(mapping, seen)
        assert uffd.read() is None
        thread.start()
        uffd.wait(10)
        assert uffd.read() == mapping.address
        assert thread.is_alive() and not seen
        uffd.give(mapping.address, b"Z")
        thread.join(10)
        assert seen == [b"Z"]


def test_a_page_is_given_once(uffd):
    with Mapping(PAGE) as mapping:
        uffd.watch(mapping)
        uffd.give(mapping.address)
        with pytest.raises(KvmError, match="UFFDIO_COPY"):
            uffd.give(mapping.address)
        uffd.wake(mapping.address)


def test_it_also_ends_for_another_descriptor(uffd):
    read, write = os.pipe()
    os.write(write, b"x")
    uffd.wait(10, read)
    assert uffd.read() is None
    os.close(read)
    os.close(write)


def test_what_cannot_be_watched_is_refused(uffd):
    with Mapping(PAGE) as mapping:
        mapping.address = 1 << 63
        with pytest.raises(KvmError, match="UFFDIO_REGISTER"):
            uffd.watch(mapping)
    with pytest.raises(Closed):
        uffd.watch(mapping)
    with pytest.raises(TypeError, match="Mapping"):
        uffd.watch(PAGE)
