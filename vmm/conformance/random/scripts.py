"""Random scripts: any host may execute them, and most of them say something about a filter.

No random WRMSR reaches an MSR that could break the guest, and a vCPU that stopped in an access goes
on to its end. What they are made of is drawn by ``dice``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from vmm.conformance.language import script as s
from vmm.conformance.language.domains import After, Instruction, Interrupter, Mode, VcpuPart
from vmm.conformance.language.effects import CARRIED
from vmm.conformance.language.needs import LOW_MSRS
from vmm.conformance.language.soundness import is_sound
from vmm.conformance.oracle.model import Model
from vmm.conformance.oracle.msrs import EFER_RESERVED, READABLE, STORABLE, is_unknown_to_kvm
from vmm.conformance.random.dice import A, Dice
from vmm.conformance.random.levels import LOADED, Ladder, Levels
from vmm.conformance.random.opening import OPENING, may_come
from vmm.conformance.random.xen import PAGES, PLACES, may_be_xens
from vmm.exits import RdmsrExit, WrmsrExit
from vmm.filter import (
    U32,
    MsrFilter,
    Pointer,
)
from vmm.msr import MAX_NMSRS, X2APIC_FIRST, X2APIC_LAST, Msr

MASKS = (7, 6, 7, 6, 4, 5, 2, 1, 0, 8, 1 << 63)
MODES: tuple[Mode, ...] = ("user", "compat", "protected", "real", "higher_half")
"""Modes that every host has; where an access is not 64-bit CPL0, it is one of them."""

SMI_IN: tuple[Mode, ...] = ("long", "compat", "protected", "real")
"""Modes from which SMM is entered; of CPL3 the Model says nothing."""
AFTER: tuple[After, ...] = ("nothing", "sti", "mov_ss", "sti_nop")
EFFECTS: tuple[Instruction, ...] = ("cpuid", "swapgs", "syscall", "sysretq")
"""Instructions that every host has, and that its KVM executes rightly without a filter."""

LOOKED_AT: tuple[VcpuPart, ...] = (
    *("sregs", "vcpu_events", "mp_state", "debugregs"),
    *("xsave", "fpu", "lapic"),
)
INTERRUPTERS: tuple[Interrupter, ...] = ("immediate_exit", "signal")
"""A debugger sees where the guest is after anything but an access that just ended well."""
WINDOW = (X2APIC_FIRST - 1, X2APIC_FIRST, Msr.APIC_ID, X2APIC_LAST, X2APIC_LAST + 1)


def random_script(
    below: Callable[[int], int],
    vcpus: int = 2,
    most: int = 20,
    levels: Levels = "",
    *,
    upper_rcx: bool = True,
    clean: bool = False,
    xen: Sequence[int] = (),
    smm: bool = False,
) -> s.Script:
    """Return a script of up to about ``most`` actions; ``below(n)`` draws from 0 to n - 1.

    ``levels`` is whose extensions a guest has, "svm" or "vmx": then vCPUs enter L2s too. Without
    ``upper_rcx`` no access needs what that word says; with ``clean`` some L1s say, as Hyper-V does,
    that their bitmaps are clean. ``xen`` are the flags of ``xen_hvm_config`` that the host knows.
    With ``smm`` an SMI may come between an exit and the end of its access.
    """
    dice = Dice(below)
    filters = [dice.filter() for _ in range(1 + dice.below(3))]
    writer = _Writer(dice, filters, vcpus, levels, upper_rcx=upper_rcx, xen=xen, smm=smm)
    if clean:
        for action in writer.levels.hyper_v(vcpus):
            writer.add(action)
    if dice.below(10):
        writer.enable_exits(0)
    if dice.below(10):
        writer.install(0)
    for _ in range(1 + dice.below(most)):
        writer.step()
    for vcpu in sorted(writer.stopped):
        writer.finish(vcpu)
    return tuple(writer.script)


class _Writer:
    """A script in the making: what may follow depends on which vCPUs stopped in an access."""

    def __init__(
        self,
        dice: Dice,
        filters: Sequence[MsrFilter],
        vcpus: int,
        levels: Levels,
        *,
        upper_rcx: bool,
        xen: Sequence[int],
        smm: bool,
    ) -> None:
        self.smm = smm
        self.dice, self.vcpus, self.upper_rcx = dice, vcpus, upper_rcx
        self.xen, self.xens = xen, set[int]()
        self.levels, self.kind = Ladder(dice, levels), levels
        self.filters = [*filters, MsrFilter()]
        self.script: list[s.Action] = []
        self.stopped: set[int] = set()
        self.recent = -1
        edges = [A, *(edge for each in filters for edge in _edges(each))]
        self.readable = edges, [*sorted(READABLE), *WINDOW]
        self.writable = [*filter(is_harmless, edges)], [*STORABLE]

    def add(self, action: s.Action) -> None:
        self.script.append(action)
        self.levels.standing.note(action)

    def step(self) -> None:
        """Add one action; a stopped vCPU goes on as often as something else happens."""
        vcpu = self.dice.below(self.vcpus)
        if not self.stopped and (fresh := self.levels.fresh()):
            self.add(fresh)
        elif vcpu not in self.stopped and (move := self.levels.move(vcpu)):
            self.change_level(move, vcpu)
        elif self.levels.standing.is_over(vcpu):
            self.enable_exits(vcpu)
        elif vcpu in self.stopped and self.dice.below(2):
            self.dice.pick((self.finish, self.complete, self.get_regs, self.look))(vcpu)
        elif vcpu in self.stopped or self.dice.one_in(4):
            filters = (self.install, self.enable_exits, self.install_at, self.scribble)
            of_vcpu = (self.get_msr, self.set_msr, self.rewrite)
            of_xen = (self.xen_hvm_config, self.get_hypercall_page) if self.xen else ()
            self.dice.pick((*filters, *of_vcpu, *of_xen))(vcpu)
        elif self.dice.one_in(12):
            self.dice.pick((self.sweep, self.effect))(vcpu)
        elif self.smm and self.dice.one_in(8):
            self.smi(vcpu)
        else:
            self.access(vcpu)

    def change_level(self, move: s.LevelAction, vcpu: int) -> None:
        """Add the change; what a bitmap that is called clean may hide is asked at once."""
        is_clean = isinstance(move, s.EnterL2) and move.clean
        if is_clean and self.dice.one_in(2):
            self.install(vcpu)
        self.add(move)
        if is_clean and not self.levels.standing.is_stale(vcpu):
            self.add(s.rdmsr(self.dice.pick(LOADED), vcpu=vcpu))

    # --- accesses ---------------------------------------------------------------------------

    def access(self, vcpu: int) -> None:
        """Add an access; one in four is stopped in the middle, if it surely exits."""
        access = self.dice.pick((self.read, self.read, self.write))(vcpu)
        if self.dice.one_in(4):
            other = replace(
                access, mode=self.dice.pick(("long", *MODES)), after=self.dice.pick(AFTER)
            )
            access = other if is_sound((*self.script, other)) else access
        if not may_come(tuple(self.script), access, self.kind):
            access = s.rdmsr(access.index, vcpu=vcpu)
        stop = s.begin(access)
        if self.dice.one_in(4) and self._exits(stop):
            self.stopped.add(vcpu)
            self.add(stop)
        else:
            self.add(access)

    def smi(self, vcpu: int) -> None:
        """Add an SMI between an exit and the end of its access, if there surely is an exit."""
        access = self.dice.pick((self.read, self.write))(vcpu)
        placed = replace(access, mode=self.dice.pick(SMI_IN), after=self.dice.pick(AFTER[1:]))
        stop = s.begin(placed)
        comes = may_come(tuple(self.script), placed, self.kind)
        if comes and is_sound((*self.script, stop)) and self._exits(stop):
            self.stopped.add(vcpu)
            self.add(stop)
            self.add(s.inject("smi", vcpu))

    def sweep(self, vcpu: int) -> None:
        """Add a sweep: a read across an edge, or a write of MSRs that are nobody's."""
        dice, is_write = self.dice, self.dice.one_in(3)
        opened = 0x200 if dice.one_in(4) else 0  # what a guest's write can open lies below it
        first = A if is_write else opened or self._pick_index(self.readable)
        first, count = first - dice.below(0x41) & U32, 1 + dice.below(0x100)
        action = s.sweep("rdmsr", first, count, dice.pick((1, 1, 2, 0x101)), vcpu=vcpu)
        if is_write:
            stride, value = dice.pick((1, 3)), dice.pick(PLACES) if self.xens else dice.u64()
            action = s.sweep("wrmsr", first, count, stride, value, vcpu)
        self.add(action)

    def _exits(self, stop: s.Begin) -> bool:
        return isinstance(Model().predict((*self.script, stop))[-1], RdmsrExit | WrmsrExit)

    def _pick_index(self, indices: Sequence[Sequence[int]]) -> int:
        at_edges, others = indices
        # What changed is seen only by who looks twice.
        if self.recent in (*at_edges, *others) and self.dice.one_in(2):
            return self.recent
        self.recent = int(self.dice.pick(others if self.dice.one_in(4) else at_edges))
        return self.recent

    def read(self, vcpu: int) -> s.Access:
        dice = self.dice
        index, reply = self._pick_index(self.readable), dice.reply()
        if not dice.one_in(3):
            return s.rdmsr(index, reply=reply, vcpu=vcpu)
        before, high, upper = dice.u64(), dice.u64(), dice.pick((0, 1, U32))
        return s.rdmsr(index, before, high, self._upper(index, upper), reply, vcpu)

    def _upper(self, index: int, upper: int) -> int:
        return upper if self.upper_rcx or index >= LOW_MSRS else 0

    def write(self, vcpu: int) -> s.Access:
        dice = self.dice
        index, reply, kind = self._pick_index(self.writable), dice.reply(), dice.below(8)
        value = dice.value_for(index)
        if kind == 6:
            index, value = Msr.EFER, EFER_RESERVED
        if kind == 5 and dice.one_in(3):  # these make KVM pass others through
            index = dice.pick((*OPENING,))
            value = dice.pick(OPENING[index])
        if kind == 7:  # these have no effect without an in-kernel APIC, and no filter stops them
            index, value = X2APIC_FIRST + dice.below(0x100), 0
        if index in self.xens:
            value = dice.pick(PLACES)
        high = dice.u64() if dice.one_in(3) else 0
        upper = self._upper(index, dice.pick((0, 0, 1, U32)))
        return s.wrmsr(index, value, high, upper, reply, vcpu)

    def finish(self, vcpu: int) -> None:
        self.stopped.discard(vcpu)
        self.add(s.finish(self.dice.reply() if self.dice.below(2) else None, vcpu))
        if self.dice.one_in(3):
            self.add(s.get_taken(vcpu))

    def complete(self, vcpu: int) -> None:
        reply = self.dice.reply() if self.dice.below(4) else None
        self.add(s.complete(reply, self.dice.pick(INTERRUPTERS), vcpu))

    def effect(self, vcpu: int) -> None:
        name = self.dice.pick(EFFECTS)
        value = 1 + self.dice.below(CARRIED[name])
        action = s.execute(name, value & CARRIED[name] or CARRIED[name], vcpu=vcpu)
        if is_sound((*self.script, action)):
            self.add(action)

    def look(self, vcpu: int) -> None:
        if is_sound((*self.script, s.inject("nmi", vcpu))) and self.dice.one_in(3):
            self.add(s.inject("nmi", vcpu))
        elif self.dice.below(2):
            self.add(s.get_vcpu_events(vcpu))
        else:
            self.rewrite(vcpu)

    def rewrite(self, vcpu: int) -> None:
        self.add(s.rewrite(self.dice.pick(LOOKED_AT), vcpu))

    def get_regs(self, vcpu: int) -> None:
        self.add(s.get_regs(vcpu))

    # --- the host ---------------------------------------------------------------------------

    def install(self, _: int) -> None:
        new = self.dice.pick(self.filters)
        self.add(s.install(self.dice.spoilt(new) if self.dice.one_in(4) else new))

    def install_at(self, _: int) -> None:
        self.add(s.install(self.dice.pick(self.filters), argp=self.dice.pick(tuple(Pointer))))

    def enable_exits(self, _: int) -> None:
        self.add(s.enable_exits(self.dice.pick(MASKS)))

    def scribble(self, _: int) -> None:
        if any(isinstance(action, s.Install) for action in self.script):
            self.add(s.scribble_bitmaps())

    def get_msr(self, vcpu: int) -> None:
        self.add(s.get_msr(self._pick_index(self.writable), vcpu))

    def set_msr(self, vcpu: int) -> None:
        index = self._pick_index(self.writable)
        value = self.dice.pick(PLACES) if index in self.xens else self.dice.value_for(index)
        self.add(s.set_msr(index, value, vcpu))

    def xen_hvm_config(self, vcpu: int) -> None:
        """Name Xen's MSR, which mostly is written and looked at soon."""
        dice, flags = self.dice, self.dice.pick(self.xen)
        msr = dice.pick((A, *filter(may_be_xens, self.writable[0]), 0))
        pages = dice.below(PAGES + 1)
        self.add(s.xen_hvm_config(msr, 0 if flags and dice.below(4) else pages, flags))
        self.xens.add(msr)
        if msr and vcpu not in self.stopped and not self.levels.standing.is_over(vcpu):
            self.recent = msr
            place = dice.pick((s.HYPERCALL_PAGE, s.HYPERCALL_PAGE, *PLACES))
            self.add(s.wrmsr(msr, place, vcpu=vcpu))
            self.get_hypercall_page(vcpu)

    def get_hypercall_page(self, _: int) -> None:
        self.add(s.get_hypercall_page())


def _edges(each: MsrFilter) -> Iterable[int]:
    for range_ in each.ranges:
        if range_.nmsrs <= MAX_NMSRS:
            for offset in (0, range_.nmsrs - 1, -1, range_.nmsrs, range_.nmsrs // 2):
                yield (range_.base + offset) & U32


def is_harmless(index: int) -> bool:
    """Say whether a WRMSR may go through to the guest's vCPU: nobody's MSR, or plain storage."""
    return is_unknown_to_kvm(index) or index in STORABLE
