"""An MSR filter as a value: what ``KVM_X86_SET_MSR_FILTER`` is given.

The value can be well formed (use ``default_allow``/``default_deny`` and ``allow``/``deny``) or as
wrong as a case wants it (give ``MsrRange`` any fields that fit the ABI's widths): only the kernel
judges it. Placing it in memory is the work of ``vmm.placed``.
"""

from __future__ import annotations

import enum
import operator
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby

from vmm.bits import MsrIndex, u32
from vmm.msr import (
    KVM_MSR_FILTER_DEFAULT_ALLOW,
    KVM_MSR_FILTER_DEFAULT_DENY,
    KVM_MSR_FILTER_MAX_RANGES,
    KVM_MSR_FILTER_READ,
    KVM_MSR_FILTER_WRITE,
    msr_code,
)

READ, WRITE = KVM_MSR_FILTER_READ, KVM_MSR_FILTER_WRITE
READ_WRITE = READ | WRITE
U32 = 0xFFFFFFFF

ACCESS_CODE = {READ: "READ", WRITE: "WRITE", READ_WRITE: "READ_WRITE"}
BUILDER_CODE = {b"\x00": "deny", b"\x01": "allow"}
DEFAULT_CODE = {
    KVM_MSR_FILTER_DEFAULT_ALLOW: "default_allow()",
    KVM_MSR_FILTER_DEFAULT_DENY: "default_deny()",
}
SHORT_BITMAP = 8
"""Up to one long of bytes is printed as it is; a longer bitmap in the shortest way there is."""


class Pointer(enum.Enum):
    """A bitmap (or argument) pointer that leads nowhere the kernel can read."""

    NULL = 0
    UNMAPPED = 1
    KERNEL = 2

    def __repr__(self) -> str:
        """Return the pointer as a case writes it."""
        return str(self)


@dataclass(frozen=True, slots=True)
class AtEdge:
    """A bitmap whose last byte is the last byte before an unmapped page (R10)."""

    bits: bytes

    def __post_init__(self) -> None:
        """Copy what is not ``bytes``, as ``MsrRange`` does."""
        object.__setattr__(self, "bits", _copied(self.bits))


Bitmap = bytes | Pointer | AtEdge


def bitmap_size(nmsrs: int) -> int:
    """Return the bytes the kernel reads for ``nmsrs`` bits: whole 8-byte longs."""
    return (nmsrs + 63) // 64 * 8


def bitmap_of(nmsrs: int, allowed: Iterable[int]) -> bytes:
    """Return a bitmap of ``nmsrs`` bits, least significant first, with the ``allowed`` set."""
    bits = bytearray(bitmap_size(nmsrs))
    for bit in allowed:
        if not 0 <= bit < nmsrs:
            raise ValueError(f"bitmap_of: bit {bit} is outside of the {nmsrs} bits")
        bits[bit >> 3] |= 1 << (bit & 7)
    return bytes(bits)


@dataclass(frozen=True, slots=True, repr=False)
class MsrRange:
    """``struct kvm_msr_filter_range``: MSRs ``[base, base + nmsrs)`` and a bit for each, 1 = allow.

    ``flags`` says which accesses it governs (READ, WRITE); a field that does not fit 32 bits is a
    ``ValueError``, one that is no int and a bitmap of text a ``TypeError``. Any buffer of bytes is
    copied. Bytes beyond a short bitmap are sent as zeroes: ``MsrFilter.range`` takes none.
    """

    flags: u32
    base: MsrIndex
    nmsrs: u32
    bitmap: Bitmap

    def __post_init__(self) -> None:
        """Refuse what the struct's fields cannot hold; copy a bitmap that could still change."""
        for name in ("flags", "base", "nmsrs"):
            if not isinstance(getattr(self, name), int):
                raise TypeError(f"MsrRange.{name} must be an int, not {getattr(self, name)!r}")
        if type(self.bitmap) is not bytes and not isinstance(self.bitmap, Pointer | AtEdge):
            object.__setattr__(self, "bitmap", _copied(self.bitmap))
        if (self.flags | self.base | self.nmsrs) >> 32:
            fields = ("flags", "base", "nmsrs")
            name = next(each for each in fields if getattr(self, each) >> 32)
            raise ValueError(f"MsrRange.{name} must fit 32 bits, not {getattr(self, name):#x}")

    def __repr__(self) -> str:
        """Return the range as a case writes it."""
        flags, bitmap = _access_code(self.flags), _bitmap_code(self.bitmap)
        return f"MsrRange({flags}, {msr_code(self.base)}, {self.nmsrs:#x}, {bitmap})"


PAGE = 4096


def bitmap_bytes(each: MsrRange) -> bytes:
    """Return the bytes that the kernel is given as this range's bitmap, b"" where it is a pointer.

    They are padded with zeroes to what the kernel reads, or to a page if it would read more.
    """
    if not isinstance(each.bitmap, bytes):
        return b""
    size = max(len(each.bitmap), min(bitmap_size(each.nmsrs), PAGE))
    return each.bitmap.ljust(-(-size // 8) * 8, b"\x00")


EMPTY_SLOT = MsrRange(0, 0, 0, Pointer.NULL)


@dataclass(frozen=True, slots=True, repr=False)
class MsrFilter:
    """``struct kvm_msr_filter``: flags (the default action) and up to 16 ranges, in slot order.

    More than 16 ranges or flags beyond 32 bits are a ``ValueError``; all else is the kernel's to
    judge. Unused slots are sent empty.
    """

    flags: u32 = KVM_MSR_FILTER_DEFAULT_ALLOW
    ranges: tuple[MsrRange, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what the struct cannot hold."""
        if not isinstance(self.flags, int):
            raise TypeError(f"MsrFilter.flags must be an int, not {self.flags!r}")
        if not isinstance(self.ranges, tuple) or not all(
            isinstance(each, MsrRange) for each in self.ranges
        ):
            raise TypeError("MsrFilter.ranges must be a tuple of MsrRange")
        if not 0 <= self.flags <= U32:
            raise ValueError(f"MsrFilter.flags must fit 32 bits, not {self.flags:#x}")
        if len(self.ranges) > KVM_MSR_FILTER_MAX_RANGES:
            raise ValueError(f"a filter has 16 slots, not {len(self.ranges)}")

    def __repr__(self) -> str:
        """Return the filter as a case writes it: the calls that build it."""
        start = DEFAULT_CODE.get(self.flags, f"MsrFilter({self.flags:#x})")
        groups = groupby(self.ranges, key=_builder)
        return start + "".join(_call(*builder, list(ranges)) for builder, ranges in groups)

    @classmethod
    def default_allow(cls) -> MsrFilter:
        """Return the filter that denies nothing yet; installed as it is, it turns filtering off."""
        return cls(KVM_MSR_FILTER_DEFAULT_ALLOW)

    @classmethod
    def default_deny(cls) -> MsrFilter:
        """Return the filter that denies all; without a range the kernel refuses it (R12)."""
        return cls(KVM_MSR_FILTER_DEFAULT_DENY)

    def range(self, base: int, nmsrs: int, bitmap: Bitmap, flags: int = READ_WRITE) -> MsrFilter:
        """Return this filter with one more range in the next slot.

        A bitmap with fewer than ``nmsrs`` bits is a ``ValueError``: it would deny what none wrote.
        """
        added = MsrRange(flags, base, nmsrs, bitmap)
        if _is_short(added):
            raise ValueError(f"a bitmap for {nmsrs} MSRs has {-(-nmsrs // 8)} bytes: use bitmap_of")
        return self.slot(added)

    def slot(self, range_: MsrRange) -> MsrFilter:
        """Return this filter with ``range_`` in the next slot, however wrong it is."""
        return replace(self, ranges=(*self.ranges, range_))

    def deny(self, *msrs: int, access: int = READ_WRITE) -> MsrFilter:
        """Return this filter with one more one-MSR denying range for each of ``msrs``."""
        return self._each(msrs, b"\x00", access)

    def allow(self, *msrs: int, access: int = READ_WRITE) -> MsrFilter:
        """Return this filter with one more one-MSR allowing range for each of ``msrs``."""
        return self._each(msrs, b"\x01", access)

    def hole(self, slots: int = 1) -> MsrFilter:
        """Return this filter with ``slots`` (1 or more) empty slots after its ranges."""
        if slots < 1:
            raise ValueError(f"hole: at least one slot, not {slots}")
        # One more than there can be is refused as well as 2^64 of them, and fits in memory.
        some = (EMPTY_SLOT,) * min(slots, KVM_MSR_FILTER_MAX_RANGES + 1)
        return replace(self, ranges=(*self.ranges, *some))

    def _each(self, msrs: tuple[int, ...], bitmap: bytes, access: int) -> MsrFilter:
        ranges = tuple(MsrRange(access, operator.index(msr), 1, bitmap) for msr in msrs)
        return replace(self, ranges=self.ranges + ranges)


def default_allow() -> MsrFilter:
    """Return ``MsrFilter.default_allow()``."""
    return MsrFilter.default_allow()


def default_deny() -> MsrFilter:
    """Return ``MsrFilter.default_deny()``."""
    return MsrFilter.default_deny()


def _copied(bitmap: object) -> bytes:
    try:
        return bytes(memoryview(bitmap))  # type: ignore[arg-type]  # this is where it is found out
    except TypeError:
        raise TypeError(f"a bitmap is bytes, a Pointer or AtEdge, not {bitmap!r}") from None


def _is_short(each: MsrRange) -> bool:
    return isinstance(each.bitmap, bytes) and len(each.bitmap) * 8 < each.nmsrs


def _builder(each: MsrRange) -> tuple[str, int]:
    """Return which method makes this range, and its access: alike neighbours share a call."""
    if each == EMPTY_SLOT:
        return "hole", 0
    if _is_short(each):
        return "slot", 0
    one_bit = each.bitmap if each.nmsrs == 1 and isinstance(each.bitmap, bytes) else b""
    return BUILDER_CODE.get(one_bit, "range"), each.flags


def _call(method: str, access: int, ranges: list[MsrRange]) -> str:
    code = _access_code(access)
    if method == "range":
        end = "" if access == READ_WRITE else f", {code}"
        return "".join([f".range({_range_code(each)}{end})" for each in ranges])
    if method == "slot":
        return "".join([f".slot({each!r})" for each in ranges])
    if method == "hole":
        return f".hole({len(ranges) if len(ranges) > 1 else ''})"
    msrs = ", ".join([msr_code(each.base) for each in ranges])
    return f".{method}({msrs})" if access == READ_WRITE else f".{method}({msrs}, access={code})"


def _range_code(each: MsrRange) -> str:
    return f"{msr_code(each.base)}, {each.nmsrs:#x}, {_bitmap_code(each.bitmap)}"


def _access_code(access: int) -> str:
    return ACCESS_CODE.get(access, f"{access:#x}")


def _bitmap_code(bitmap: Bitmap) -> str:
    if isinstance(bitmap, AtEdge):
        return f"AtEdge({_bitmap_code(bitmap.bits)})"
    if not isinstance(bitmap, bytes) or len(bitmap) <= SHORT_BITMAP:
        return repr(bitmap)
    if bitmap == bitmap[:1] * len(bitmap):
        return f"{bitmap[:1]!r} * {len(bitmap):#x}"
    ways = [f'bytes.fromhex("{bitmap.hex()}")']
    if len(bitmap) % 8 == 0:
        ways.insert(0, f"bitmap_of({len(bitmap) * 8:#x}, [{', '.join(_runs(bitmap))}])")
    return min(ways, key=len)


def _runs(bitmap: bytes) -> Iterable[str]:
    """Yield the numbers of the bits that are set: one alone, several in a row as a range."""
    at = 0
    for is_set, run in groupby(f"{int.from_bytes(bitmap, 'little'):b}"[::-1]):
        start, at = at, at + len(list(run))
        if is_set == "1":
            yield f"{start:#x}" if at == start + 1 else f"*range({start:#x}, {at:#x})"
