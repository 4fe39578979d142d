"""vCPUs that sleep in KVM_RUN: whatever ends a script, they come back."""

import pytest

from vmm.conformance.language.script import (
    HALTED,
    INIT_RECEIVED,
    await_sipi,
    blocked,
    create_irqchip,
    create_vcpu,
    done,
    interrupted,
    never,
    set_mp_state,
    sleep,
    wake,
)

SETUP = (create_irqchip(), create_vcpu(0), create_vcpu(1))


@pytest.fixture(autouse=True)
def _needs_an_irqchip(backend):
    if reason := backend.lacks("irqchip") or backend.lacks("task_syscall"):
        pytest.skip(reason)


@pytest.mark.parametrize("state", [HALTED, INIT_RECEIVED])
def test_a_sleeper_that_nobody_wakes_is_woken_at_the_end(backend, state):
    for _ in range(2):
        trace = backend.run((*SETUP, set_mp_state(state, 1), sleep(1)))
        assert trace == (done, done, done, done, blocked)


def test_who_gets_no_sipi_is_not_started_and_can_still_be_woken(backend):
    waits = (set_mp_state(INIT_RECEIVED, 1), sleep(1))
    trace = backend.run((*SETUP, *waits, await_sipi(1), wake(1), *waits))
    assert trace[4:] == (blocked, never, interrupted, done, blocked)
