"""Cases built as tests of a kernel's own: by its Makefile, clean, or one line says why."""

import shutil

import pytest

from vmm.lab.errors import LabError
from vmm.lab.kernels import selftests

MAKEFILE = """
$(OUTPUT)/%: %.c
\tmkdir -p $(@D)
\t$(CC) -Wall $(LDFLAGS) -o $@ $<
"""
GOOD = "int main(void)\n{\n\treturn 0;\n}\n"


@pytest.fixture(params=["x86", "x86_64"])
def tree(request, tmp_path):
    if not shutil.which("make") or not shutil.which("cc"):
        pytest.skip("no make or no cc")
    place = tmp_path / selftests.SELFTESTS
    (place / request.param).mkdir(parents=True)
    (place / request.param / f"{selftests.CONTROL}.c").write_text(GOOD)
    (place / "Makefile").write_text(MAKEFILE)
    (tmp_path / "Makefile").write_text("headers:\n\t@:\n")
    return tmp_path


def test_programs_come_by_name_with_the_kernels_own(tree):
    built = selftests.build(tree, {"msrward_a_b": GOOD})
    assert [*built] == [selftests.CONTROL, "msrward_a_b"]
    assert all(program.startswith(b"\x7fELF") for program in built.values())


def test_what_an_earlier_run_wrote_is_gone(tree):
    selftests.build(tree, {"msrward_a_b": GOOD})
    selftests.build(tree, {"msrward_c_d": GOOD})
    assert [each.name for each in tree.rglob("msrward_*.c")] == ["msrward_c_d.c"]


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("int main(void) { return x; }", r"do not build: .*msrward_a_b\.c:1:.*error: .x. undecl"),
        ("static int f(void) { return 0; }\n" + GOOD, r"does not build clean: .*warning: .f. def"),
    ],
)
def test_an_error_and_a_warning_are_one_line(tree, source, why):
    with pytest.raises(LabError, match=why) as error:
        selftests.build(tree, {"msrward_a_b": source})
    assert "\n" not in str(error.value)


def test_a_tree_without_the_tests_says_which_has_them(tmp_path):
    with pytest.raises(LabError, match=r"no tools/testing/.*: take the source of 6\.12 or later"):
        selftests.build(tmp_path, {})
