"""The start state of a vCPU: tables in guest memory and registers, so no guest needs boot code.

The map of the first 2 MiB, identity mapped: GDT, IDT, page tables below 64 KiB; the image at
64 KiB; a TSS and an exception stack for each vCPU above it; programs from 1 MiB on. The second
2 MiB are mapped too, for memory that a VM is given later. All of it is in the higher half as well.
"""

from __future__ import annotations

import struct
from typing import Any

from vmm.memory import GuestMemory

GDT, IDT, PML4, PDPT, PD = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000
TSS, TSS_SIZE = 0x40000, 0x100
STACK, STACK_SIZE = 0x50000, 0x1000
PROGRAM, PROGRAM_SIZE = 0x100000, 0x10000
HIGHER_HALF = 0xFFFF_FFFF_8000_0000
"""Where the map is once more: where Linux has its text."""
MEMORY_SIZE = 0x200000
LATER = MEMORY_SIZE
MAX_VCPUS = 16

CODE64, DATA, TASK, CODE32, USER_DATA, USER_CODE64 = 0x08, 0x10, 0x18, 0x20, 0x2B, 0x33
"""Selectors; those of user code have RPL 3. TR is loaded by the host, its entry is empty."""
CR0_PE, CR0_MP, CR0_ET, CR0_NE, CR0_WP, CR0_PG = 1, 2, 1 << 4, 1 << 5, 1 << 16, 1 << 31
CR4_PAE, CR4_OSFXSR = 1 << 5, 1 << 9
EFER_SCE, EFER_LME, EFER_LMA, EFER_NX = 1, 1 << 8, 1 << 10, 1 << 11
CR0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_PG
CR4 = CR4_PAE | CR4_OSFXSR
EFER = EFER_SCE | EFER_LME | EFER_LMA | EFER_NX
PAT = 0x0007_0406_0007_0406
"""IA32_PAT as a reset leaves it."""
PTE_PRESENT_WRITABLE_USER, PTE_LARGE = 0x7, 0x80
RFLAGS_FIXED, RFLAGS_IF, RFLAGS_RF = 2, 1 << 9, 1 << 16
SEGMENTS = (
    *(0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0),
    *(0x00CF_9B00_0000_FFFF, 0x00CF_F300_0000_FFFF, 0x00AF_FB00_0000_FFFF),
)
"""The GDT: what the selectors above name, all flat."""

VECTORS = 32
PRESENT_INTERRUPT_GATE = 0x8E
GDT_LIMIT, IDT_LIMIT, TSS_LIMIT = 8 * len(SEGMENTS) - 1, VECTORS * 16 - 1, 0x67


def write_tables(memory: GuestMemory, vectors: int) -> None:
    """Write GDT, page tables and, with the address of 16-byte stubs, an IDT with IST 1."""
    memory.write(GDT, struct.pack(f"<{len(SEGMENTS)}Q", *SEGMENTS))
    for at, entry in (
        *((PML4, PDPT), (PML4 + 8 * (HIGHER_HALF >> 39 & 0x1FF), PDPT)),
        *((PDPT, PD), (PDPT + 8 * (HIGHER_HALF >> 30 & 0x1FF), PD)),
    ):
        memory.write(at, struct.pack("<Q", entry | PTE_PRESENT_WRITABLE_USER))
    large = PTE_PRESENT_WRITABLE_USER | PTE_LARGE
    memory.write(PD, struct.pack("<QQ", large, MEMORY_SIZE | large))
    if vectors:
        gates = [long_gate(vectors + 16 * number, ist=1) for number in range(VECTORS)]
        memory.write(IDT, b"".join(gates))


def write_task(memory: GuestMemory, vcpu_id: int) -> None:
    """Write the vCPU's TSS, whose IST 1 is the top of the vCPU's exception stack."""
    top = STACK + STACK_SIZE * (vcpu_id + 1)
    memory.write(TSS + TSS_SIZE * vcpu_id, struct.pack("<4xQQQQQ", top, top, top, 0, top))


def enter_long_mode(sregs: Any, vcpu_id: int) -> None:
    """Make ``sregs`` 64-bit CPL0 with paging on, flat segments and the tables above."""
    for segment in (sregs.ds, sregs.es, sregs.ss, sregs.fs, sregs.gs):
        flat_segment(segment, DATA, kind=3, long_mode=0)
    flat_segment(sregs.cs, CODE64, kind=11, long_mode=1)
    flat_segment(sregs.tr, TASK, kind=11, long_mode=0)
    sregs.tr.base, sregs.tr.limit = TSS + TSS_SIZE * vcpu_id, TSS_LIMIT
    sregs.tr.s = sregs.tr.g = sregs.tr.db = 0
    sregs.gdt.base, sregs.gdt.limit = GDT, GDT_LIMIT
    sregs.idt.base, sregs.idt.limit = IDT, IDT_LIMIT
    sregs.cr0 = CR0
    sregs.cr2, sregs.cr3, sregs.cr4, sregs.cr8 = 0, PML4, CR4, 0
    sregs.efer = EFER


def program_of(vcpu_id: int) -> int:
    """Return where the vCPU's program of up to 1023 steps and an end starts."""
    return PROGRAM + PROGRAM_SIZE * vcpu_id


def flat_segment(segment: Any, selector: int, kind: int, long_mode: int) -> None:
    """Make ``segment`` one of 4 GiB from 0: of ``kind`` 3 (data) or 11 (code, or a busy TSS)."""
    segment.base, segment.limit, segment.selector = 0, 0xFFFFFFFF, selector
    segment.type, segment.present, segment.dpl, segment.s = kind, 1, selector & 3, 1
    segment.l, segment.db, segment.g, segment.avl, segment.unusable = (
        long_mode,
        1 - long_mode,
        1,
        0,
        0,
    )


def long_gate(handler: int, ist: int = 0) -> bytes:
    """Return an interrupt gate of an IDT in long mode, to 64-bit code."""
    low, high = handler & 0xFFFF, handler >> 16 & 0xFFFF
    return struct.pack("<HHBBHII", low, CODE64, ist, PRESENT_INTERRUPT_GATE, high, 0, 0)
