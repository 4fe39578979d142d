"""Models with one mistake each: what a kernel that breaks the contract would be seen to do.

A mutant is a sentence and the small rule that it replaces. ``test_mutants`` demands that at least
one case of the catalogue sees each; a mutant that survives is a case that is missing.
"""

from __future__ import annotations

from mutants_accessing import ACCESSING
from mutants_clean import CLEAN
from mutants_completing import COMPLETING
from mutants_effects import EFFECTS
from mutants_emulator import EMULATOR
from mutants_exiting import EXITING
from mutants_fastpath import FASTPATH
from mutants_forms import FORMS
from mutants_host import HOST
from mutants_ignored import IGNORING
from mutants_installing import INSTALLING
from mutants_level import LEVELS
from mutants_masking import MASKING
from mutants_matching import MATCHING
from mutants_modes import MODES
from mutants_orders import ORDERS
from mutants_platform import PLATFORM
from mutants_race import RACES
from mutants_restored import RESTORED
from mutants_shadows import SHADOWS
from mutants_sleeping import SLEEPING
from mutants_stopping import STOPPING
from mutants_sweep import SWEEPING
from mutants_validation import VALIDATION
from mutants_xen import XEN

MUTANTS = (
    *MATCHING,
    *VALIDATION,
    *INSTALLING,
    *MASKING,
    *ACCESSING,
    *EXITING,
    *COMPLETING,
    *STOPPING,
    *HOST,
    *EMULATOR,
    *FASTPATH,
    *FORMS,
    *RACES,
    *MODES,
    *EFFECTS,
    *SHADOWS,
    *IGNORING,
    *LEVELS,
    *RESTORED,
    *CLEAN,
    *ORDERS,
    *SWEEPING,
    *PLATFORM,
    *SLEEPING,
    *XEN,
)
