"""Which scripts can be run: nothing goes on with what no action before it began."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vmm.conformance.language import script as s

Thing = tuple[str, object]
"""Something that is under way: what it is, and the vCPU or the name of whose it is."""

FILTER: Thing = ("filter", None)
IRQCHIP: Thing = ("irqchip", None)
AWAY = ("access", "park", "spin", "init", "waits", "asleep")
"""What keeps a vCPU from starting an access."""
BUSY = ("access", "park", "spin", "stall", "install", "meanwhile", "asleep")
"""What keeps a VM from being given up for another."""


@dataclass(frozen=True, slots=True)
class Effect:
    """What an action cannot do without, or beside, and what is under way after it."""

    needs: frozenset[Thing] = frozenset()
    bars: frozenset[Thing] = frozenset()
    begins: frozenset[Thing] = frozenset()
    ends: frozenset[Thing] = frozenset()


def is_sound(script: s.Script) -> bool:
    """Say whether a backend can run the script: nothing in it is without what it goes on with."""
    return first_unsound(script) is None


def first_unsound(script: s.Script) -> int | None:
    """Return the first action (from 0) that lacks what it goes on with, or whose vCPU is away.

    A vCPU that stopped in an access, is parked or spins begins no other before that has ended; one
    that was sent to L2 leaves it by ``leave_l2`` before the host puts it into another mode.
    """
    under_way: set[Thing] = set()
    for at, action in enumerate(script):
        effect = _effect(action)
        if not effect.needs <= under_way or effect.bars & under_way:
            return at
        if isinstance(action, s.FreshVm):
            if any(kind in BUSY for kind, _ in under_way):
                return at
            under_way = {each for each in under_way if each[0] in ("saved", "filter")}
        if at == 0 and isinstance(action, s.CreateIrqchip):
            under_way.add(IRQCHIP)
        under_way = _waiting(action, under_way - effect.ends | effect.begins)
    return None


def _waiting(action: s.Action, under_way: set[Thing]) -> set[Thing]:  # noqa: PLR0911 - a kind each
    """Return what is under way once ``action`` has had its say in which vCPUs wait, and for what.

    A vCPU whose SIPI is there does not fall asleep.
    """
    vcpu = getattr(action, "vcpu", 0)
    waits, init, sipi = ("waits", vcpu), ("init", vcpu), ("sipi", vcpu)
    match action:
        case s.GetMpState() if init in under_way:  # the first vCPU waits for no SIPI
            return under_way - {init} | ({waits} if vcpu else set())
        case s.SetMpState() if IRQCHIP in under_way and 0 < action.state <= s.SIPI_RECEIVED:
            return under_way | {waits, *[sipi] * (action.state == s.SIPI_RECEIVED)}
        case s.SetMpState(s.RUNNABLE):
            return under_way - {waits, sipi}
        case s.SendSipi() if waits in under_way:
            return under_way | {sipi}
        case s.Sleep() if sipi in under_way:
            return under_way - {waits, sipi, ("asleep", vcpu)}
        case s.AwaitSipi():
            return under_way - {waits, sipi}
        case _:
            return under_way


def _effect(action: s.Action) -> Effect:  # noqa: PLR0911, PLR0912 - one a kind of word
    match action:
        case s.Rdmsr() | s.Wrmsr() | s.Execute():
            return _starts(action.vcpu, plain_only=not s.is_plain(action))
        case s.Sweep():
            return _starts(action.vcpu)
        case s.EnterL2() | s.LeaveL2():
            # Once a vCPU is an L1 its registers for other modes and its extensions are at odds.
            return _starts(action.vcpu, "l1")
        case s.SaveNested() | s.LeaveNested() | s.RestoreNested():
            return _of_nested_state(action)
        case s.Begin() | s.Spin():
            what = "access" if isinstance(action, s.Begin) else "spin"
            effect = _starts(action.access.vcpu, what, plain_only=not s.is_plain(action.access))
            is_placed = (action.access.mode, action.access.after) != ("long", "nothing")
            if action.access.mode in ("user", "smm") or not is_placed:
                return effect
            return replace(effect, begins=effect.begins | {("placed", action.access.vcpu)})
        case s.Park():
            return _starts(action.vcpu, "park")
        case s.Install() | s.BeginInstall() | s.Meanwhile():
            return Effect(begins=_begun(action))
        case s.ScribbleBitmaps():
            return Effect(needs=frozenset({FILTER}))
        case s.Rewrite():  # an INIT that is pending is taken by some of them
            return Effect(bars=_in_run(action.vcpu) | {("init", action.vcpu)})
        case s.SendInit():
            return Effect(bars=_in_run(action.vcpu), begins=frozenset({("init", action.vcpu)}))
        case s.SendSipi():
            return Effect(begins=frozenset({("vector", action.vcpu)}))
        case s.GetMpState() | s.SetMpState():
            return _of_mp_state(action)
        case s.Sleep():
            effect, waits = _starts(action.vcpu, "asleep"), frozenset({("waits", action.vcpu)})
            return replace(effect, needs=waits, bars=effect.bars - waits)
        case _:
            thing = _thing(action)
            needs = frozenset({thing} if thing else ())
            # After an INIT a vCPU waits in the kernel for a SIPI that nobody sends.
            stays: set[Thing] = set()
            if isinstance(action, s.Finish):
                stays = {("init", action.vcpu), ("waits", action.vcpu)}
            ends = needs if isinstance(action, ENDS) else frozenset()
            if isinstance(action, s.Finish):
                ends |= {("placed", action.vcpu)}
            return Effect(needs=needs, bars=frozenset(stays), ends=ends)


def _in_run(vcpu: int) -> frozenset[Thing]:
    """Return what keeps a vCPU in ``KVM_RUN``, where every other ioctl of it waits."""
    return frozenset((each, vcpu) for each in ("park", "spin", "asleep"))


def _of_mp_state(action: s.GetMpState | s.SetMpState) -> Effect:
    bars = _in_run(action.vcpu)
    if isinstance(action, s.GetMpState):
        return Effect(bars=bars)
    vector = {("vector", action.vcpu)} if action.state == s.SIPI_RECEIVED else set()
    return Effect(needs=frozenset(vector), bars=bars | {("init", action.vcpu)})


def _of_nested_state(action: s.SaveNested | s.LeaveNested | s.RestoreNested) -> Effect:
    away = frozenset((each, action.vcpu) for each in ("park", "spin", "init"))
    saved, l1, placed = ("saved", action.vcpu), ("l1", action.vcpu), {("placed", action.vcpu)}
    if isinstance(action, s.SaveNested):
        return Effect(bars=away | placed, begins=frozenset({saved, l1}))
    needs = frozenset({saved} if isinstance(action, s.RestoreNested) else ())
    return Effect(needs=needs, bars=away | placed, begins=frozenset({l1}))


def _starts(vcpu: int, what: str = "", *, plain_only: bool = False) -> Effect:
    bars = frozenset((each, vcpu) for each in (*AWAY, *["l1"] * plain_only))
    return Effect(bars=bars, begins=frozenset({(what, vcpu)} if what else ()))


def _begun(action: s.Install | s.BeginInstall | s.Meanwhile) -> frozenset[Thing]:
    match action:
        case s.Meanwhile():
            inner = _effect(action.action).begins
            return inner | {("meanwhile", action.name)}
        case s.BeginInstall():
            stall = {("stall", action.name)} if action.stall_at is not None else set()
            return frozenset({FILTER, ("install", action.name), *stall})
        case s.Install():
            return frozenset({FILTER})


ENDS = (s.Finish, s.Release, s.StopSpin, s.ResumeInstall, s.Wake, s.AwaitSipi)


def _thing(action: s.Action) -> Thing | None:  # noqa: PLR0911 - one a kind of word
    """Return what an action goes on with, if it goes on with anything."""
    match action:
        case s.Inject():
            return ("placed", action.vcpu)
        case s.GetVcpuEvents():
            return ("access", action.vcpu)
        case s.GetRegs() | s.SetRegs() | s.Complete() | s.Finish():
            return ("access", action.vcpu)
        case s.Wake() | s.AwaitSipi():
            return ("asleep", action.vcpu)
        case s.Release():
            return ("park", action.vcpu)
        case s.UntilExits() | s.UntilRuns() | s.StopSpin():
            return ("spin", action.vcpu)
        case s.ResumeInstall():
            return ("stall", action.name)
        case s.AwaitInstall():
            return ("install", action.name)
        case s.AwaitMeanwhile():
            return ("meanwhile", action.name)
        case _:
            return None
