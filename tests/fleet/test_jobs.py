"""The jobs for KernelCI, GitHub and GitLab, and the page about all engines: none of it rots."""

import itertools
import re
import shlex
from pathlib import Path

import jinja2
import pytest
import yaml

from vmm.cli import command_line
from vmm.conformance.cases import CASES
from vmm.conformance.records.verdict import Verdict
from vmm.conformance.report import kcidb
from vmm.lab.kernels import packaged

PAGE = Path(__file__).parents[2] / "docs" / "fleet.md"
REVISION = {
    "tree": "mainline",
    "url": "https://git.kernel.org/pub/scm/linux/kernel/git/torvalds/linux.git",
    "branch": "master",
    "commit": "a" * 40,
    "describe": "v6.18-rc1",
}
NODE = {"name": "msrward", "data": {"kernel_revision": REVISION}}


def parsed(line):
    """Parse one simple command of ours with the real parser; None for somebody else's."""
    words = shlex.split(line, comments=True)
    program = Path(words[0]).name
    if words[0].endswith("scripts/check"):
        return command_line().parse_args(["check", *words[1:]]) if "--help" not in words else None
    return command_line().parse_args(words[1:]) if program == "msrward" else None


def simple(script):
    """Return the simple commands of a shell line."""
    return [each.strip() for each in re.split(r"&&|\|\||;|\n", script) if each.strip()]


def cells(matrix):
    """Return every combination of a matrix, as a mapping."""
    return [dict(zip(matrix, each, strict=True)) for each in itertools.product(*matrix.values())]


def filled(pattern, cell, line):
    """Return a line with the names that ``pattern`` finds replaced by what a cell has for them."""
    return re.sub(pattern, lambda found: cell[found[1]], line)


def of_github(files):
    [job] = yaml.safe_load((files / "github.yml").read_text())["jobs"].values()
    for cell in cells(job["strategy"]["matrix"]):
        for step in job["steps"]:
            yield from simple(filled(r"\$\{\{ matrix\.(\w+) \}\}", cell, step.get("run", "")))


def of_gitlab(files):
    [job] = yaml.safe_load((files / "gitlab.yml").read_text()).values()
    [matrix] = job["parallel"]["matrix"]
    for cell in cells(matrix):
        for line in job["script"]:
            yield from simple(filled(r"\$(\w+)", cell, line))


@pytest.mark.parametrize("commands", [of_github, of_gitlab])
def test_a_matrix_job_says_what_the_command_takes(commands, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where junit.xml would be
    found = [each for line in commands(files) if (each := parsed(line))]
    assert [each.lab for each in found] == ["install", "run"] * 6, "emulators come first"
    runs = [each for each in found if each.lab == "run"]
    assert {each.vendor for each in runs} == {"svm", "vmx"}
    assert all(packaged.is_packaged(each.kernel) for each in runs)
    assert all(each.known and not each.globs for each in runs)
    kept = {(str(each.output), *(f"{name}={file}" for name, file in each.report)) for each in runs}
    assert kept == {("records", "junit=junit.xml")}


@pytest.mark.parametrize("name", ["github.yml", "gitlab.yml"])
def test_a_matrix_job_is_ten_lines(name, files):
    lines = (files / name).read_text().splitlines()
    assert len([each for each in lines if not each.startswith("#")]) <= 10
    assert "junit.xml" in lines[-1] and "records" in lines[-1], "what it leaves is kept"


@pytest.fixture
def job(files):
    return yaml.safe_load((files / "kernelci" / "msrward.yaml").read_text())


def rendered(files, **more):
    loader = jinja2.FileSystemLoader(files / "kernelci")
    environment = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined)
    values = {"node": NODE, "job_timeout": 30, "kcidb_origin": "", **more}
    return yaml.safe_load(environment.get_template("tests/msrward.jinja2").render(values))


@pytest.mark.parametrize("origin", ["", "mylab"])
def test_kernelci_hands_on_what_the_definition_of_lava_takes(origin, files, job):
    [step] = rendered(files, **job["jobs"]["msrward"]["params"], kcidb_origin=origin)
    [definition] = step["test"]["definitions"]
    there = yaml.safe_load((files / "lava" / Path(definition["path"]).name).read_text())
    assert f"cd ./{Path(definition['path']).parent}/" in there["run"]["steps"]
    parameters = definition["parameters"]
    assert parameters.keys() <= there["params"].keys()
    command_line().parse_args(["check", *shlex.split(parameters["CHECK"])])
    told = kcidb.words(parameters.get("KCIDB", ""))
    assert bool(told) == bool(origin)
    if told:
        kcidb.check(told)
        assert (told["origin"], told["git_commit_hash"]) == (origin, REVISION["commit"])


def test_kernelci_schedules_the_job_with_its_template(files, job):
    [(name, said)] = job["jobs"].items()
    assert [each["job"] for each in job["scheduler"]] == [name]
    template = (files / "kernelci" / said["template"]).read_text()
    loader = jinja2.ChoiceLoader(
        [
            jinja2.DictLoader({"base/lava.jinja2": "{{ test_method }} {{ boot_commands }}"}),
            jinja2.FileSystemLoader(files / "kernelci"),
        ]
    )
    words = jinja2.Environment(loader=loader).from_string(template).render(runtime="lava")
    assert words.split() == ["msrward", said["params"]["boot_commands"]]
    assert (files / "kernelci" / "tests" / f"{words.split()[0]}.jinja2").exists()


def test_every_command_of_the_page_parses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = re.findall(r"^    ((?:\S*/)?(?:msrward|scripts/check) .*)$", PAGE.read_text(), re.M)
    assert len(lines) >= 5 and all(parsed(line) for line in lines)


def test_the_page_names_what_is_there(files):
    named = set(re.findall(r"`scripts/fleet/([\w./-]+)`", PAGE.read_text()))
    assert named and all((files / each).exists() for each in named)
    those = {each.name for each in files.iterdir()}
    assert those <= {each.partition("/")[0] for each in named}, "every engine has its part"


def test_the_page_has_every_verdict():
    page = PAGE.read_text()
    assert all(re.search(rf"\b{verdict}\b", page) for verdict in Verdict)
    assert {each.id for each in CASES if each.id in page}
