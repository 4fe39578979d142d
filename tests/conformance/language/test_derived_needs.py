"""What a script needs follows from its words."""

import pytest

from vmm.conformance.cases import CASES
from vmm.conformance.host.needs import PROBES
from vmm.conformance.host.told import lacks_of
from vmm.conformance.language.needs import needs_of
from vmm.conformance.language.script import begin, get_regs, get_vcpu_events, rdmsr
from vmm.lab import vendors


def emulated(after):
    return begin(rdmsr(1, emulated=True, after=after))


@pytest.mark.parametrize(
    ("script", "needed"),
    [
        ((emulated("sti"), get_vcpu_events()), True),
        ((emulated("mov_ss"), get_vcpu_events()), True),
        ((emulated("sti_nop"), get_vcpu_events()), False),
        ((begin(rdmsr(1, after="sti")), get_vcpu_events()), False),
        ((emulated("sti"),), False),
        ((emulated("sti"), get_regs(), get_vcpu_events()), False),
    ],
)
def test_a_shadow_that_is_looked_at_must_outlive_the_prefix(script, needed):
    assert ("emulated_shadow" in needs_of(script)) is needed


def test_four_cases_look_at_it():
    found = [case.id for case in CASES if "emulated_shadow" in case.all_needs]
    assert found == [
        f"shadows.emulated_{mode}_ends_with_the_access"
        for mode in ("long", "compat", "protected", "real")
    ]


@pytest.mark.parametrize("vendor", vendors.VENDORS)
def test_what_a_vendor_lacks_is_what_a_case_can_need(vendor):
    assert lacks_of(vendors.of(vendor).lacks).keys() <= {*PROBES}
