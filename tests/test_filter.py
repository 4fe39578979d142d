import array
import math
import struct

import pytest

from vmm.filter import (
    EMPTY_SLOT,
    READ,
    AtEdge,
    MsrFilter,
    MsrRange,
    Pointer,
    bitmap_of,
    default_allow,
    default_deny,
)
from vmm.placed import COMPAT, Missing, PlacedFilter, bad_address


def test_builders_make_one_range_for_each_msr():
    made = default_allow().deny(0x10, 0x11, access=READ).allow(0x12)
    assert made.flags == 0
    assert [(each.flags, each.base, each.nmsrs, each.bitmap) for each in made.ranges] == [
        (1, 0x10, 1, b"\0"),
        (1, 0x11, 1, b"\0"),
        (3, 0x12, 1, b"\1"),
    ]


def test_a_filter_is_a_value():
    assert default_deny().allow(5) == MsrFilter(1, (MsrRange(3, 5, 1, b"\1"),))
    assert hash(default_deny()) == hash(MsrFilter.default_deny())


@pytest.mark.parametrize(
    "make",
    [
        lambda: MsrRange(1 << 32, 0, 1, b""),
        lambda: MsrRange(1, -1, 1, b""),
        lambda: MsrRange(1, 0, 1 << 32, b""),
        lambda: MsrFilter(1 << 32),
        lambda: default_allow().hole(17),
    ],
)
def test_what_the_struct_cannot_hold_is_refused(make):
    with pytest.raises(ValueError):
        make()


def test_what_only_the_kernel_refuses_is_not():
    MsrFilter(0xFFFFFFFE, (MsrRange(0xFF, 0xFFFFFFFF, 0xFFFFFFFF, Pointer.KERNEL),) * 16)


class Index(int):
    """An int of another class, as an enum's member is."""


@pytest.mark.parametrize("kind", [bytearray, memoryview, lambda bits: array.array("B", bits)])
def test_a_bitmap_of_another_kind_is_the_same_bitmap(kind):
    bits = b"\xff" * 8
    assert default_deny().range(Index(5), 64, kind(bits)) == default_deny().range(5, 64, bits)
    assert AtEdge(kind(bits)) == AtEdge(bits)


def test_what_changes_after_the_copy_changes_no_filter():
    bits = bytearray(b"\1")
    filter_ = default_deny().range(5, 1, bits)
    bits[0] = 0
    assert filter_ == default_deny().allow(5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: default_deny().range(5, 1, "\1"),
        lambda: default_deny().range(5, 1, [1]),
        lambda: default_deny().range(5, 1, 1),
        lambda: default_deny().range(5, 1, None),
        lambda: default_deny().range(5.0, 1, b"\1"),
        lambda: default_deny().range(5, math.nan, b"\1"),
        lambda: default_deny().range(5, 1, b"\1", None),
        lambda: default_deny().allow("5"),
        lambda: default_deny().deny(5.5),
        lambda: default_deny().slot(b"\1"),
        lambda: default_deny().hole(1.5),
        lambda: AtEdge("x"),
        lambda: MsrFilter(0.0),
        lambda: MsrFilter(0, [MsrRange(3, 5, 1, b"\1")]),
        lambda: bitmap_of(8, [0.5]),
    ],
)
def test_what_is_of_the_wrong_type_is_refused(make):
    with pytest.raises(TypeError):
        make()


@pytest.mark.parametrize(("nmsrs", "size"), [(9, 1), (0x3000, 0x5FF), (1, 0)])
def test_a_bitmap_too_short_for_its_range_is_refused_unless_meant(nmsrs, size):
    bits = b"\xff" * size
    with pytest.raises(ValueError, match="use bitmap_of"):
        default_deny().range(5, nmsrs, bits)
    meant = default_deny().slot(MsrRange(3, 5, nmsrs, bits))
    assert meant.ranges[0].bitmap == bits
    assert default_deny().range(5, nmsrs, b"\xff" * (size + 1)) != meant


@pytest.mark.parametrize("bit", [-1, 9, 1 << 70])
def test_a_bit_outside_of_the_bitmap_is_refused(bit):
    with pytest.raises(ValueError, match="outside"):
        bitmap_of(9, [0, bit])


@pytest.mark.parametrize("slots", [0, -1])
def test_no_hole_of_no_slots(slots):
    with pytest.raises(ValueError, match="at least one"):
        default_allow().hole(slots)


def test_bitmaps_are_least_significant_bit_first():
    assert bitmap_of(9, [0, 8]) == b"\1\1" + bytes(6)


def slots(placed: PlacedFilter) -> list[tuple[int, ...]]:
    return [struct.unpack_from("<III4xQ", placed.data, 8 + 24 * slot) for slot in range(16)]


def test_placing_fills_the_struct_and_pads_bitmaps_to_whole_longs():
    placed = PlacedFilter(default_deny().hole().range(0x100, 65, b"\xff" * 9))
    assert struct.unpack_from("<I", placed.data) == (1,)
    flags, nmsrs, base, pointer = slots(placed)[1]
    assert (flags, nmsrs, base) == (3, 65, 0x100)
    assert pointer % 2, "a bitmap is aligned to nothing"
    offset = pointer - placed.address
    assert placed.data[offset:] == b"\xff" * 9 + bytes(7)
    assert slots(placed)[0] == (0, 0, 0, 0) == slots(placed)[15]


def test_scribbling_changes_bitmaps_and_nothing_else():
    placed = PlacedFilter(default_allow().deny(5))
    before = bytes(placed.data)
    placed.scribble()
    assert placed.data[:392] == before[:392]
    assert placed.data[392:] == bytes(each ^ 0xFF for each in before[392:])


def test_filling_the_holes_changes_padding_and_nothing_else():
    placed = PlacedFilter(default_allow().deny(5, 6))
    before, names = bytes(placed.data), slots(placed)
    placed.fill_holes()
    holes = {*range(4, 8), *(20 + 24 * slot + byte for slot in range(16) for byte in range(4))}
    changed = {
        at for at, (old, new) in enumerate(zip(before, placed.data, strict=True)) if old != new
    }
    assert changed == holes and slots(placed) == names
    compat = PlacedFilter(default_allow().deny(5), COMPAT, low=True)
    before = bytes(compat.data)
    compat.fill_holes()
    assert bytes(compat.data) == before


def test_bad_pointers_lead_where_they_say():
    with open("/proc/self/maps") as maps:
        low, high = 0, 0
        at = bad_address(Pointer.UNMAPPED)
        spans = [line.split()[:2] for line in maps]
    for span, rights in spans:
        low, high = (int(each, 16) for each in span.split("-"))
        if low <= at < high:
            assert rights.startswith("---")
            break
    else:
        pytest.fail("the unmapped page is gone: something else may be mapped there")
    assert bad_address(Pointer.NULL) == 0
    assert bad_address(Pointer.KERNEL) >> 63


def test_a_bitmap_at_an_edge_ends_there():
    placed = PlacedFilter(MsrFilter(0, (EMPTY_SLOT, MsrRange(3, 0, 1, AtEdge(b"\1")))))
    assert slots(placed)[1][3] & 0xFFF == 0xFFF
    placed.close()


def test_the_compat_layout_is_low_and_without_padding():
    placed = PlacedFilter(default_deny().deny(0x10).hole().deny(0x11), COMPAT, low=True)
    flags, *fields = struct.unpack_from("<I12I", placed.data)
    assert placed.address < 1 << 32
    assert (flags, fields[:3], fields[4:8], fields[8:11]) == (
        1,
        [3, 1, 0x10],
        [0] * 4,
        [3, 1, 0x11],
    )
    assert [each - placed.address for each in (fields[3], fields[11])] == [261, 269]
    placed.close()


def test_a_missing_bitmap_is_where_it_will_be():
    placed = PlacedFilter(default_allow().deny(1, 2), missing=Missing(1, 0x1234000))
    assert [slot[3] for slot in slots(placed)[:2]] == [placed.address + 393, 0x1234000]
