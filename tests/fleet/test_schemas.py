"""What is to be copied, held against the schemas that its readers have of it themselves."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jinja2
import pytest
import yaml

SYSTEM = "/usr/bin/python3"
LAVA = """
import json, sys
from voluptuous import Invalid, Schema
from lava_common.schemas.test import definition, testdef
try:
    whole = json.load(sys.stdin)
    testdef.validate(whole["definition"])
    Schema(definition.schema())(whole["job"]["test"])
except Invalid as error:
    sys.exit(str(error))
"""


def ours(name):
    """Return the command of that name that is beside this Python; skip where there is none."""
    command = Path(sys.executable).with_name(name)
    if not command.exists():
        pytest.skip(f"no {name}: pip install {name}")
    return command


def said(*command, **more):
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, **more)
    return ran.returncode, ran.stdout + ran.stderr


JOBS = {"github.yml": "vendor.github-workflows", "gitlab.yml": "vendor.gitlab-ci"}


@pytest.mark.parametrize("name", JOBS)
def test_a_matrix_job_is_one_by_the_schema_of_its_engine(name, files, tmp_path):
    check = (ours("check-jsonschema"), "--builtin-schema", JOBS[name])
    assert said(*check, files / name) == (0, "ok -- validation done\n")
    job = yaml.safe_load((files / name).read_text())
    job = job.get("jobs", job)["msrward"]
    job["script" if "script" in job else "steps"] = 5
    wrong = tmp_path / name
    wrong.write_text(json.dumps({"jobs": {"msrward": job}, "on": ["push"], "msrward": job}))
    status, text = said(*check, wrong)
    assert status == 1 and "Schema validation errors" in text, "the schema looks at the steps"


@pytest.fixture
def lava():
    """Return what holds a test definition and a job's test against LAVA's own schemas."""
    if not Path(SYSTEM).exists() or said(SYSTEM, "-c", "import lava_common")[0]:
        pytest.skip("no lava_common: apt-get install lava-common (Debian)")
    return lambda **whole: said(SYSTEM, "-c", LAVA, input=json.dumps(whole))


def test_lava_takes_the_definition_and_the_job_that_kernelci_makes_of_it(files, lava):
    definition = yaml.safe_load((files / "lava" / "msrward.yaml").read_text())
    loader = jinja2.FileSystemLoader(files / "kernelci")
    template = jinja2.Environment(loader=loader).get_template("tests/msrward.jinja2")
    where = {"test_definitions": "https://git.example.org/t.git", "job_timeout": 30}
    [job] = yaml.safe_load(template.render(node={"name": "msrward", "data": {}}, **where))
    assert lava(definition=definition, job=job) == (0, "")
    status, text = lava(definition={**definition, "run": {}}, job=job)
    assert status == 1 and "steps" in text
    status, text = lava(definition=definition, job={"test": {**job["test"], "definitions": 5}})
    assert status == 1 and "definitions" in text


def test_tmt_takes_the_plan_and_the_test(files, tmp_path):
    tmt = ours("tmt")
    tree = shutil.copytree(files / "tmt", tmp_path / "tree")
    status, text = said(tmt, "--root", tree, "lint")
    assert status == 0, text
    assert text.count("fmf node passes schema validation") == 2, "the plan, and the test"
    plan = tree / "plan.fmf"
    plan.write_text(plan.read_text() + "nonesuch: 5\n")
    assert said(tmt, "--root", tree, "lint")[0] == 1
