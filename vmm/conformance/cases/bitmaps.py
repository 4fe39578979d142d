"""What the bits of a bitmap mean, and when they are read: R19, R29."""

from __future__ import annotations

from collections.abc import Iterable

from vmm.conformance.cases.words import (
    DATA,
    TELL,
    TELL_FILTER,
    A,
    Row,
    allowed,
    denied,
    done_install,
    play,
    write_allowed,
    write_denied,
)
from vmm.conformance.language.case import Case
from vmm.conformance.language.script import done, gp, rdmsr, scribble_bitmaps, wrmsr
from vmm.filter import bitmap_of, default_allow, default_deny
from vmm.msr import MAX_NMSRS

BASE = 0x474F4000

_NOISE = pow(3, 99991, 1 << MAX_NMSRS)
"""Bits without a pattern, the same on every machine."""

_BITMAP = _NOISE.to_bytes(MAX_NMSRS // 8, "little")
_INVERSE = bytes(byte ^ 0xFF for byte in _BITMAP)

SWEEP, CHUNK = 0x800, 0x200
"""Every bit below SWEEP is looked at, CHUNK bits a case; above it, the edges of every word."""

_WALK = (0, 1, 7, 8, 9, 15, 16, 31, 32, 33, 62, 63, 64, 65, 127)


def _bits(positions: Iterable[int], inverse: bool = False, write: bool = False) -> Iterable[Row]:
    """Return a row for each bit: #GP where it allows the unknown MSR, an exit where it denies.

    Under a mask of FILTER an allowed access of an unknown MSR leaves no exit (R50).
    """
    for bit in positions:
        if (_NOISE >> bit & 1) ^ inverse:
            index = BASE + bit
            yield (wrmsr(index, DATA), gp) if write else (rdmsr(index), gp)
        else:
            yield write_denied(BASE + bit) if write else denied(BASE + bit)


_WORD_EDGES = [bit for word in range(SWEEP, MAX_NMSRS, 64) for bit in (word, word + 63)]

CASES = (
    *(
        Case(
            f"bitmaps.bits_{start:#x}_{'writes' if write else 'reads'}",
            f"Each of the bits {start:#x}..{start + CHUNK - 1:#x} of a long bitmap governs its own "
            f"MSR for {'WRMSR' if write else 'RDMSR'}.",
            "R19",
            *play(
                TELL_FILTER,
                done_install(default_allow().range(BASE, MAX_NMSRS, _BITMAP)),
                *_bits(range(start, start + CHUNK), write=write),
            ),
        )
        for start in range(0, SWEEP, CHUNK)
        for write in (start // CHUNK % 2 == 1,)
    ),
    *(
        Case(
            f"bitmaps.word_edges_{name}",
            f"The first and last bit of every word up to 0x3000 govern their MSRs ({name} bits).",
            "R19 R09",
            *play(
                TELL_FILTER,
                done_install(default_deny().range(BASE, MAX_NMSRS, bitmap)),
                *_bits(_WORD_EDGES, inverse=bitmap is _INVERSE),
            ),
        )
        for name, bitmap in (("mixed", _BITMAP), ("inverted", _INVERSE))
    ),
    Case(
        "bitmaps.one_clear_bit",
        "Bit n of a bitmap is bit n % 8 of byte n / 8; a single clear one denies its MSR alone.",
        "R19",
        *play(
            TELL,
            *(
                row
                for bit in _WALK
                for row in (
                    done_install(
                        default_allow().range(BASE, 128, bitmap_of(128, {*range(128)} - {bit}))
                    ),
                    denied(BASE + bit),
                    write_denied(BASE + bit),
                    *(allowed(BASE + near) for near in (bit ^ 1, bit ^ 8, bit ^ 32, bit ^ 64)),
                )
            ),
        ),
    ),
    Case(
        "bitmaps.one_set_bit",
        "A single set bit allows its MSR alone, under either default action.",
        "R19",
        *play(
            TELL,
            *(
                row
                for bit in (0, 7, 8, 63, 64, 127)
                for start in (default_allow(), default_deny())
                for row in (
                    done_install(start.range(BASE, 128, bitmap_of(128, [bit]))),
                    allowed(BASE + bit),
                    write_allowed(BASE + bit),
                    *(denied(BASE + near) for near in (bit ^ 1, bit ^ 8, bit ^ 32, bit ^ 64)),
                )
            ),
        ),
    ),
    Case(
        "bitmaps.bits_do_not_depend_on_the_default",
        "The same bitmap governs its MSRs alike under DEFAULT_ALLOW and DEFAULT_DENY.",
        "R19 R17 R18",
        *play(
            TELL,
            done_install(default_allow().range(A, 8, b"\x69")),
            *((allowed if 0x69 >> i & 1 else denied)(A + i) for i in range(8)),
            allowed(A + 8),
            done_install(default_deny().range(A, 8, b"\x69")),
            *((allowed if 0x69 >> i & 1 else denied)(A + i) for i in range(8)),
            denied(A + 8),
        ),
    ),
    *(
        Case(
            f"bitmaps.copied_at_the_call_{name}",
            f"The bitmap is copied by the call: overwriting it later changes nothing ({name}).",
            "R29",
            *play(
                TELL,
                done_install(start.range(A, 16, b"\x5a\xff").range(A + 16, 16, b"\xa5\x00")),
                denied(A),
                allowed(A + 1),
                (scribble_bitmaps(), done),
                *((allowed if 0x5A >> i & 1 else denied)(A + i) for i in range(8)),
                allowed(A + 8),
                write_allowed(A + 15),
                *((allowed if 0xA5 >> i & 1 else denied)(A + 16 + i) for i in range(8)),
                denied(A + 24),
                write_denied(A + 31),
            ),
        )
        for name, start in (("default_allow", default_allow()), ("default_deny", default_deny()))
    ),
    Case(
        "bitmaps.changed_memory_counts_at_the_next_call_only",
        "Bits sent by a second call replace those of the first, scribbled over or not.",
        "R29 R16",
        *play(
            TELL,
            done_install(default_allow().range(A, 8, b"\x0f")),
            denied(A + 4),
            allowed(A),
            (scribble_bitmaps(), done),
            denied(A + 4),
            allowed(A),
            done_install(default_allow().range(A, 8, b"\xf0")),
            allowed(A + 4),
            denied(A),
            (scribble_bitmaps(), done),
            allowed(A + 4),
            denied(A),
        ),
    ),
)
