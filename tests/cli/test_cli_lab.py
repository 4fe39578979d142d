"""The lab's commands from outside. The one boot is a real kernel on a real emulator."""

import json
import os
import subprocess
import sys

import pytest

from vmm.conformance.report.progress import HEARTBEAT_SECONDS
from vmm.lab.errors import LabError
from vmm.lab.kernels import kernels, packaged
from vmm.lab.machines import emulators

HANDFUL = ("plumbing.capability_*", "matching.*first*", "rollback.*slot_0", "ignored.*_mask_*")


@pytest.fixture
def lab(tmp_path):
    """Run ``msrward lab`` and return the finished process."""

    def run(*args, env=(), timeout=400):
        return subprocess.run(
            [sys.executable, "-P", "-m", "vmm", "lab", *map(str, args)],
            text=True,
            capture_output=True,
            timeout=timeout,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(sys.path),
                "XDG_STATE_HOME": str(tmp_path),
                **dict(env),
            },
        )

    return run


@pytest.fixture(scope="module")
def kernel():
    """Return what to call a distribution kernel that can be had here; skip with the reason."""
    try:
        emulators.find("qemu")
        cached = packaged.cached()
        name = cached[-1].name if cached else packaged.newest("debian:6.1").name
        kernels.resolve(name)
    except LabError as error:
        pytest.skip(str(error))
    return name


def test_a_distribution_kernel_is_judged_without_hardware(lab, kernel, tmp_path):
    ran = lab("run", "--kernel", kernel, "-o", tmp_path / "out", *HANDFUL)
    lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    first, *cases, end = map(json.loads, lines)
    assert ran.returncode == end["status"], ran.stderr
    assert ran.returncode in (0, 1), "5.10 and older lack fixes; no kernel gives trouble"
    assert [first["type"], end["type"]] == ["run", "end"]
    assert len(cases) == first["cases"] > 10
    assert {case["host"]["lab"]["kernel"] for case in cases} == {kernel}
    assert {case["host"]["vendor_module"] for case in cases} == {"kvm_amd"}
    assert end["lab"]["boot_seconds"] < end["lab"]["total_seconds"]
    assert f"kernel {first['host']['release']} (kvm_amd) in the lab" in ran.stdout
    if end["lab"]["boot_seconds"] > 2 * HEARTBEAT_SECONDS:
        assert "msrward: booting" in ran.stderr
    second = [case for case in cases if case["id"].startswith("ignored.")]
    assert {(case["verdict"], case.get("ignore_msrs")) for case in second} == {("PASS", True)}
    assert f"{len(second)} cases judged in a second pass" in ran.stdout


def test_a_module_gets_its_parameters_and_the_records_say_so(lab, kernel, tmp_path):
    line = "kvm.ignore_msrs=1 kvm_amd.nested=0"
    cases = ("exits.unknown_is_unknown", "ignored.denied_exits_as_filter")
    ran = lab("run", "--kernel", kernel, "--append", line, "-o", tmp_path / "out", *cases)
    lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    records = {record["id"]: record for record in map(json.loads, lines) if "id" in record}
    host = next(iter(records.values()))["host"]
    assert ran.returncode == 0, ran.stderr
    assert host["lab"]["append"] == line
    assert host["parameters"]["kvm"]["ignore_msrs"] == "Y"
    assert host["parameters"]["kvm_amd"]["nested"] in ("0", "N")
    assert [records[name]["verdict"] for name in cases] == ["SKIP", "PASS"]
    assert records[cases[0]]["reason"].startswith("ignore_msrs is 1")
    assert "second pass" not in ran.stdout


def test_a_kernel_without_an_image_is_one_line(lab):
    ran = lab("run", "--kernel", "/etc/hostname")
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)
    assert "bzImage" in ran.stderr


def test_a_slip_in_a_glob_is_found_before_anything_boots(lab):
    ran = lab("run", "--kernel", "/etc/hostname", "macthing.*")
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)
    assert "macthing" in ran.stderr


def test_a_missing_emulator_is_one_line_that_says_how_to_get_it(lab, tmp_path):
    image = tmp_path / "bzImage"
    header = bytearray(2048 + 64)
    header[0x1F1], header[0x1F4], header[0x20F] = 3, 4, 1
    header[0x202:0x206] = b"HdrS"
    header[0x300:0x306] = b"6.6.6\0"
    image.write_bytes(header)
    empty = {"PATH": str(tmp_path), "MSRWARD_CACHE": str(tmp_path / "cache")}
    ran = lab("run", "--kernel", image, "R14", env=empty)
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)
    assert "msrward lab install qemu" in ran.stderr


def test_clean_empties_the_cache(lab, tmp_path):
    (tmp_path / "cache" / "kernels").mkdir(parents=True)
    (tmp_path / "cache" / "kernels" / "leftover").write_text("x" * 2_000_000)
    ran = lab("clean", env={"MSRWARD_CACHE": str(tmp_path / "cache")})
    assert (ran.returncode, ran.stdout) == (0, f"freed 2 MB of {tmp_path / 'cache'}\n")
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize(("options", "debug"), [((), False), (("--debug",), True)])
def test_the_minimal_configuration_is_printed(lab, options, debug):
    ran = lab("config", *options)
    assert ran.returncode == 0 and "CONFIG_KVM_AMD=y\n" in ran.stdout
    assert ("CONFIG_KASAN=y" in ran.stdout.splitlines()) is debug
