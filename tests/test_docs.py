"""The pages of docs/: what data makes is fresh, and what they point at is there."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from vmm.cli import command_line, main
from vmm.cli.docs import pages
from vmm.conformance.contract.requirements import HISTORY, REQUIREMENTS
from vmm.conformance.kernel.backend import KvmBackend
from vmm.conformance.language import codec
from vmm.conformance.language.examples import BROKEN, EXAMPLES
from vmm.conformance.language.glossary import example_of, words_of
from vmm.conformance.language.script import first_difference, steps
from vmm.conformance.language.vocabulary import vocabulary
from vmm.conformance.oracle.model import Model
from vmm.conformance.records.status import epilog

VARIABLE = re.compile(r"\b(?:MSRWARD_(?!\w+_H\b)\w+|XDG_\w+|NO_COLOR)\b|(?<=\")TERM(?=\")")
ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = pages(command_line())


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_what_the_data_says(name):
    assert (DOCS / name).read_text() == PAGES[name](), "run: msrward docs docs"


def test_the_command_writes_the_pages(tmp_path):
    assert main(["docs", str(tmp_path / "new")]) == 0
    assert {each.name for each in (tmp_path / "new").iterdir()} == set(PAGES)


def test_every_id_has_a_part():
    contract, history = PAGES["contract.md"](), PAGES["history.md"]()
    assert re.findall(r"^## .*</a>(R\d\d)", contract, re.M) == list(REQUIREMENTS)
    assert re.findall(r"^## .*</a>(B\d\d)", history, re.M) == list(HISTORY)


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#:]+)(?:#([^)]*))?\)", page.read_text()):
        assert (DOCS / target).exists(), target
        assert not anchor or f'id="{anchor}"' in (DOCS / target).read_text(), anchor


def test_comments_point_at_pages_that_are_there():
    for source in [*ROOT.glob("vmm/**/*.py"), *ROOT.glob("native/**/*.*"), *ROOT.glob("guests/*")]:
        text = source.read_text()
        assert not re.search(r"CONTRACT\.md|DESIGN(\.md| \d)|LAB\.md", text), source
        assert all((ROOT / each).exists() for each in re.findall(r"\bdocs/\w+\.\w+", text)), source


def test_a_guide_names_files_that_are_there():
    for page in (DOCS / "design.md", DOCS / "adding.md"):
        for path in re.findall(r"`((?:vmm|tests|native|scripts)/[a-z_./]+)`", page.read_text()):
            assert (ROOT / path).exists(), f"{page.name}: {path}"


def sources():
    """Return every file of the code, the scripts and the tests but this one."""
    found = [*ROOT.glob("scripts/**/*"), ROOT / "meson.build", ROOT / ".ci/run"]
    for room in ("vmm", "tests", "native"):
        found += [
            each for end in ("py", "c", "h", "sh", "S") for each in ROOT.glob(f"{room}/**/*.{end}")
        ]
    return [each for each in found if each.is_file() and each != Path(__file__)]


def test_the_page_has_the_variables_that_are_read_and_no_others():
    text = [each.read_text(errors="replace") for each in sources()]
    read = {name for each in text for name in VARIABLE.findall(each)}
    page = (DOCS / "environment.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.M)) == read


def test_the_page_has_the_statuses_of_the_command():
    documented = re.findall(r"^\| (\d+) \|", (DOCS / "environment.md").read_text(), re.M)
    assert documented == re.findall(r"^  (\d+)  ", epilog(), re.M)


def test_the_manual_has_every_command_and_option():
    page = (DOCS / "msrward.1").read_text().replace("\\-", "-")
    parser = command_line()
    commands = next(each for each in parser._actions if each.dest == "command")
    assert commands.choices
    for name, inner in dict(commands.choices).items():
        assert f'.SS "{name}"' in page
        for action in inner._actions:
            assert all(option in page for option in action.option_strings)


@pytest.mark.skipif(not shutil.which("groff"), reason="groff is not here to read the manual")
def test_the_manual_is_roff():
    ran = subprocess.run(
        ["groff", "-man", "-Tascii", "-P-cbou", "-ww", DOCS / "msrward.1"],
        capture_output=True,
        text=True,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "bisect-step" in ran.stdout


@pytest.mark.parametrize("name", sorted(vocabulary()))
def test_every_word_has_an_example(name):
    assert example_of(name)


def test_what_only_a_broken_kernel_leaves_is_in_no_example():
    shown = {name for case in EXAMPLES for name in words_of((*case.actions, *case.expected))}
    assert set(BROKEN) == set(vocabulary()) - shown


@pytest.mark.parametrize("case", EXAMPLES, ids=lambda case: case.id)
def test_an_example_is_saved_and_predicted(case):
    assert codec.load(codec.dump(case)) == case
    seen = Model().predict(case.actions)
    assert first_difference(case.actions, case.expected, seen) is None
    assert len(steps(case.actions, seen)) == len(case.actions)


@pytest.mark.parametrize("case", EXAMPLES, ids=lambda case: case.id)
def test_an_example_is_what_this_kernel_does(case, has_kvm):
    with KvmBackend() as backend:
        lacks = [reason for need in case.all_needs if (reason := backend.lacks(need))]
        if lacks:
            pytest.skip(lacks[0])
        seen = backend.run(case.actions, expected=case.expected)
    assert first_difference(case.actions, case.expected, seen) is None
