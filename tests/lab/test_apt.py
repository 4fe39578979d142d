"""The private apt root, against a repository of our own in a directory."""

import hashlib
import shutil
import subprocess

import pytest

from vmm.lab.apt import AptRoot, Mirror, find_mirror
from vmm.lab.errors import LabError
from vmm.lab.kernels import kernels, packaged

needs_apt = pytest.mark.skipif(
    not all(map(shutil.which, ("apt-get", "dpkg-deb"))), reason="no apt and dpkg on this machine"
)
RELEASE = "6.9.9-cloud-amd64"
PACKAGE = f"linux-image-{RELEASE}"


def etc(tmp_path, name, text):
    parts = tmp_path / "etc/sources.list.d"
    parts.mkdir(parents=True)
    (parts / name).write_text(text)
    return tmp_path / "etc"


def test_deb822_sources_with_keys_and_security(tmp_path):
    text = (
        "Types: deb\n# a comment\nURIs: http://mirror/debian\nSuites: bookworm bookworm-updates\n"
        "Components: main contrib\nSigned-By: /keys/debian.gpg\n\n"
        "Types: deb deb-src\nURIs: http://safe/security\nSuites: bookworm-security\n"
        "Components: main\nSigned-By: /keys/debian.gpg\n"
    )
    found = find_mirror(etc(tmp_path, "debian.sources", text))
    assert found == Mirror(
        "http://mirror/debian", "http://safe/security", "[signed-by=/keys/debian.gpg] "
    )
    assert "http://mirror/debian trixie-backports main\n" in found.sources()
    assert "http://safe/security trixie-security main\n" in found.sources()


def test_one_line_sources(tmp_path):
    text = "deb http://other/apt tool-bookworm main\ndeb [arch=amd64] http://m/debian trixie main\n"
    found = find_mirror(etc(tmp_path, "debian.list", text))
    assert (found.archive, found.security) == ("http://m/debian", None)


def test_a_machine_without_debian_sources_is_told_what_else_works(tmp_path):
    directory = etc(tmp_path, "a.list", "deb http://x/ubuntu noble main\n")
    with pytest.raises(LabError, match="name a bzImage"):
        find_mirror(directory)


def make_deb(pool, image):
    content = pool.parent / "content"
    (content / "DEBIAN").mkdir(parents=True)
    (content / "boot").mkdir()
    (content / "boot" / f"vmlinuz-{RELEASE}").write_bytes(image)
    modules = content / "lib/modules" / RELEASE
    modules.mkdir(parents=True)
    (modules / "kvm.ko").write_bytes(b"\x7fELF the module")
    control = f"Package: {PACKAGE}\nVersion: 6.9.9-1\nArchitecture: amd64\n"
    rest = "Maintainer: nobody <nobody@localhost>\nDescription: a kernel for a test\n"
    (content / "DEBIAN/control").write_text(control + rest)
    deb = pool / "kernel.deb"
    subprocess.run(["dpkg-deb", "-b", content, deb], check=True, capture_output=True)
    shutil.rmtree(content)
    data = deb.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    place = f"Filename: pool/kernel.deb\nSize: {len(data)}\nSHA256: {digest}\n"
    return control + place + rest


@pytest.fixture
def mirror(tmp_path, cache_root):
    """An archive with one kernel package, and an AptRoot that has it as its mirror."""
    archive = tmp_path / "archive"
    index = archive / "dists/bookworm/main/binary-amd64"
    index.mkdir(parents=True)
    (archive / "pool").mkdir()
    packages = make_deb(archive / "pool", b"the image")
    (index / "Packages").write_text(packages)
    digest = hashlib.sha256(packages.encode()).hexdigest()
    release = "Suite: bookworm\nCodename: bookworm\nComponents: main\nArchitectures: amd64\n"
    listed = f"SHA256:\n {digest} {len(packages)} main/binary-amd64/Packages\n"
    (archive / "dists/bookworm/Release").write_text(release + listed)
    source = f"deb [trusted=yes] file:{archive} bookworm main\n"
    return archive, AptRoot(etc(tmp_path, "debian.list", source))


@needs_apt
def test_a_package_is_found_and_unpacked_and_suites_that_are_missing_do_not_matter(
    mirror, tmp_path
):
    _, root = mirror
    root.refresh()
    (package,) = root.search("^linux-image-.*-cloud-amd64$")
    assert (package.name, package.version) == (PACKAGE, "6.9.9-1")
    root.unpack([package], tmp_path / "unpacked")
    assert (tmp_path / "unpacked/boot" / f"vmlinuz-{RELEASE}").read_bytes() == b"the image"


@needs_apt
def test_a_damaged_download_is_refused(mirror, tmp_path):
    archive, root = mirror
    root.refresh()
    (package,) = root.search("^linux-image-.*-cloud-amd64$")
    deb = archive / "pool/kernel.deb"
    deb.write_bytes(deb.read_bytes()[:-10])
    with pytest.raises(LabError, match="apt-get download failed"):
        root.unpack([package], tmp_path / "unpacked")
    assert not (tmp_path / "unpacked/boot").exists()


def add_source(archive, files):
    """Put the source package emu 1.0 of these files, and more that apt wants, on the mirror."""
    index = archive / "dists/bookworm/main/source"
    index.mkdir()
    tree = archive / "emu-1.0+x"
    tree.mkdir()
    for name, text in files.items():
        (tree / name).write_text(text)
        (tree / name).chmod(0o755)
    orig = "emu_1.0.orig.tar.gz"
    subprocess.run(["tar", "-C", archive, "-czf", archive / "pool" / orig, tree.name], check=True)
    (archive / "pool/emu_1.0.dsc").write_text("Format: 1.0\nSource: emu\nVersion: 1.0\n")
    lines = []
    for name in ("emu_1.0.dsc", orig):
        data = (archive / "pool" / name).read_bytes()
        lines.append(f" {hashlib.sha256(data).hexdigest()} {len(data)} {name}\n")
    fields = "Package: emu\nBinary: emu\nVersion: 1.0\nFormat: 1.0\nDirectory: pool\n"
    sources = f"{fields}Files:\nChecksums-Sha256:\n{''.join(lines)}"
    (index / "Sources").write_text(sources)
    digest = hashlib.sha256(sources.encode()).hexdigest()
    with (archive / "dists/bookworm/Release").open("a") as release:
        release.write(f" {digest} {len(sources)} main/source/Sources\n")


@needs_apt
def test_a_source_is_what_upstream_released(mirror, tmp_path):
    archive, root = mirror
    add_source(archive, {"configure": "exit 0"})
    (tmp_path / "tree").mkdir()
    root.source("emu", "bookworm", tmp_path / "tree")
    assert (tmp_path / "tree/configure").read_text() == "exit 0"
    (archive / "pool/emu_1.0.dsc").unlink()
    root.source("emu", "bookworm", tmp_path / "tree")  # some mirrors have none of these
    assert not root.has_lists(), "the lists of packages are others"
    root.refresh()
    assert root.search("^linux-image-.*")[0].name == PACKAGE


@needs_apt
def test_a_source_that_is_damaged_or_is_not_there_is_one_line(mirror, tmp_path):
    archive, root = mirror
    add_source(archive, {"configure": "exit 0"})
    (tmp_path / "tree").mkdir()
    for name, suite in (("none", "bookworm"), ("emu", "trixie")):
        with pytest.raises(LabError, match=r"apt-get (update|source) failed: "):
            root.source(name, suite, tmp_path / "tree")
    orig = archive / "pool/emu_1.0.orig.tar.gz"
    orig.write_bytes(orig.read_bytes()[:-1] + b"!")
    with pytest.raises(LabError, match="apt-get source failed"):
        root.source("emu", "bookworm", tmp_path / "tree")
    assert not list((tmp_path / "tree").iterdir())


@needs_apt
def test_a_mirror_with_nothing_is_one_line(tmp_path, cache_root):
    source = "deb [trusted=yes] file:/nonexistent bookworm main\n"
    root = AptRoot(etc(tmp_path, "debian.list", source))
    with pytest.raises(LabError, match="fetched no package list"):
        root.refresh()


@needs_apt
def test_a_packaged_kernel_is_fetched_once_and_again_when_damaged(mirror, monkeypatch):
    _, root = mirror
    root.refresh()
    monkeypatch.setattr(packaged, "AptRoot", lambda: root)
    found = kernels.resolve("debian:6.9")
    assert (found.release, found.image.read_bytes()) == (RELEASE, b"the image")
    assert [path.name for path in found.modules] == ["00-kvm.ko"]
    found.image.write_bytes(b"the 1mage")
    assert kernels.resolve("debian:6.9.9").image.read_bytes() == b"the image"
    assert [kernel.name for kernel in packaged.cached()] == ["debian:6.9.9"]


@needs_apt
def test_lists_that_a_full_disk_left_are_fetched_anew(mirror):
    _, root = mirror
    root.refresh()
    (lists,) = (root.directory / "lists").glob("*_Packages*")
    lists.write_text("Package: cut sho")
    assert root.search("^linux-image-.*-cloud-amd64$")[0].name == PACKAGE


@needs_apt
def test_without_a_mirror_what_is_cached_has_to_do(mirror, monkeypatch, tmp_path):
    archive, root = mirror
    root.refresh()
    monkeypatch.setattr(packaged, "AptRoot", lambda: root)
    kernels.resolve("debian:6.9")
    shutil.rmtree(archive)
    shutil.rmtree(root.directory)
    assert kernels.resolve("debian:6.9").image.read_bytes() == b"the image"
    with pytest.raises(LabError, match="no package list"):
        packaged.reachable(refresh=True)
    shutil.rmtree(root.directory.parent / "kernels")
    with pytest.raises(LabError, match="no package list"):
        kernels.resolve("debian:6.9")


def test_a_full_disk_is_called_by_its_name(mirror, monkeypatch):
    _, root = mirror
    (root.directory / "lists").mkdir(parents=True)
    full = subprocess.CompletedProcess((), 0, "", "W: write error (28: No space left on device)")
    monkeypatch.setattr(root, "_run", lambda *_, **__: full)
    with pytest.raises(LabError, match=r"cannot write the cache .*: no space left on device; free"):
        root.refresh()
    assert not root.has_lists(), "half of the lists must not pass for all of them"
    full.returncode = 100
    with pytest.raises(LabError, match="no space left on device"):
        root.search("anything")


@pytest.mark.parametrize("uris", ["", "URIs:\n", "URIs:   \n"])
def test_a_source_without_an_address_is_no_source(tmp_path, uris):
    (tmp_path / "sources.list.d").mkdir()
    stanza = f"Types: deb\n{uris}Suites: bookworm\nComponents: main\n"
    (tmp_path / "sources.list.d/a.sources").write_text(stanza)
    with pytest.raises(LabError, match="name no Debian archive"):
        find_mirror(tmp_path)
