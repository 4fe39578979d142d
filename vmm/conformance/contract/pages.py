"""The contract and the history as pages of docs/; ``msrward docs`` writes them."""

from __future__ import annotations

from vmm.conformance.contract.history import HISTORY, Fix
from vmm.conformance.contract.requirements import REQUIREMENTS, Requirement
from vmm.conformance.contract.signatures import UNSIGNED
from vmm.conformance.contract.sources import SOURCES

_WRITTEN = "<!-- written by `msrward docs` from vmm/conformance/contract: edit the data -->\n"
_CONTRACT = f"""\
{_WRITTEN}
# The contract of KVM's MSR filter

What a kernel promises, one requirement a part. A case names the requirements it checks; the first
of them is the one it is about. *Quirk* marks what may differ between kernels: it is recorded and
never fails one. A release explains a failure and decides none, because distributions backport.
The B entries are in [history.md](history.md). `msrward list --by-requirement` names the cases.
"""
_HISTORY = f"""\
{_WRITTEN}
# What kernels did to the contract

Bugs, fixed and open, and changes of behaviour of the MSR filter from 5.10 on. An entry without a
fix is open in the newest kernel, unless it says that it never was merged or did no harm. The R
entries are in [contract.md](contract.md).
"""


def contract_page() -> str:
    """Return docs/contract.md: every requirement with its sentence, source, eras and bugs."""
    return "\n".join([_CONTRACT, *(_requirement(each) for each in REQUIREMENTS.values())])


def history_page() -> str:
    """Return docs/history.md: every bug and change of behaviour."""
    return "\n".join([_HISTORY, *(_entry(fix) for fix in HISTORY.values())])


def _requirement(entry: Requirement) -> str:
    source = SOURCES[entry.id]
    quirk = " (quirk)" if entry.quirk else ""
    rows = [f"Source: {source.where}.", f"Since: {entry.since or '5.10'}."]
    rows += [f"Era: {each}." for each in source.eras]
    if entry.history:
        rows.append(f"Broken by: {', '.join(map(_link, entry.history))}.")
    if entry.untested:
        rows.append(f"No case: {entry.untested}.")
    return _part(entry.id, f"{entry.sentence}{quirk}", rows)


def _entry(fix: Fix) -> str:
    rows = [f"Affected: {fix.affected}."]
    if fix.commit:
        rows.append(f"Commit: {fix.commit[:12]} (v{fix.fixed_in}).")
    broken = [each.id for each in REQUIREMENTS.values() if fix.id in each.history]
    if broken:
        rows.append(f"Breaks: {', '.join(f'[{r}](contract.md#{r.lower()})' for r in broken)}.")
    if fix.id in UNSIGNED:
        rows.append(f"No signature: {UNSIGNED[fix.id]}.")
    return _part(fix.id, fix.title, [f"Seen: {fix.symptom}.", *rows])


def _link(bug: str) -> str:
    return f"[{bug}](history.md#{bug.lower()})"


def _part(name: str, sentence: str, rows: list[str]) -> str:
    head = f'## <a id="{name.lower()}"></a>{name}: {sentence}'
    return "\n".join([head, "", *(f"* {row}" for row in rows), ""])
