"""What a host is said to lack, where trying it would end the machine."""

from __future__ import annotations

import os


def lacks_of(text: str) -> dict[str, str]:
    """Return the needs of ``need=reason;need=reason``, with their reasons."""
    pairs = (each.partition("=") for each in text.split(";"))
    return {need: reason for need, equals, reason in pairs if equals}


def told_lacks() -> dict[str, str]:
    """Return the needs that $MSRWARD_LACKS says are not met: the lab tells its guests so."""
    return lacks_of(os.environ.get("MSRWARD_LACKS", ""))
