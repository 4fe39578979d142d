"""Cases as tests for the kernel's own KVM selftests: what they say, and what is refused."""

import re

import pytest

from vmm.cli import main, selftests
from vmm.conformance.c.selftest import selftest_source
from vmm.conformance.cases import CASES

BY_ID = {case.id: case for case in CASES}


def test_an_exit_is_asserted_field_by_field():
    text = selftest_source(BY_ID["exits.denied_unknown_read_is_filter"])
    assert "expect_exit(vcpus[0], KVM_EXIT_X86_RDMSR" in text
    assert "KVM_MSR_EXIT_REASON_FILTER" in text
    assert "expect_value(vcpus[0], 0x1122334455667788);" in text
    assert "expect_vector(vcpus[0], GP_VECTOR);" in selftest_source(BY_ID["masks.none.filter.read"])


def test_it_is_laid_out_as_kernel_code_is():
    """It is sent to a list: no line is one that checkpatch would name."""
    for name, text in expressible():
        assert all(len(line.expandtabs(8)) <= 100 for line in text.splitlines()), name


def test_an_error_is_asserted_with_its_errno():
    text = selftest_source(BY_ID["validation.filter_flag"])
    assert "&filter_4), -1);\n\tTEST_ASSERT_EQ(errno, EINVAL);" in text


@pytest.mark.parametrize(
    ("theme", "why"),
    [("emulated", "force_emulation_prefix"), ("levels", "nested"), ("stalled", "userfaultfd")],
)
def test_what_the_harness_cannot_express_is_refused(theme, why, capsys):
    name = next(each for each in BY_ID if each.startswith(f"{theme}."))
    with pytest.raises(ValueError, match=why) as error:
        selftest_source(BY_ID[name])
    assert "\n" not in str(error.value)
    assert main(["export", name, "--selftest"]) == 2


def expressible():
    for case in CASES:
        try:
            yield case.id, selftest_source(case)
        except ValueError:
            continue


def test_a_test_has_the_functions_that_it_uses():
    """The kernel builds with -Wall: a function that nothing calls is a warning."""
    sources = dict(expressible())
    assert len(sources) > 400
    for name, text in sources.items():
        for function in re.findall(r"(?m)^static [\w ]+ \*?(\w+)\(", text):
            assert len(re.findall(rf"\b{function}\b", text)) > 1, (name, function)


def test_a_command_with_no_case_for_it_is_one_line(capsys):
    assert selftests.main(["stalled.*"]) == 2
    assert capsys.readouterr().err.startswith("msrward: no case that the harness can express")
