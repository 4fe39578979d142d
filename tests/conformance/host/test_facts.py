"""The host's facts: over a made-up root directory, and on this host."""

import json
import os
import time
from pathlib import Path

import pytest

from vmm.conformance.host import facts as host

CPU = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Test CPU @ 2.00GHz
flags\t\t: fpu msr vmx hypervisor

processor\t: 1
vendor_id\t: GenuineIntel
model name\t: the second one
"""


def plant(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "sys/module/kvm/holders/kvm_intel").mkdir(parents=True)
    (tmp_path / "sys/module/kvm/holders/kvmgt").mkdir()
    return plant(
        tmp_path,
        {
            "proc/sys/kernel/osrelease": "6.1.0-test\n",
            "proc/sys/kernel/version": "#1 SMP\n",
            "proc/sys/kernel/arch": "x86_64\n",
            "proc/sys/kernel/tainted": "4609\n",
            "proc/sys/kernel/random/boot_id": "f230ca18-45a1-48f0-b61b-c77e46236446\n",
            "proc/cpuinfo": CPU,
            "proc/meminfo": "MemTotal:       2048 kB\nMemFree: 1 kB\n",
            "sys/module/kvm/parameters/ignore_msrs": "N\n",
            "sys/module/kvm_intel/parameters/nested": "Y\n",
            "sys/module/kvm_intel/parameters/empty": "\n",
            "sys/module/kvm_amd/parameters/nested": "1\n",
            "sys/devices/system/cpu/online": "0-3,8,10-11\n",
            "sys/devices/system/clocksource/clocksource0/current_clocksource": "kvm-clock\n",
            "sys/class/dmi/id/sys_vendor": "QEMU\n",
            "sys/class/dmi/id/product_name": "Standard PC\n",
        },
    )


def test_every_fact_of_a_full_root(root: Path) -> None:
    found = host.facts(root)
    assert isinstance(found.pop("msrward"), str)
    assert found == {
        "release": "6.1.0-test",
        "version": "#1 SMP",
        "machine": "x86_64",
        "boot_id": "f230ca18-45a1-48f0-b61b-c77e46236446",
        "vendor_module": "kvm_intel",
        "parameters": {"kvm": {"ignore_msrs": "N"}, "kvm_intel": {"nested": "Y"}},
        "cpu_vendor": "GenuineIntel",
        "cpu_model": "Intel(R) Xeon(R) Test CPU @ 2.00GHz",
        "cpus_online": 7,
        "clocksource": "kvm-clock",
        "memory_bytes": 2 << 20,
        "platform": "virtual",
        "hypervisor": None,
        "dmi_vendor": "QEMU",
        "dmi_product": "Standard PC",
        "taint": 4609,
        "taint_letters": "PWO",
    }


def test_an_empty_root_has_the_same_facts_all_unknown(root: Path, tmp_path: Path) -> None:
    found = host.facts(tmp_path / "absent")
    assert set(found) == set(host.facts(root))
    assert found.pop("parameters") == {"kvm": {}}
    found.pop("msrward")
    assert set(found.values()) == {None}


@pytest.mark.parametrize(
    "text", ["", "\n", "nonsense", "-1", "0-x", "-", "1,,2", "\x00", "²", "a:b"]
)
def test_nonsense_in_any_file_is_no_exception(root: Path, text: str) -> None:
    for path in root.rglob("*"):
        if path.is_file():
            path.write_text(text)
    found = host.facts(root)
    assert found["taint"] is None
    assert found["memory_bytes"] is None
    assert found["cpus_online"] is None
    json.dumps(found)


def test_a_directory_in_the_place_of_a_file_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "proc/cpuinfo").mkdir(parents=True)
    assert host.facts(tmp_path)["cpu_vendor"] is None


def test_a_caller_may_add_to_its_copy(root: Path) -> None:
    host.facts(root)["capabilities"] = {}
    assert "capabilities" not in host.facts(root)


def test_facts_are_read_once(root: Path) -> None:
    host.facts(root)
    (root / "proc/sys/kernel/osrelease").write_text("later")
    assert host.facts(root)["release"] == "6.1.0-test"


def holders(root: Path, *names: str) -> None:
    for name in names:
        (root / "sys/module/kvm/holders" / name).mkdir(parents=True)


def cpu(vendor: str, flags: str) -> dict[str, str]:
    return {"proc/cpuinfo": f"vendor_id\t: {vendor}\nflags\t\t: {flags}\n"}


def test_the_vendor_module_is_the_one_that_holds_kvm(tmp_path: Path) -> None:
    holders(tmp_path, "kvm_pvm", "vfio")
    plant(tmp_path, {"sys/module/kvm_amd/parameters/nested": "1"})
    assert host.facts(tmp_path)["vendor_module"] == "kvm_pvm"


def test_proc_modules_tells_where_sysfs_has_no_holders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/proc/modules gives a page at a time."""
    read = os.read
    monkeypatch.setattr(host.os, "read", lambda fd, size: read(fd, min(size, 4096)))
    lines = "".join(f"filler{n} 16384 0 - Live 0x0000000000000000\n" for n in range(500))
    kvm = "kvm 1347584 1 kvm_amd, Live 0x0000000000000000\n"
    plant(tmp_path, {"proc/modules": lines + kvm})
    assert host.facts(tmp_path)["vendor_module"] == "kvm_amd"


def test_a_single_builtin_module_is_the_one(tmp_path: Path) -> None:
    plant(tmp_path, {"sys/module/kvm_pvm/parameters/force": "N"})
    assert host.facts(tmp_path)["vendor_module"] == "kvm_pvm"


BOTH = {
    "sys/module/kvm_intel/parameters/nested": "Y",
    "sys/module/kvm_amd/parameters/nested": "1",
}


@pytest.mark.parametrize(
    ("vendor", "flags", "expected"),
    [
        ("GenuineIntel", "fpu vmx", "kvm_intel"),
        ("AuthenticAMD", "fpu svm", "kvm_amd"),
        ("HygonGenuine", "svm", "kvm_amd"),
        ("  Shanghai  ", "vmx", "kvm_intel"),
        ("AuthenticAMD", "fpu", None),
        ("Unheard", "vmx", None),
    ],
)
def test_where_both_are_built_in_the_cpu_tells(
    tmp_path: Path, vendor: str, flags: str, expected: str | None
) -> None:
    plant(tmp_path, BOTH | cpu(vendor, flags))
    assert host.facts(tmp_path)["vendor_module"] == expected


def test_without_vmx_and_svm_the_third_module_is_the_one(tmp_path: Path) -> None:
    plant(tmp_path, BOTH | cpu("AuthenticAMD", "fpu") | {"sys/module/kvm_pvm/parameters/a": "1"})
    assert host.facts(tmp_path)["vendor_module"] == "kvm_pvm"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (cpu("GenuineIntel", "fpu vmx"), "bare metal"),
        (cpu("GenuineIntel", "fpu hypervisor"), "virtual"),
        (cpu("GenuineIntel", "fpu") | {"sys/class/dmi/id/sys_vendor": "QEMU"}, "virtual"),
        (cpu("GenuineIntel", "fpu") | {"sys/class/dmi/id/sys_vendor": "Dell Inc."}, "bare metal"),
        (cpu("GenuineIntel", "fpu") | {"sys/hypervisor/type": "xen"}, "virtual"),
        ({}, None),
    ],
)
def test_bare_metal_or_virtual(tmp_path: Path, files: dict[str, str], expected: str | None) -> None:
    assert host.facts(plant(tmp_path, files))["platform"] == expected


@pytest.mark.parametrize(
    ("taint", "letters"),
    [(0, ""), (1, "P"), (512, "W"), (1 << 18, "N"), (1 << 19, "J"), (1 << 25 | 128, "D?")],
)
def test_taint_letters(taint: int, letters: str) -> None:
    assert host.taint_letters(taint) == letters


def test_the_version_is_that_of_the_installed_distribution(tmp_path: Path) -> None:
    (tmp_path / "msrward-1.2.3.dist-info").mkdir()
    assert host._msrward_version(["/absent", str(tmp_path)]) == "1.2.3"
    assert host._msrward_version(["/absent"]) == "unknown"


def test_this_host() -> None:
    found = host.facts()
    assert found["release"] == os.uname().release
    assert found["version"] == os.uname().version
    assert found["machine"] == os.uname().machine
    assert found["cpus_online"] == os.sysconf("SC_NPROCESSORS_ONLN")
    assert isinstance(found["memory_bytes"], int)
    assert found["cpu_vendor"]
    json.dumps(found)


@pytest.mark.alone("it measures time")
def test_the_facts_take_less_than_5_ms() -> None:
    best = min(timed() for _ in range(20))
    assert best < 0.005


def timed() -> float:
    host._facts.cache_clear()
    begin = time.perf_counter()
    host.facts()
    return time.perf_counter() - begin
