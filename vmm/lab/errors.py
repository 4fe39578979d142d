"""The one exception of the lab."""

from __future__ import annotations


class LabError(Exception):
    """Something the user can act on, said in one line: what is wrong and what to do about it."""
