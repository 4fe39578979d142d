"""Mistakes in races: what a kernel shows that swaps in halves, forgets vCPUs or holds its lock."""

from __future__ import annotations

from mutants_calling import CALLING
from mutants_closing import CLOSING
from mutants_resuming import RESUMING
from mutants_spinning import SPINNING
from mutants_stalling import STALLING
from mutants_waiting import WAITING

RACES = (*STALLING, *RESUMING, *WAITING, *CALLING, *SPINNING, *CLOSING)
