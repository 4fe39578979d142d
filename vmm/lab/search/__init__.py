"""Which kernel or commit broke a promise. Imports `runs` and below."""
