"""Judges a kernel: chosen cases, workers, one run. Imports what is below, but `random` and `c`."""
