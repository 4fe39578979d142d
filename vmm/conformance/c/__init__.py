"""The language in C: a case as a program. Imports `language`."""
