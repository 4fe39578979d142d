import os
import time

import psutil
import pytest

from vmm.errors import KvmError

pytest_plugins = ["side_by_side"]


def why_no_kvm() -> str | None:
    from vmm.kvm import Kvm

    try:
        with Kvm() as kvm, kvm.create_vm():
            return None
    except KvmError as error:
        return f"no usable /dev/kvm: {error}"


@pytest.fixture(scope="session")
def has_kvm() -> None:
    """Skip, with the reason, where there is no /dev/kvm; MSRWARD_REQUIRE_KVM=1 makes it fail."""
    reason = why_no_kvm()
    if reason and os.environ.get("MSRWARD_REQUIRE_KVM") == "1":
        pytest.fail(f"MSRWARD_REQUIRE_KVM=1, but {reason}")
    if reason:
        pytest.skip(reason)


@pytest.fixture
def kvm(has_kvm):
    from vmm.kvm import Kvm

    with Kvm() as opened:
        yield opened


@pytest.fixture
def vm(kvm):
    with kvm.create_vm() as made:
        yield made


@pytest.fixture
def backend(has_kvm):
    from vmm.conformance.kernel.backend import KvmBackend

    with KvmBackend() as opened:
        yield opened


@pytest.fixture(scope="session")
def has_userfaultfd() -> None:
    """Skip, with the reason, where this process may not stop the kernel at a missing page."""
    from vmm.uffd import Userfaultfd

    try:
        Userfaultfd().close()
    except KvmError as error:
        pytest.skip(f"no userfaultfd: {error}")


@pytest.fixture
def nothing_left():
    """Nothing of a run may survive it: no thread, descriptor or child."""
    me = psutil.Process()
    before = me.num_threads(), me.num_fds(), me.children()
    yield
    # A joined thread is gone for Python a moment before it is gone for the kernel.
    end = time.monotonic() + 5
    while (me.num_threads(), me.num_fds(), me.children()) != before and time.monotonic() < end:
        os.sched_yield()
    assert (me.num_threads(), me.num_fds(), me.children()) == before
