"""Small work for the workers of a cluster, by name; imported there, so it imports little."""

import os
import signal
import tempfile
import time
from pathlib import Path

from vmm.conformance.records.results import Results
from vmm.lab.errors import LabError
from vmm.lab.mutants.findings import Fate, MutantRecord
from vmm.lab.runs.away import Returned


def by_whom(number, place):
    """Note who does it, wait until somebody says go on, and say who did it."""
    Path(place, f"{number}.{os.getppid()}.{time.monotonic_ns()}").touch()
    while not Path(place, "go").exists():
        time.sleep(0.05)
    return number, os.getpid()


def forever(path):
    """Write who does it, and do nothing for good."""
    Path(path).write_text(f"{os.getpid()}\n")
    while True:
        signal.pause()


def judge(mutant, image, options):
    """Stand for the boot of a mutant: note who does it, wait as it says, and tell its image."""
    number, _ = by_whom(mutant.name, mutant.summary)
    return MutantRecord(number, mutant.digest, mutant.vendor, Fate.KILLED, (image.decode(),))


def judge_there(parcel, order, vendor, append, home):
    """Stand for the boot of a kernel, whose image says where to note it and what it does."""
    place, verdict = dict(parcel.files)["vmlinuz"].decode().split("\0")
    by_whom(parcel.release, place)
    (name,) = order.chosen.ids
    host = {"release": parcel.release, "lab": {"vendor": vendor, "emulator": "none"}}
    case = {"type": "case", "id": name, "sentence": "It is.", "requirements": ["R14"], "ms": 1.0}
    lab = {"outcome": "done", "reason": "", "console": []}
    end = {"type": "end", "splats": [], "interrupted": False, "counts": {}, "lost": 0}
    end |= {"seconds": 1.0, "fingerprint": "", "lab": lab, "status": int(verdict == "FAIL")}
    with tempfile.TemporaryDirectory() as scratch:
        with Results(Path(scratch), host) as results:
            results.write({**case, "verdict": verdict})
            results.write(end)
        return Returned("", (("results.jsonl", results.path.read_bytes()),))


def judge_nowhere(mutant, image, options):
    """Be asked for a mutant where no lab is."""
    refuse()


def refuse():
    """Do what a lab without an emulator does."""
    raise LabError("no qemu here")


def vanish():
    """End as something that the kernel ends for want of memory."""
    os.kill(os.getpid(), signal.SIGKILL)
