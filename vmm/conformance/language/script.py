"""The language: a script is what host and guest do, in order; a trace is what was seen, in order.

Both are tuples of frozen values that print as the code that makes them. An access that goes to
userspace leaves two events, the exit and the outcome; every other action leaves one. Nothing here
runs anything: ``kernel`` and ``oracle`` give a script its meaning.

This module is the whole language: ``accesses``, ``actions``, ``events``, and the modules it takes
words from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from vmm.conformance.language.accesses import *
from vmm.conformance.language.actions import *
from vmm.conformance.language.effects import *
from vmm.conformance.language.events import *
from vmm.conformance.language.levels import *
from vmm.conformance.language.platform import *
from vmm.conformance.language.races import *
from vmm.conformance.language.shadows import *
from vmm.conformance.language.sweeps import *
from vmm.conformance.language.word import ANY as ANY
from vmm.exits import RdmsrExit as RdmsrExit
from vmm.exits import WrmsrExit as WrmsrExit
from vmm.msr import MsrExitReason

HostAction = (
    EnableCap
    | Install
    | ScribbleBitmaps
    | CheckExtension
    | GetMsr
    | SetMsr
    | CreateIrqchip
    | CreateVcpu
    | SetCpuid
    | SetCpuidBits
    | SendInit
    | GetMpState
    | SetMpState
    | SendSipi
    | FreshVm
    | WeighBitmaps
    | XenHvmConfig
    | GetHypercallPage
    | GetVcpuEvents
    | Rewrite
    | Inject
    | GetTaken
    | Sweep
    | Begin
    | GetRegs
    | SetRegs
    | Complete
    | Finish
)
"""What is done in the script's own thread, beside whole accesses."""
RaceAction = (
    BeginInstall
    | ResumeInstall
    | AwaitInstall
    | Meanwhile
    | AwaitMeanwhile
    | Park
    | Release
    | Spin
    | UntilExits
    | UntilRuns
    | StopSpin
    | Sleep
    | Wake
    | AwaitSipi
    | CloseVm
    | CloseVcpu
)
LevelAction = EnterL2 | LeaveL2 | SaveNested | RestoreNested | LeaveNested
Action = Access | Execute | HostAction | RaceAction | LevelAction
Script = tuple[Action, ...]
Event = (
    RdmsrExit
    | WrmsrExit
    | Done
    | Rejected
    | Refused
    | Got
    | Returned
    | Wrote
    | Fault
    | Regs
    | Swept
    | Executed
    | VcpuEvents
    | Taken
    | Interrupted
    | Unfiltered
    | Either
    | Whatever
    | InternalError
    | OtherExit
    | Lost
    | Stalled
    | Blocked
    | Parked
    | Released
    | Spinning
    | Ran
    | Never
    | Stopped
    | Started
    | Entered
    | L1Exit
    | EntryFailed
    | Shutdown
)
Trace = tuple[Event, ...]
Step = tuple[Event, ...]


def innermost(action: Action) -> Action:
    """Return what is done by an action that is done in another way: in a thread, or by halves."""
    if isinstance(action, Meanwhile):
        return innermost(action.action)
    return action.access if isinstance(action, Begin) else action


def is_plain(action: Access | Execute) -> bool:
    """Say whether the guest does it as it is: the host sets nothing but registers."""
    if not isinstance(action, Rdmsr | Wrmsr):
        return False
    return (action.mode, action.after, action.form) == ("long", "nothing", "register")


def makes_vcpus(script: Iterable[Action]) -> bool:
    """Say whether the script itself decides when vCPUs come to be."""
    return any(isinstance(innermost(each), CreateVcpu | CreateIrqchip) for each in script)


ENDS = Lost, InternalError, OtherExit
"""What a trace ends with, wherever its script would have gone on."""

BEFORE_AN_OUTCOME = RdmsrExit, WrmsrExit, Regs


def steps(script: Sequence[Action], trace: Iterable[Event]) -> list[Step]:
    """Return the trace cut into one tuple of events for each action it has events for.

    An access (or ``execute``, which should have none) takes its exits (and the registers at an
    exit, noted only when they are not as the access left them: R57) and the outcome after them;
    every other action takes one event.
    Events beyond the script's end make a last, surplus step.
    """
    events, cut, at = tuple(trace), [], 0
    for action in script:
        if at == len(events):
            break
        end = at + 1
        if isinstance(action, (Rdmsr, Wrmsr, Execute)):
            while end < len(events) and isinstance(events[end - 1], BEFORE_AN_OUTCOME):
                end += 1
        cut.append(events[at:end])
        at = end
    return [*cut, events[at:]] if at < len(events) else cut


def matches(expected: Step, seen: Step) -> bool:
    """Say whether one step's events are as expected; ANY and the patterns match what they say."""
    if expected == (whatever,):
        return bool(seen) and not isinstance(seen[-1], ENDS)
    if len(expected) == 1 and isinstance(expected[0], Either):
        return seen == expected or any(matches(one, seen) for one in _ways(expected[0]))
    if expected == (unfiltered,):
        return _is_unfiltered(seen)
    if len(expected) == len(seen) == 1 and isinstance(expected[0], Swept):
        return isinstance(seen[0], Swept) and admits(expected[0], seen[0])
    return expected == seen


def _ways(either: Either) -> tuple[Step, Step]:
    return either.old, either.new


def first_difference(script: Sequence[Action], expected: Trace, seen: Trace) -> int | None:
    """Return the number of the first step (from 0) that is not as expected, or None."""
    return next(differences(script, expected, seen), None)


def differences(script: Sequence[Action], expected: Trace, seen: Trace) -> Iterator[int]:
    """Yield the number (from 0) of each step that is not as expected."""
    if expected == seen:
        return
    want, have = steps(script, expected), steps(script, seen)
    for number in range(max(len(want), len(have))):
        if number >= min(len(want), len(have)) or not matches(want[number], have[number]):
            yield number


def _is_unfiltered(seen: Step) -> bool:
    if not seen or not isinstance(seen[-1], Returned | Wrote | Fault):
        return False
    exits = [event for event in seen[:-1] if isinstance(event, RdmsrExit | WrmsrExit)]
    return len(exits) == len(seen) - 1 and not any(
        event.reason & MsrExitReason.FILTER for event in exits
    )
