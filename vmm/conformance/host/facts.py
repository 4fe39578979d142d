"""The facts of the host that every record carries: kernel, KVM module, CPU, nesting, taint."""

import os
import sys
from collections.abc import Iterator
from functools import cache

# Documentation/admin-guide/tainted-kernels.rst: the letter of each bit, from bit 0 on.
_TAINT_LETTERS = "PFSRMBUDAWCIOELKXTNJ"
_VENDOR_BY_CPU = {
    "GenuineIntel": "kvm_intel",
    "AuthenticAMD": "kvm_amd",
    "HygonGenuine": "kvm_amd",
    "Shanghai": "kvm_intel",
    "CentaurHauls": "kvm_intel",
}
_VIRTUAL_DMI = ("QEMU", "VMware", "innotek", "Xen", "Bochs", "Parallels", "KVM")


def facts(root: str | os.PathLike[str] = "/") -> dict[str, object]:
    """Return what is known of the host, read once and cached; None where it cannot be known.

    Keys: release, version, machine, boot_id (str); vendor_module (str: "kvm_intel"...);
    cpu_vendor, cpu_model, clocksource, dmi_vendor, dmi_product, hypervisor (str);
    platform ("bare metal" or "virtual"); parameters (module name -> parameter -> value);
    taint (int) and taint_letters (str, "" when clean); cpus_online, memory_bytes (int);
    msrward (its version, "unknown" when it is not installed). Never raises.
    """
    return dict(_facts(os.fspath(root).rstrip("/")))


@cache
def _facts(top: str) -> dict[str, object]:
    cpu = _cpu(top)
    vendor = _vendor_module(top, cpu)
    taint = _number(_read(f"{top}/proc/sys/kernel/tainted"))
    # A /proc with subset=pid, in a hardened service say, has no sys.
    known = None if top else os.uname()
    return {
        "release": _read(f"{top}/proc/sys/kernel/osrelease") or (known and known.release),
        "version": _read(f"{top}/proc/sys/kernel/version") or (known and known.version),
        "machine": _read(f"{top}/proc/sys/kernel/arch") or (known and known.machine),
        "boot_id": _read(f"{top}/proc/sys/kernel/random/boot_id"),
        "vendor_module": vendor,
        "parameters": {name: _parameters(top, name) for name in ("kvm", vendor) if name},
        "cpu_vendor": cpu.get("vendor_id"),
        "cpu_model": cpu.get("model name"),
        "cpus_online": _count(_read(f"{top}/sys/devices/system/cpu/online")),
        "clocksource": _read(
            f"{top}/sys/devices/system/clocksource/clocksource0/current_clocksource"
        ),
        "memory_bytes": _memory(top),
        **_platform(top, cpu),
        "taint": taint,
        "taint_letters": None if taint is None else taint_letters(taint),
        "msrward": _msrward_version(sys.path),
    }


def taint_letters(taint: int) -> str:
    """Decode a taint value to its letters, lowest bit first; "?" for a bit too new to know."""
    letters = _TAINT_LETTERS.ljust(taint.bit_length(), "?")
    return "".join(letter for bit, letter in enumerate(letters) if taint >> bit & 1)


def _read(path: str, limit: int = 4096) -> str | None:
    """Return the stripped start of a small file, None when it is absent, unreadable or empty.

    The limit is for /proc/cpuinfo, which is made while it is read: hundreds of CPUs take long.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None
    data = b""
    try:
        while len(data) < limit and (chunk := os.read(fd, limit - len(data))):
            data += chunk
    except OSError:
        return None
    finally:
        os.close(fd)
    return data.decode(errors="replace").strip("\n\t \0") or None


def _names(path: str) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(path))
    except OSError:
        return []


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def _cpu(top: str) -> dict[str, str]:
    """Read the first processor of /proc/cpuinfo."""
    first = (_read(f"{top}/proc/cpuinfo") or "").split("\n\n")[0]
    pairs = (line.partition(":") for line in first.split("\n"))
    return {key.strip(): value.strip() for key, separator, value in pairs if separator}


def _vendor_module(top: str, cpu: dict[str, str]) -> str | None:
    """Find the module that runs guests: the one that holds kvm, or the one that is built in.

    A built-in module shows in /sys/module only if it has parameters, and both vendors may be
    built in: then the CPU tells. Without vmx and svm neither of the two can be the one.
    """
    holders = [name for name in _kvm_users(top) if name.startswith("kvm_")]
    present = holders or [n for n in _names(f"{top}/sys/module") if n.startswith("kvm_")]
    hardware = {"kvm_intel", "kvm_amd"}
    native = _VENDOR_BY_CPU.get(cpu.get("vendor_id", ""))
    if len(present) > 1 and {"vmx", "svm"} & set(cpu.get("flags", "").split()):
        present = [name for name in present if name == native]
    elif len(present) > 1:
        present = [name for name in present if name not in hardware]
    return present[0] if len(present) == 1 else None


def _kvm_users(top: str) -> Iterator[str]:
    """List the modules that use kvm: /sys/module/kvm/holders, else the users in /proc/modules."""
    holders = _names(f"{top}/sys/module/kvm/holders")
    yield from holders
    for line in () if holders else (_read(f"{top}/proc/modules", 1 << 20) or "").split("\n"):
        match line.split():
            case ["kvm", _, _, users, *_]:
                yield from filter(None, users.split(","))


def _parameters(top: str, module: str) -> dict[str, str]:
    folder = f"{top}/sys/module/{module}/parameters"
    values = ((name, _read(f"{folder}/{name}")) for name in _names(folder))
    return {name: value for name, value in values if value is not None}


def _platform(top: str, cpu: dict[str, str]) -> dict[str, object]:
    vendor = _read(f"{top}/sys/class/dmi/id/sys_vendor")
    hypervisor = _read(f"{top}/sys/hypervisor/type")
    flagged = "hypervisor" in cpu.get("flags", "").split()
    virtual = flagged or hypervisor or (vendor or "").startswith(_VIRTUAL_DMI)
    known = "flags" in cpu or virtual
    return {
        "platform": ("virtual" if virtual else "bare metal") if known else None,
        "hypervisor": hypervisor,
        "dmi_vendor": vendor,
        "dmi_product": _read(f"{top}/sys/class/dmi/id/product_name"),
    }


def _count(ranges: str | None) -> int | None:
    """Count the CPUs that a list such as "0-3,8" names."""
    total = 0
    for part in (ranges or "").split(","):
        first, _, last = part.partition("-")
        if not first.isdecimal() or not (last or first).isdecimal():
            return None
        total += int(last or first) - int(first) + 1
    return total


def _memory(top: str) -> int | None:
    match (_read(f"{top}/proc/meminfo") or "").split()[:3]:
        case ["MemTotal:", kilobytes, "kB"] if kilobytes.isdecimal():
            return int(kilobytes) * 1024
    return None


def _msrward_version(folders: list[str]) -> str:
    """Read the name of our .dist-info: importing importlib.metadata takes 50 ms."""
    for folder in folders:
        for name in _names(folder or "."):
            if name.startswith("msrward-") and name.endswith(".dist-info"):
                return name.removeprefix("msrward-").removesuffix(".dist-info")
    return "unknown"
