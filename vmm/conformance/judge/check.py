"""One conformance run from end to end: the host's facts, workers, results on disk, reports."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from vmm.conformance.host import facts as host_facts
from vmm.conformance.host import parameters
from vmm.conformance.host.klog import KernelLog
from vmm.conformance.host.limits import limit_of
from vmm.conformance.host.splats import Splat
from vmm.conformance.judge import again
from vmm.conformance.judge.judging import BackendFactory
from vmm.conformance.judge.recording import Options, run_record
from vmm.conformance.language.case import Case
from vmm.conformance.oracle import spoiled
from vmm.conformance.records.results import FILE, Results, ResultsError, default_directory
from vmm.conformance.records.schema import EndRecord, RunRecord
from vmm.conformance.records.summary import end_record
from vmm.conformance.report.desk import Desk, Output
from vmm.conformance.report.view import View

MODPROBE = "load a KVM module (modprobe kvm_intel or kvm_amd)"
KVM_REMEDIES = {
    errno.ENOENT: MODPROBE,
    errno.ENODEV: MODPROBE,
    errno.ENXIO: MODPROBE,
    errno.EACCES: "run as root or as a member of the group that owns it",
    errno.EPERM: "let this container use the device",
}


class Trouble(Exception):
    """The run cannot be made, or not to its end; the text is one line: what, why, what to do."""


def check(
    cases: Sequence[Case],
    catalogue: int,
    options: Options,
    view: View,
    *,
    directory: Path | None = None,
    resume: bool = False,
    factory: BackendFactory | None = None,
    wrap: Callable[[BackendFactory], BackendFactory] = lambda plain: plain,
) -> int:
    """Judge the kernel with ``cases`` (of ``catalogue`` in all), print, return the exit status.

    Records go to ``directory`` (None: the default one). ``factory`` makes a worker's backend:
    KvmBackend, unless a test gives its own; ``wrap`` puts something around it. Trouble and
    ResultsError say what went wrong; what ran until then is on disk and has been printed.
    """
    capabilities: Mapping[str, int] = {}
    if factory is None:
        capabilities, factory = kvm_capabilities(), wrap(_kvm_backend())
    host = {**host_facts.facts(), "hostname": os.uname().nodename, "capabilities": capabilities}
    options = replace(options, vendor=str(host.get("vendor_module") or ""))
    with ExitStack() as stack:
        log = KernelLog.open_or_reason()
        if isinstance(log, KernelLog):
            stack.enter_context(log)
        json = json_file(stack, view, directory)
        results = stack.enter_context(results_in(directory, host, resume))
        desk = Desk(results, host, [case.id for case in cases], view, json)
        return _judge(cases, catalogue, desk, options=options, factory=factory, log=log)


def kvm_capabilities() -> dict[str, int]:
    """Return what /dev/kvm reports for capabilities 188 and 189; Trouble if that cannot be used.

    Neither can a host without /proc be judged.
    """
    machine = os.uname().machine
    if machine != "x86_64":
        raise Trouble(f"this machine is {machine}: the MSR filter exists on x86-64 alone")
    if not Path("/proc/self/fd").is_dir():  # what a thread waits for is read there, and more
        raise Trouble("there is no /proc here: mount it (mount -t proc proc /proc)")
    from vmm.errors import KvmError
    from vmm.msr import KVM_CAP_X86_MSR_FILTER, KVM_CAP_X86_USER_SPACE_MSR

    caps = {
        "KVM_CAP_X86_USER_SPACE_MSR": KVM_CAP_X86_USER_SPACE_MSR,
        "KVM_CAP_X86_MSR_FILTER": KVM_CAP_X86_MSR_FILTER,
    }
    try:
        from vmm.kvm import Kvm

        with Kvm() as kvm:
            return {name: kvm.check_extension(cap) for name, cap in caps.items()}
    except ImportError as error:
        way = f"{error}; build and install msrward (scripts/check does both)"
        raise Trouble(limit_of(error) or way) from None
    except KvmError as error:
        remedy = KVM_REMEDIES.get(error.errno or 0, "'msrward doctor' says more")
        why = os.strerror(error.errno or 0)
        raise Trouble(f"cannot use {error.detail or '/dev/kvm'}: {why}; {remedy}") from None


def _kvm_backend() -> BackendFactory:
    from vmm.conformance.kernel.backend import KvmBackend

    return KvmBackend


def json_file(stack: ExitStack, view: View, directory: Path | None) -> Output | None:
    """Open the file that the view wants JSON lines in; Trouble if it cannot be written.

    Nor can it be that of the records in ``directory``, which may be what ``--resume`` reads.
    """
    if view.json is None or view.json == "-":
        return None
    if Path(view.json).resolve() == ((directory or default_directory()) / FILE).resolve():
        raise Trouble(f"{view.json} has the records of this run, as JSON lines: leave --json out")
    try:
        return Output(stack.enter_context(Path(view.json).open("w")), view.json)
    except OSError as error:
        raise Trouble(f"cannot write {view.json}: {error.strerror}") from None


def results_in(directory: Path | None, host: Mapping[str, Any], resume: bool) -> Results:
    """Open the records in ``directory`` (None: the default one); ResultsError if they cannot be."""
    if directory is None:
        return Results.open_default(host, resume=resume)
    return Results(directory, host, resume=resume)


def _judge(
    cases: Sequence[Case],
    catalogue: int,
    desk: Desk,
    *,
    options: Options,
    factory: BackendFactory,
    log: KernelLog | str,
) -> int:
    began, ending = time.monotonic(), dict[str, Any]()
    todo = [case for case in cases if case.id not in desk.results.recorded]
    kernel_log = log if isinstance(log, str) else "watched"
    done = len(cases) - len(todo)
    first = run_record(len(cases), catalogue, options, resumed=done, kernel_log=kernel_log)
    trouble: Exception | None = None
    try:
        desk.start(first)
        watched = log if isinstance(log, KernelLog) else None
        how, firsts = (factory, options, desk, watched), desk.results.firsts
        stray = _passes(todo, lambda cases: again.run(cases, *how, firsts=firsts))
        ending["splats"] = [splat.lines for splat in stray if not splat.foreign]
        ending["foreign"] = [f"{each.foreign}: {each.first}" for each in stray if each.foreign]
    except KeyboardInterrupt:
        ending["interrupted"] = True
    except (ResultsError, OSError) as error:
        trouble, ending["trouble"] = error, True
    lost = log.lost if isinstance(log, KernelLog) else 0
    end = end_record(desk.cases, time.monotonic() - began, lost=lost, **ending)
    return _finish(desk, first, end, trouble)


def _passes(todo: Sequence[Case], run: Callable[[Sequence[Case]], list[Splat]]) -> list[Splat]:
    """Run the cases; those that need it under ignore_msrs=1, where that is ours to set."""
    later = [case for case in todo if spoiled.NEED in case.needs]
    if not later or parameters.ignores_msrs() or not parameters.may_set():
        return run(todo)
    stray = run([case for case in todo if case not in later])
    with parameters.ignoring_msrs():
        return [*stray, *run(later)]


def _finish(desk: Desk, first: RunRecord, end: EndRecord, trouble: Exception | None) -> int:
    try:
        desk.finish(first, end)
    except ResultsError as error:
        trouble = trouble or error
    if trouble or desk.failure:
        failure = trouble or desk.failure
        why = limit_of(failure) if isinstance(failure, Exception) else None
        raise Trouble(f"{why or failure}; {desk.results.where}")
    return end["status"]
