"""A private apt root: the distribution's package manager, without touching the system.

Its sources are the machine's own Debian mirror and keys with the suites widened, its lists and
archives lie in the cache, and its dpkg status is empty. Packages are unpacked, never installed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmm.lab import cache
from vmm.lab.errors import LabError

SUITES = ("bullseye", "bookworm", "bookworm-backports", "trixie", "trixie-backports")
SECURITY_SUITES = ("bullseye-security", "bookworm-security", "trixie-security")
_CODENAMES = frozenset((*SUITES, "stable", "oldstable", "testing", "unstable", "forky", "sid"))
_SYSTEM = Path("/etc/apt")


@dataclass(frozen=True, slots=True)
class Mirror:
    """Where the machine gets Debian from: the two archives, and the keys they are checked with."""

    archive: str
    security: str | None
    options: str = ""

    def sources(self) -> str:
        """Return a sources.list with every suite that may hold a kernel or an emulator."""
        archives = [(self.archive, suite) for suite in SUITES]
        if self.security:
            archives += [(self.security, suite) for suite in SECURITY_SUITES]
        return "".join(f"deb {self.options}{uri} {suite} main\n" for uri, suite in archives)


@dataclass(frozen=True, slots=True)
class Package:
    """One version of one package, as the archive describes it."""

    name: str
    version: str


def find_mirror(etc: Path = _SYSTEM) -> Mirror:
    """Return the Debian mirror that this machine's apt uses, or a :class:`LabError`."""
    found = [source for file in _source_files(etc) for source in _sources_in(file)]
    archives = [source for source in found if source[1] in _CODENAMES]
    if not archives:
        raise LabError(
            f"the apt sources below {etc} name no Debian archive to fetch packages from; "
            "name a bzImage, a kernel tree or an installed release instead"
        )
    security = [source for source in found if source[1] in SECURITY_SUITES]
    uri, _, options = archives[0]
    return Mirror(uri, security[0][0] if security else None, options)


def _source_files(etc: Path) -> list[Path]:
    parts = etc / "sources.list.d"
    files = [etc / "sources.list", *sorted((*parts.glob("*.list"), *parts.glob("*.sources")))]
    return [file for file in files if file.is_file()]


def _sources_in(file: Path) -> list[tuple[str, str, str]]:
    """(URI, suite, apt options) of each binary source with a main component in one file."""
    text = "\n".join(x for x in file.read_text().splitlines() if not x.lstrip().startswith("#"))
    return _deb822(text) if file.suffix == ".sources" else _one_line(text)


def _one_line(text: str) -> list[tuple[str, str, str]]:
    line = re.compile(r"^deb\s+(\[[^]]*\]\s+)?(\S+)\s+(\S+)\s+(.*)$", re.MULTILINE)
    return [
        (uri, suite, options.strip() + " " if options else "")
        for options, uri, suite, components in line.findall(text)
        if "main" in components.split()
    ]


def _deb822(text: str) -> list[tuple[str, str, str]]:
    found = []
    for stanza in re.split(r"\n\s*\n", text):
        fields = dict(re.findall(r"^([\w-]+):[ \t]*(.*)$", stanza, re.MULTILINE))
        archive = fields.get("URIs", "").split()
        is_binary = "deb" in fields.get("Types", "").split()
        if archive and is_binary and "main" in fields.get("Components", "").split():
            key = fields.get("Signed-By", "")
            options = f"[signed-by={key}] " if key.startswith("/") else ""
            found += [(archive[0], suite, options) for suite in fields.get("Suites", "").split()]
    return found


class AptRoot:
    """The private root below the cache. Methods raise :class:`LabError` when apt fails."""

    def __init__(self, etc: Path = _SYSTEM) -> None:
        self.directory = cache.root() / "apt"
        self._etc = etc

    def refresh(self) -> None:
        """Fetch the package lists. A suite that the mirror lacks is left out, not an error."""
        with cache.lock("apt"), cache.no_space_in_one_line():
            for name in ("lists/partial", "archives/partial"):
                (self.directory / name).mkdir(parents=True, exist_ok=True)
            (self.directory / "status").touch()
            (self.directory / "sources.list").write_text(find_mirror(self._etc).sources())
            finished = self._run("apt-get", "update")
            if _is_out_of_space(finished):  # half of the lists would pass for all of them
                shutil.rmtree(self.directory / "lists")
                raise cache.NoSpace
            if not self.has_lists():
                raise LabError(f"apt-get update fetched no package list: {_last(finished)}")

    def has_lists(self) -> bool:
        """Whether package lists have been fetched before."""
        return any((self.directory / "lists").glob("*_Packages*"))

    def search(self, pattern: str) -> list[Package]:
        """Every package whose name matches the regular expression, with its newest version.

        Lists that cannot be read, as a full disk leaves them, are fetched anew.
        """
        try:
            with cache.lock("apt"):
                return self._search(pattern)
        except cache.NoSpace:
            raise
        except LabError:
            shutil.rmtree(self.directory / "lists", ignore_errors=True)
            self.refresh()
            with cache.lock("apt"):
                return self._search(pattern)

    def _search(self, pattern: str) -> list[Package]:
        listed = self._checked("apt-cache", "search", "--names-only", pattern).splitlines()
        names = [line.split(" - ")[0] for line in listed]
        return self._newest(names) if names else []

    def _newest(self, names: Sequence[str]) -> list[Package]:
        text = self._checked("apt-cache", "show", "--no-all-versions", *names)
        fields = [dict(re.findall(r"^(\w+): (.*)$", s, re.MULTILINE)) for s in text.split("\n\n")]
        return [Package(f["Package"], f["Version"]) for f in fields if "Package" in f]

    def unpack(self, packages: Iterable[Package], into: Path) -> None:
        """Download packages (apt checks their hashes) and unpack them into a directory."""
        with cache.lock("apt"):
            archives = self._empty_archives()
            wanted = [f"{package.name}={package.version}" for package in packages]
            self._checked("apt-get", "download", *wanted, cwd=archives)
            self._unpack_all(archives, into)

    def unpack_closure(self, name: str, suite: str, into: Path) -> None:
        """Unpack a package of one suite with everything that it depends on."""
        with cache.lock("apt"):
            archives = self._empty_archives()
            chosen = ("-t", suite, "--no-install-recommends", "--download-only", "-y")
            self._checked("apt-get", *chosen, "install", name)
            self._unpack_all(archives, into)

    def source(self, name: str, suite: str, into: Path) -> None:
        """Unpack what upstream released of a suite's source package, without Debian's patches."""
        with cache.lock("apt"), cache.no_space_in_one_line():
            lists, sources = self.directory / "source-lists", self.directory / "source.list"
            (lists / "partial").mkdir(parents=True, exist_ok=True)
            (self.directory / "status").touch()
            mirror = find_mirror(self._etc)
            sources.write_text(f"deb-src {mirror.options}{mirror.archive} {suite} main\n")
            own = ("-o", f"Dir::Etc::sourcelist={sources}", "-o", f"Dir::State::lists={lists}")
            self._checked("apt-get", "update", *own)
            with tempfile.TemporaryDirectory(dir=self.directory) as archives:
                fetch = ("source", *own, "--download-only", "--tar-only", "--only-source", name)
                self._checked("apt-get", *fetch, cwd=Path(archives))
                archive = next(Path(archives).glob(f"{name}_*.orig.tar.*"))
                untar(archive, into)

    def _empty_archives(self) -> Path:
        archives = self.directory / "archives"
        for leftover in archives.glob("*.deb"):
            leftover.unlink()
        return archives

    def _unpack_all(self, archives: Path, into: Path) -> None:
        for archive in sorted(archives.glob("*.deb")):
            done = subprocess.run(
                ["dpkg-deb", "-x", archive, into], capture_output=True, text=True, check=False
            )
            if done.returncode and _is_out_of_space(done):
                raise cache.NoSpace
            if done.returncode:
                raise LabError(f"cannot unpack {archive.name}: {_last(done)}")
            archive.unlink()

    def _options(self) -> list[str]:
        here = self.directory
        options = {
            "Dir::Etc::sourcelist": here / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::State": here,
            "Dir::State::lists": here / "lists",
            "Dir::State::status": here / "status",
            "Dir::Cache": here,
            "Dir::Cache::archives": here / "archives",
            "Dir::Cache::pkgcache": "pkgcache.bin",
            "Dir::Cache::srcpkgcache": "srcpkgcache.bin",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            # Root fetches as root: the user _apt cannot read a cache below /root.
            "APT::Sandbox::User": "root",
            "APT::Architecture": "amd64",
        }
        return [word for key, value in options.items() for word in ("-o", f"{key}={value}")]

    def _run(
        self, tool: str, *arguments: str, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [tool, "-q", *self._options(), *arguments],
                cwd=cwd,
                capture_output=True,
                text=True,
                check=False,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, "LC_ALL": "C"},
            )
        except FileNotFoundError:
            raise LabError(
                f"{tool} is missing: packages can be fetched on Debian-like machines only; "
                "name a bzImage, a kernel tree or an installed release instead"
            ) from None

    def _checked(self, tool: str, *arguments: str, cwd: Path | None = None) -> str:
        finished = self._run(tool, *arguments, cwd=cwd)
        if finished.returncode and _is_out_of_space(finished):
            raise cache.NoSpace
        if finished.returncode:
            raise LabError(f"{tool} {arguments[0]} failed: {_last(finished)}")
        return finished.stdout


def untar(archive: Path, into: Path) -> None:
    """Unpack a release's archive: what lies below its one directory; a :class:`LabError`."""
    command = ("tar", "-xf", str(archive), "-C", str(into), "--strip-components=1")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and _is_out_of_space(done):
        raise cache.NoSpace
    if done.returncode:
        raise LabError(f"tar failed: {_last(done)}")


def _is_out_of_space(finished: subprocess.CompletedProcess[str]) -> bool:
    return "No space left on device" in finished.stderr + finished.stdout


def _last(finished: subprocess.CompletedProcess[str]) -> str:
    lines = (finished.stderr or finished.stdout).strip().splitlines() or ["no message"]
    errors = [line for line in lines if line.startswith("E:")]
    return (errors or lines)[-1].removeprefix("E:").strip()
