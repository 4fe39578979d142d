"""``msrward lab``: judge other kernels on emulated machines."""

from __future__ import annotations

import argparse
from typing import Any

from vmm.cli import listing, matrix, options, reports, sampled
from vmm.cli.guarded import Call, in_one_line
from vmm.cli.output import complain, say
from vmm.cli.parser import add_command
from vmm.conformance.records.status import DONE
from vmm.lab.vendors import VENDORS

KERNEL_HELP = "a bzImage, a built tree, an installed release, or debian:SERIES (debian:newest)"


def add(commands: Any) -> None:
    """Add ``lab`` and its commands."""
    lab = add_command(commands, "lab", None, "judge other kernels on emulated machines")
    inner = lab.add_subparsers(title="commands", dest="lab", metavar="COMMAND", required=True)
    run = _command(inner, "run", _run, "judge one kernel in the lab, as `check` does on a host")
    run.add_argument("--kernel", "-k", required=True, metavar="K", help=KERNEL_HELP)
    run.add_argument("--vendor", choices=VENDORS, default="svm", help="what to emulate (svm)")
    limit = "seconds the whole guest may take (900)"
    run.add_argument("--limit", type=options.seconds, default=900.0, metavar="S", help=limit)
    options.append(run)
    options.executor(run)
    options.cpu(run)
    options.machines(run)
    options.repeat(run)
    options.judging(run, jobs="two a CPU of the guest", timeout=60.0)
    reports.requests(run)
    matrix.add(inner)
    sampled.add(inner, KERNEL_HELP)
    listing = _command(inner, "kernels", _kernels, "list the kernels that can be had by name")
    listing.add_argument("--refresh", action="store_true", help="ask the mirror for news first")
    config = _command(inner, "config", _config, "print the minimal kernel configuration")
    config.add_argument("--debug", action="store_true", help="with KASAN, lockdep, RCU, kmemleak")
    install = _command(inner, "install", _install, "fetch emulators into the cache")
    install.add_argument("emulators", nargs="*", choices=("qemu", "bochs", []), metavar="EMULATOR")
    build = "build Bochs here from its source: its machines take half of the time"
    install.add_argument("--build", action="store_true", help=build)
    _command(inner, "clean", _clean, "empty the cache")


def _command(commands: Any, name: str, call: Call, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = add_command(commands, name, in_one_line(call), text)
    return parser


def _run(args: argparse.Namespace) -> int:
    if args.list:
        return listing.listed(args)
    if why := options.clash(args):
        return complain(why)
    from vmm.lab.kernels import kernels
    from vmm.lab.runs.check import check
    from vmm.lab.runs.order import Inner, Order

    chosen = options.chosen(args)
    inner = Inner(
        *(tuple(args.xfail), tuple(args.known), args.jobs, args.timeout, str(args.shard or "")),
        repeat=args.repeat,
    )
    kernel = kernels.resolve(args.kernel)
    where = (args.limit, args.append, args.executor)
    order = Order(kernel, args.vendor, chosen, inner, *where, cpu=args.cpu, machines=args.machines)
    view = options.view(args, chosen, reports.then(args.report))
    return check(order, view, args.output, resume=args.resume)


def _kernels(args: argparse.Namespace) -> int:
    from vmm.lab.kernels import packaged

    for kernel in packaged.reachable(refresh=args.refresh):
        gone = f"cannot be had: no {kernel.lacks} on the mirror" if kernel.lacks else ""
        mark = "cached" if kernel.cached else gone
        say(f"{kernel.name:20} {kernel.release:34} {mark}".rstrip())
    return DONE


def _config(args: argparse.Namespace) -> int:
    from vmm.lab.kernels import build

    say(build.fragment(debug=args.debug).rstrip())
    return DONE


def _install(args: argparse.Namespace) -> int:
    from vmm.lab.machines import emulators

    names = args.emulators or ["qemu", "bochs"]
    if args.build and "bochs" not in names:
        return complain("--build is for Bochs, and only QEMU is asked for")
    for name in names:
        is_built = args.build and name == "bochs"
        emulator = emulators.build() if is_built else emulators.install(name)
        say(f"{emulator.title} is in the cache")
    return DONE


def _clean(_: argparse.Namespace) -> int:
    from vmm.lab import cache

    say(f"freed {cache.clean() / 1e6:.0f} MB of {cache.root()}")
    return DONE
