"""``msrward doctor``: find out, by doing it, what this host allows to test.

Nothing is decided from cpuinfo flags or version numbers: the doctor opens, creates, runs and reads.
A FAIL means that ``msrward check`` cannot work here, a WARN that something is not tested or
that results need care.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict

from vmm.conformance.host import ability, faults, surroundings
from vmm.conformance.host.diagnosis import Diagnosis, Health
from vmm.conformance.host.facts import facts
from vmm.conformance.host.limits import limit_of
from vmm.errors import KvmError


def examine() -> dict[str, Diagnosis]:
    """Return the findings of all checks by name, in order; never raises."""
    return {name: _guarded(check) for name, check in CHECKS}


def render(findings: Mapping[str, Diagnosis], *, as_json: bool = False) -> str:
    """Return a line for each finding with its remedy, or one JSON object with the host's facts."""
    if as_json:
        import json

        checks = [{"check": name, **asdict(found)} for name, found in findings.items()]
        return json.dumps({"schema": 1, "checks": checks, "host": facts()}, indent=2)
    width = max(len(name) for name in findings)
    return "\n".join(
        f"{found.verdict} {name:{width}}  {found.fact}{found.remedy and f' -> {found.remedy}'}"
        for name, found in findings.items()
    )


def _guarded(check: Callable[[], Diagnosis]) -> Diagnosis:
    try:
        return check()
    except (OSError, ImportError) as error:  # KvmError is an OSError
        return Diagnosis(Health.FAIL, str(error), _remedy(error))


def _remedy(error: Exception) -> str:
    if isinstance(error, ImportError):
        build = "build and install msrward (scripts/check does both)"
        return "raise ulimit -v, or mount without noexec" if limit_of(error) else build
    if isinstance(error, KvmError) and error.detail == "/dev/kvm":
        return "see /dev/kvm"
    return ""


CHECKS: Iterable[tuple[str, Callable[[], Diagnosis]]] = (
    ("machine", surroundings.machine),
    ("kernel", surroundings.kernel),
    ("/dev/kvm", ability.device),
    ("vendor module", ability.vendor_module),
    ("platform", ability.platform),
    ("capabilities", ability.capabilities),
    ("sync regs", ability.sync_regs),
    ("guest", ability.guest),
    ("ignore_msrs", ability.ignore_msrs),
    ("forced emulation", ability.forced_emulation),
    ("kernel log", surroundings.kernel_log),
    ("userfaultfd", faults.userfaultfd),
    ("CPUs", surroundings.cpus),
    ("load", surroundings.load),
    ("users of /dev/kvm", surroundings.kvm_users),
    ("taint", surroundings.taint),
)
