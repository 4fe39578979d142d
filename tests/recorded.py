"""Records as a run leaves them, for the tests of what reads them."""

from vmm.conformance.records.verdict import Verdict


def case_record(name, verdict="PASS", **more):
    """Return the record of a case about R14, with ``more`` in it."""
    fixed = {"type": "case", "sentence": f"What {name} says.", "requirements": ["R14"], "ms": 1.0}
    return {**fixed, "id": name, "verdict": Verdict(verdict), **more}
