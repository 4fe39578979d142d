"""scripts/fleet/lava: its steps run here as LAVA runs them, with a stand-in for LAVA alone."""

import json
import shutil
import subprocess

import pytest
import yaml

from vmm.conformance.records.saved import load

RESULTS = {
    **{"PASS": "pass", "XPASS": "pass", "SKIP": "skip", "ERROR": "unknown", "UNSTEADY": "unknown"},
    **dict.fromkeys(("FAIL", "TIMEOUT", "XFAIL"), "fail"),
}
SEND = """#!/bin/sh
# Stands in for Linaro's: it takes a file of names and results, and tells LAVA.
cp "$1" "$SENT"
"""
COMMIT = "0123456789abcdef" * 2 + "01234567"
KCIDB = f"origin=mylab tree_name=mainline git_commit_hash={COMMIT}"


@pytest.fixture
def definition(files):
    return yaml.safe_load((files / "lava" / "msrward.yaml").read_text())


@pytest.fixture
def lava(files, definition, tmp_path, environ):
    """Do the steps as LAVA does: in one shell that stops at the first that fails."""

    def run(**parameters):
        tree = tmp_path / "definitions"
        shutil.copytree(files / "lava", tree / "automated/linux/msrward")
        send = tree / "automated/utils/send-to-lava.sh"
        send.parent.mkdir()
        send.write_text(SEND)
        send.chmod(0o755)
        values = {**definition["params"], **parameters}
        script = ["set -e", *definition["run"]["steps"]]
        ran = subprocess.run(
            ["sh", "-c", "\n".join(script)],
            cwd=tree,
            env={**environ, **values, "SENT": str(tmp_path / "sent")},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert "Traceback" not in ran.stderr
        return (tmp_path / "sent").read_text(), tree / "automated/linux/msrward/output"

    return run


def test_the_definition_has_what_lava_demands(definition):
    assert {"name", "format", "description"} <= definition["metadata"].keys()
    assert all(isinstance(each, str) for each in definition["params"].values())
    used = "\n".join(definition["run"]["steps"])
    assert all(f"${{{name}}}" in used for name in definition["params"])


def test_what_is_sent_is_what_is_on_record(lava, check):
    schema = pytest.importorskip("kcidb_io.schema", reason="kcidb-io is not installed")
    sent, output = lava(CHECK=check, KCIDB=KCIDB)
    saved = load(output)
    found, theme = {}, None
    for line in sent.splitlines():
        match line.split():
            case ["lava-test-set", "start", name]:
                theme = name
            case ["lava-test-set", "stop", name]:
                assert name == theme
            case [name, result]:
                assert name.startswith(f"{theme}.") and name not in found
                found[name] = result
    assert found == {name: RESULTS[case["verdict"]] for name, case in saved.cases.items()}
    assert {"pass", "skip", "unknown"} <= set(found.values())
    document = json.loads((output / "kcidb.json").read_text())
    assert schema.V5_3.is_valid_exactly(document)
    assert document["checkouts"][0]["git_commit_hash"] == COMMIT
    assert len(document["tests"]) == len(found)


def test_where_nothing_can_be_judged_lava_is_told_so(lava):
    sent, output = lava(CHECK="no.such_case")
    assert sent == "run.end fail\n"
    assert not (output / "kcidb.json").exists()
