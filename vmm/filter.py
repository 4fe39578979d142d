"""An MSR filter as a value: what ``KVM_X86_SET_MSR_FILTER`` is given.

The value can be well formed (use ``default_allow``/``default_deny`` and ``allow``/``deny``) or as
wrong as a case wants it (give ``MsrRange`` any fields that fit the ABI's widths): only the kernel
judges it. Placing it in memory is the work of ``vmm.kvm``.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, replace

from vmm.msr import (
    KVM_MSR_FILTER_DEFAULT_ALLOW,
    KVM_MSR_FILTER_DEFAULT_DENY,
    KVM_MSR_FILTER_MAX_RANGES,
    KVM_MSR_FILTER_READ,
    KVM_MSR_FILTER_WRITE,
)

READ, WRITE = KVM_MSR_FILTER_READ, KVM_MSR_FILTER_WRITE
READ_WRITE = READ | WRITE
U32 = 0xFFFFFFFF


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


Bitmap = bytes | Pointer | AtEdge


def bitmap_size(nmsrs: int) -> int:
    """Return the bytes the kernel reads for ``nmsrs`` bits: whole 8-byte longs."""
    return (nmsrs + 63) // 64 * 8


def bitmap_of(nmsrs: int, allowed: Iterable[int]) -> bytes:
    """Return a bitmap of ``nmsrs`` bits, least significant first, with the ``allowed`` set."""
    bits = bytearray(bitmap_size(nmsrs))
    for bit in allowed:
        bits[bit >> 3] |= 1 << (bit & 7)
    return bytes(bits)


@dataclass(frozen=True, slots=True)
class MsrRange:
    """``struct kvm_msr_filter_range``: MSRs ``[base, base + nmsrs)`` and a bit for each, 1 = allow.

    ``flags`` says which accesses it governs (READ, WRITE); a field that does not fit 32 bits is a
    ``ValueError``. Bytes beyond a short bitmap are sent as zeroes.
    """

    flags: int
    base: int
    nmsrs: int
    bitmap: Bitmap

    def __post_init__(self) -> None:
        """Refuse what the struct's fields cannot hold."""
        for name in ("flags", "base", "nmsrs"):
            if not 0 <= getattr(self, name) <= U32:
                raise ValueError(f"MsrRange.{name} must fit 32 bits, not {getattr(self, name):#x}")


EMPTY_SLOT = MsrRange(0, 0, 0, Pointer.NULL)


@dataclass(frozen=True, slots=True)
class MsrFilter:
    """``struct kvm_msr_filter``: flags (the default action) and up to 16 ranges, in slot order.

    More than 16 ranges or flags beyond 32 bits are a ``ValueError``; all else is the kernel's to
    judge. Unused slots are sent empty.
    """

    flags: int = KVM_MSR_FILTER_DEFAULT_ALLOW
    ranges: tuple[MsrRange, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what the struct cannot hold."""
        if not 0 <= self.flags <= U32:
            raise ValueError(f"MsrFilter.flags must fit 32 bits, not {self.flags:#x}")
        if len(self.ranges) > KVM_MSR_FILTER_MAX_RANGES:
            raise ValueError(f"a filter has 16 slots, not {len(self.ranges)}")

    @classmethod
    def default_allow(cls) -> MsrFilter:
        """Return the filter that denies nothing yet; installed as it is, it turns filtering off."""
        return cls(KVM_MSR_FILTER_DEFAULT_ALLOW)

    @classmethod
    def default_deny(cls) -> MsrFilter:
        """Return the filter that denies all; without a range the kernel refuses it (R12)."""
        return cls(KVM_MSR_FILTER_DEFAULT_DENY)

    def range(self, base: int, nmsrs: int, bitmap: Bitmap, flags: int = READ_WRITE) -> MsrFilter:
        """Return this filter with one more range in the next slot."""
        return replace(self, ranges=(*self.ranges, MsrRange(flags, base, nmsrs, bitmap)))

    def deny(self, *msrs: int, access: int = READ_WRITE) -> MsrFilter:
        """Return this filter with one more one-MSR denying range for each of ``msrs``."""
        return self._each(msrs, b"\x00", access)

    def allow(self, *msrs: int, access: int = READ_WRITE) -> MsrFilter:
        """Return this filter with one more one-MSR allowing range for each of ``msrs``."""
        return self._each(msrs, b"\x01", access)

    def hole(self, slots: int = 1) -> MsrFilter:
        """Return this filter with ``slots`` empty slots after its ranges."""
        return replace(self, ranges=(*self.ranges, *(EMPTY_SLOT,) * slots))

    def _each(self, msrs: tuple[int, ...], bitmap: bytes, access: int) -> MsrFilter:
        ranges = tuple(MsrRange(access, int(msr), 1, bitmap) for msr in msrs)
        return replace(self, ranges=self.ranges + ranges)


def default_allow() -> MsrFilter:
    """Return ``MsrFilter.default_allow()``."""
    return MsrFilter.default_allow()


def default_deny() -> MsrFilter:
    """Return ``MsrFilter.default_deny()``."""
    return MsrFilter.default_deny()
