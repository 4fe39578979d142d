import lzma
import struct

import pytest

from vmm.lab.apt import Package
from vmm.lab.errors import LabError
from vmm.lab.kernels import build, kernels, modules, packaged


def package(name, version):
    return Package(f"linux-{name}", version)


OFFERED = [
    package("image-6.1.0-9-cloud-amd64", "6.1.90-1"),
    package("image-6.1.0-9-cloud-amd64-unsigned", "6.1.90-1"),
    package("image-6.12.9+deb13-cloud-amd64-unsigned", "6.12.9-1"),
    package("image-6.12.10+deb12-cloud-amd64", "6.12.10-1~bpo12+1"),
    package("image-6.12.10+deb13-cloud-amd64", "6.12.10-1"),
    package("image-6.12-cloud-amd64", "6.12.10-1"),
    package("image-7.2.6+deb13-cloud-amd64", "7.2.6-1"),
    package("binary-7.2.6+deb13-cloud-amd64", "7.2.6-1"),
    package("modules-7.2.6+deb13-cloud-amd64", "7.2.6-1"),
    package("modules-7.9.9+deb13-cloud-amd64", "7.9.9-1"),
    package("image-7.0.4+deb13-cloud-amd64", "7.0.4-1"),
    package("binary-7.0.4+deb13-cloud-amd64", "7.0.4-1"),
]


def by_release(cached=frozenset()):
    return {kernel.release: kernel for kernel in packaged.group(OFFERED, set(cached))}


def test_a_release_is_its_image_and_its_modules():
    found = by_release({"6.1.0-9-cloud-amd64"})
    assert sorted(found) == [
        "6.1.0-9-cloud-amd64",
        "6.12.10+deb12-cloud-amd64",
        "6.12.10+deb13-cloud-amd64",
        "6.12.9+deb13-cloud-amd64",
        "7.0.4+deb13-cloud-amd64",
        "7.2.6+deb13-cloud-amd64",
    ]
    assert found["6.1.0-9-cloud-amd64"].packages == (OFFERED[0],)
    assert found["6.1.0-9-cloud-amd64"].cached
    assert found["6.12.9+deb13-cloud-amd64"].packages == (OFFERED[2],)
    assert OFFERED[7] == found["7.2.6+deb13-cloud-amd64"].packages[0]
    assert OFFERED[8] in found["7.2.6+deb13-cloud-amd64"].packages


@pytest.mark.parametrize(
    ("wish", "release"),
    [
        ("debian:6.1", "6.1.0-9-cloud-amd64"),
        ("debian:6.12", "6.12.10+deb13-cloud-amd64"),
        ("debian:6.12.9", "6.12.9+deb13-cloud-amd64"),
        ("debian:6.12.10+deb12", "6.12.10+deb12-cloud-amd64"),
        ("debian:newest", "7.2.6+deb13-cloud-amd64"),
    ],
)
def test_the_newest_of_a_series_is_chosen(wish, release, monkeypatch):
    offered = sorted(by_release().values(), key=lambda kernel: packaged._order(kernel.version))
    monkeypatch.setattr(packaged, "reachable", lambda refresh=False: offered)
    assert packaged.newest(wish).release == release


def test_a_release_whose_modules_are_gone_is_not_chosen(monkeypatch):
    gone = by_release()["7.0.4+deb13-cloud-amd64"]
    assert gone.lacks == "linux-modules-7.0.4+deb13-cloud-amd64"
    assert [kernel.release for kernel in by_release().values() if kernel.lacks] == [gone.release]
    assert by_release({gone.release})[gone.release].lacks == ""
    monkeypatch.setattr(packaged, "reachable", lambda refresh=False: [gone])
    with pytest.raises(LabError, match=r"no package for debian:7\.0 \(the mirror has no linux-mod"):
        packaged.newest("debian:7.0")


def test_an_unknown_series_is_one_line(monkeypatch):
    monkeypatch.setattr(packaged, "reachable", lambda refresh=False: [])
    with pytest.raises(LabError, match=r"no package for debian:4\.1; .*lab kernels"):
        packaged.newest("debian:4.1")


def module(needs=""):
    return b"\x7fELF\0license=GPL\0depends=" + needs.encode() + b"\0rest"


def test_a_file_is_a_kernel_without_modules(tmp_path, bzimage):
    (tmp_path / "bzImage").write_bytes(bzimage())
    found = kernels.resolve(str(tmp_path / "bzImage"))
    assert (found.release, found.modules) == ("6.6.6-test", ())


def test_a_file_that_is_no_kernel_is_one_line(tmp_path):
    (tmp_path / "bzImage").write_bytes(b"not a kernel")
    with pytest.raises(LabError, match="is not an x86 bzImage"):
        kernels.resolve(str(tmp_path / "bzImage"))


def test_a_kernel_that_is_cut_short_is_one_line(tmp_path, bzimage):
    (tmp_path / "bzImage").write_bytes(bzimage()[:-1])
    with pytest.raises(LabError, match="is cut short"):
        kernels.resolve(str(tmp_path / "bzImage"))


def test_a_tree_brings_its_modules_in_order(tmp_path, cache_root, bzimage):
    boot, kvm = tmp_path / "arch/x86/boot", tmp_path / "arch/x86/kvm"
    boot.mkdir(parents=True)
    kvm.mkdir()
    (boot / "bzImage").write_bytes(bzimage())
    (kvm / "kvm-amd.ko").write_bytes(module("kvm,ccp"))
    (kvm / "kvm.ko.xz").write_bytes(lzma.compress(module("irqbypass")))
    (tmp_path / "irqbypass.ko").write_bytes(module())
    found = kernels.resolve(str(tmp_path))
    assert [modules.name_of(path) for path in found.modules] == ["irqbypass", "kvm", "kvm_amd"]
    assert found.modules[1].read_bytes() == module("irqbypass")


def test_a_tree_that_was_not_built_is_one_line(tmp_path):
    with pytest.raises(LabError, match="build the tree first"):
        kernels.resolve(str(tmp_path))


def test_options_that_a_tree_was_built_without_are_named_one_by_one(tmp_path, bzimage):
    boot = tmp_path / "arch/x86/boot"
    boot.mkdir(parents=True)
    (boot / "bzImage").write_bytes(bzimage())
    config = [f"CONFIG_{name}=y" for name in kernels.NEEDED if name not in ("KVM", "FUTEX")]
    (tmp_path / ".config").write_text("\n".join([*config, "CONFIG_KVM=m", "CONFIG_KVM_AMD=m"]))
    with pytest.raises(LabError, match="configured without CONFIG_FUTEX: the lab"):
        kernels.resolve(str(tmp_path))
    (tmp_path / ".config").write_text("\n".join([*config, "CONFIG_FUTEX=y"]))
    with pytest.raises(LabError, match="without CONFIG_KVM, CONFIG_KVM_AMD or CONFIG_KVM_INTEL:"):
        kernels.resolve(str(tmp_path))
    (tmp_path / ".config").write_text(build.fragment())
    assert kernels.resolve(str(tmp_path)).release == "6.6.6-test"


def test_nothing_found_names_the_ways(tmp_path):
    with pytest.raises(LabError, match="debian:SERIES fetches a package"):
        kernels.resolve("9.9.9-no-such-release")


def test_the_signature_goes():
    body = module("kvm")
    signed = body + b"SIG" + bytes(8) + struct.pack(">I", 3) + modules._SIGNATURE_MAGIC
    assert modules.unsigned(signed) == body
    assert modules.unsigned(body) == body
