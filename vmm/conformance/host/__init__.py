"""The host that is judged: its facts, its kernel log, what it allows. Imports floor 1."""
