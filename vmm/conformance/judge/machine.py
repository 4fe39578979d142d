"""What a trace tells of the machine that it comes from: the facts of its host."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

from vmm.conformance.host import facts as host_facts
from vmm.conformance.host.klog import unescaped
from vmm.conformance.judge.lines import TraceError, shown

MOST_FACT = 1 << 15
FACT = re.compile(r"/(?:proc/(?:sys/)?|sys/)[A-Za-z0-9_./-]{1,200}")
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
PARAMETER = "/sys/module/kvm/parameters/ignore_msrs"


class Machine:
    """Takes what is told of the machine: ``host`` has the facts once ``is_known`` says so.

    ``ignoring`` is what ``kvm.ignore_msrs`` says now.
    """

    def __init__(self) -> None:
        """Begin with a machine of which nothing is known."""
        self.host: dict[str, Any] = {}
        self.is_known = self.ignoring = False
        self._facts: dict[str, str] = {}
        self._modules: list[str] = []
        self._capabilities: dict[str, int] = {}

    def fact(self, rest: str) -> None:
        """Take the content of a file of /proc or /sys, which says what the facts are read from."""
        path, _, content = rest.partition(" ")
        if self.is_known or not FACT.fullmatch(path) or ".." in path or len(content) > MOST_FACT:
            raise TraceError(f"no fact that a player tells: {shown(path)}")
        self._facts[path] = unescaped(content)
        if path == PARAMETER:
            self.ignoring = self._facts[path][:1] in ("Y", "1")

    def module(self, rest: str) -> None:
        """Take the name of a kernel module that is there."""
        if not NAME.fullmatch(rest) or len(self._modules) > 16:
            raise TraceError(f"no module that a player tells: {shown(rest)}")
        self._modules.append(rest)

    def capability(self, rest: str) -> None:
        """Take what KVM answers when it is asked for a capability."""
        name, _, value = rest.partition(" ")
        if not NAME.fullmatch(name) or not re.fullmatch(r"-?\d{1,9}", value):
            raise TraceError(f"no capability that a player tells: {shown(rest)}")
        self._capabilities[name] = int(value)

    def parameter(self, rest: str) -> None:
        """Take a parameter of ``kvm`` that was set: there is one that cases ask for."""
        name, _, value = rest.partition(" ")
        if name == "ignore_msrs" and value in ("0", "1"):
            self.ignoring = value == "1"

    def know(self) -> None:
        """Read the facts from what was told: none is taken from now on."""
        if self.is_known:
            return
        with tempfile.TemporaryDirectory(prefix="msrward-") as root:
            for module in self._modules:
                (Path(root) / "sys/module" / module).mkdir(parents=True, exist_ok=True)
            for path, content in self._facts.items():
                file = Path(root + path)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content.encode("latin-1", "replace"))
            self.host = dict(host_facts.facts(root))
        hostname = self._facts.get("/proc/sys/kernel/hostname", "").strip()
        self.host |= {"hostname": hostname, "capabilities": self._capabilities}
        self.is_known = True
