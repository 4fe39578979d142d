"""How wide a number is in the kernel's structs, said where a field is declared: ``base: u32``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True, slots=True)
class Bits:
    """The domain of a number of ``width`` bits, in two's complement if ``signed``.

    ``of`` says what it is the number of ("msr", "errno", "vcpu"...), if it counts nothing: then
    no number is plainer than another.
    """

    width: int
    signed: bool = False
    of: str = ""

    def holds(self, number: int) -> bool:
        """Say whether ``number`` fits."""
        least = -(1 << self.width - 1) if self.signed else 0
        return least <= number < least + (1 << self.width)


u8 = Annotated[int, Bits(8)]
u32 = Annotated[int, Bits(32)]
u64 = Annotated[int, Bits(64)]
MsrIndex = Annotated[int, Bits(32, of="msr")]
