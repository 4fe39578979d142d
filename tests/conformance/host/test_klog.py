"""The kernel log watch: which lines are splats, whose they are, and how /dev/kmsg is read."""

import errno
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vmm.conformance.host import klog
from vmm.conformance.host.klog import MAX_LINES, KernelLog, Splat, find_splats, kernel_message

BAR = "=" * 66
CUT = "------------[ cut here ]------------"
TRACE = [
    "Call Trace:",
    " <TASK>",
    " dump_stack_lvl+0x5d/0x80",
    " kvm_vm_ioctl+0x21a/0x990 [kvm]",
    "RIP: 0033:0x7f0c1a2b3c4d",
    "RSP: 002b:00007ffd0a0b0c0d EFLAGS: 00000246 ORIG_RAX: 0000000000000010",
    "RAX: ffffffffffffffda RBX: 0000000000000005 RCX: 00007f0c1a2b3c4d",
    " </TASK>",
]
WHO = "CPU: 1 UID: 0 PID: 4711 Comm: msrward worker Not tainted 6.18.0-test #1 PREEMPT"
END = "---[ end trace 0000000000000000 ]---"
OOPS_TAIL = [
    WHO,
    "RIP: 0010:kvm_msr_allowed+0x4f/0x120 [kvm]",
    *TRACE,
    "Modules linked in: kvm",
    END,
]

# kind, the whole splat as the kernel prints it from its header on, pids, comms
SPLATS: dict[str, tuple[str, list[str], tuple[int, ...], tuple[str, ...]]] = {
    "warn": (
        "WARN",
        [
            CUT,
            "WARNING: CPU: 1 PID: 4711 at arch/x86/kvm/x86.c:1795 kvm_msr_allowed+0x1/0x2 [kvm]",
            "Modules linked in: kvm_intel kvm irqbypass",
            *OOPS_TAIL,
        ],
        (4711,),
        ("msrward worker",),
    ),
    "warn_with_text": (
        "WARN",
        [
            CUT,
            "Bad FPU state detected at kvm_put",
            "WARNING: CPU: 0 PID: 9 at a.c:1 f+0x1/0x2",
            END,
        ],
        (9,),
        (),
    ),
    "warn_as_of_6_19": (
        "WARN",
        [
            CUT,
            "WARNING: arch/x86/kvm/x86.c:1795 at kvm_msr_allowed+0x1/0x2, CPU#1: kworker/1:2/77",
            "Modules linked in: kvm",
            END,
        ],
        (77,),
        ("kworker/1:2",),
    ),
    "warn_as_of_5_10": (
        "WARN",
        [
            CUT,
            "WARNING: CPU: 3 PID: 12 at kernel/rcu/srcutree.c:379 cleanup_srcu_struct+0xd6/0xf0",
            "CPU: 3 PID: 12 Comm: kworker/3:0 Tainted: G        W         5.10.0 #1",
            "Call Trace:",
            " process_one_work+0x1b6/0x350",
            "---[ end trace 3b5e0a1c2d4f6071 ]---",
        ],
        (12,),
        ("kworker/3:0",),
    ),
    "kernel_bug": (
        "BUG",
        [
            CUT,
            "kernel BUG at arch/x86/kvm/mmu/mmu.c:123!",
            "Oops: invalid opcode: 0000 [#1] SMP NOPTI",
            *OOPS_TAIL,
        ],
        (4711,),
        ("msrward worker",),
    ),
    "kasan": (
        "KASAN",
        [
            "BUG: KASAN: slab-use-after-free in kvm_msr_allowed+0x5c/0x120 [kvm]",
            "Read of size 4 at addr ffff888012345678 by task kworker/0:1/4711",
            "",
            *TRACE,
            "",
            "Allocated by task 4700:",
            " kasan_save_stack+0x20/0x40",
            "",
            "Freed by task 4701:",
            " kfree+0x90/0x2a0",
            "",
            "The buggy address belongs to the object at ffff888012345600",
            "Memory state around the buggy address:",
            ">ffff888012345600: fa fb fb fb fb fb fb fb fb fb fb fb fb fb fb fb",
            BAR,
        ],
        (4711, 4700, 4701),
        ("kworker/0:1",),
    ),
    "kmsan": (
        "KMSAN",
        ["BUG: KMSAN: uninit-value in vmx_set_msr+0x1/0x2", " f+0x1/0x2", WHO, BAR],
        (4711,),
        ("msrward worker",),
    ),
    "kcsan": (
        "KCSAN",
        [
            "BUG: KCSAN: data-race in kvm_msr_allowed / kvm_vm_ioctl_set_msr_filter",
            "write to 0xffff888101234568 of 8 bytes by task 800 on cpu 0:",
            " kvm_vm_ioctl_set_msr_filter+0x1aa/0x300",
            "read to 0xffff888101234568 of 8 bytes by task 801 on cpu 1:",
            " kvm_msr_allowed+0x33/0x120",
            "value changed: 0x0000000000000000 -> 0xffff888104040404",
            BAR,
        ],
        (800, 801),
        (),
    ),
    "kfence": (
        "KFENCE",
        [
            "BUG: KFENCE: use-after-free read in kvm_msr_allowed+0x5c/0x120",
            "Use-after-free read at 0x00000000a1b2c3d4 (in kfence-#17):",
            "allocated by task 484 on cpu 1 at 12.345678s (0.1s ago):",
            " kvm_vm_ioctl+0x1/0x2",
            WHO,
            BAR,
        ],
        (484, 4711),
        ("msrward worker",),
    ),
    "ubsan": (
        "UBSAN",
        [
            CUT,
            "UBSAN: shift-out-of-bounds in arch/x86/kvm/x86.c:99:12",
            "shift exponent 64 is too large for 64-bit type 'long unsigned int'",
            WHO,
            *TRACE,
            "---[ end trace ]---",
        ],
        (4711,),
        ("msrward worker",),
    ),
    "ubsan_as_of_5_10": (
        "UBSAN",
        ["UBSAN: array-index-out-of-bounds in arch/x86/kvm/x86.c:9:1", WHO, *TRACE, BAR],
        (4711,),
        ("msrward worker",),
    ),
    "lockdep_circular": (
        "lockdep",
        [
            "WARNING: possible circular locking dependency detected",
            "6.18.0-test #1 Not tainted",
            "-" * 54,
            "msrward/4711 is trying to acquire lock:",
            "ffff888100000000 (&kvm->lock){+.+.}-{3:3}, at: kvm_vm_ioctl+0x1/0x2 [kvm]",
            "the existing dependency chain (in reverse order) is:",
            "2 locks held by msrward/4711:",
            "stack backtrace:",
            WHO,
            *TRACE,
        ],
        (4711,),
        ("msrward", "msrward worker"),
    ),
    "lockdep_wait_context": (
        "lockdep",
        [
            "[ BUG: Invalid wait context ]",
            "6.18.0 #1 Not tainted",
            "x/7 is trying to lock:",
            *TRACE,
        ],
        (7,),
        ("x",),
    ),
    "lockdep_inconsistent": (
        "lockdep",
        ["WARNING: inconsistent lock state", "swapper/1/0 [HC1[1]:SC0[0]:HE0:SE1] takes:", *TRACE],
        (0,),
        ("swapper/1",),
    ),
    "lockdep_user_space": (
        "lockdep",
        [
            "WARNING: lock held when returning to user space!",
            "x/7 is leaving the kernel with locks still held!",
            "1 lock held by x/7:",
            " #0: ffff888100000000 (&kvm->srcu){.?.?}-{0:0}, at: kvm_arch_vcpu_ioctl_run+0x1/0x2",
        ],
        (7,),
        ("x",),
    ),
    "lockdep_locks_held": (
        "lockdep",
        ["WARNING: msrward/4711 still has locks held!", "6.18.0 #1 Not tainted", *TRACE],
        (4711,),
        ("msrward",),
    ),
    "lockdep_chain": (
        "lockdep",
        ["WARNING: chain_key collision", "msrward/4711: ", "6.18.0 #1 Not tainted", *TRACE],
        (),
        (),
    ),
    "rcu_usage": (
        "RCU usage",
        [
            "WARNING: suspicious RCU usage",
            "6.18.0-test #1 Not tainted",
            "-----------------------------",
            "arch/x86/kvm/x86.c:1790 suspicious rcu_dereference_check() usage!",
            "1 lock held by msrward/4711:",
            "stack backtrace:",
            *TRACE,
        ],
        (4711,),
        ("msrward",),
    ),
    "srcu": (
        "RCU usage",
        [
            "rcu: cleanup_srcu_struct: Active srcu_struct 00000000a1b2c3d4"
            " read state: 1 gp state: 8/12"
        ],
        (),
        (),
    ),
    "rcu_stall": (
        "RCU stall",
        [
            "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
            "rcu: \tTasks blocked on level-0 rcu_node (CPUs 0-1): P4711/1:b..l",
            "rcu: \t(detected by 0, t=21002 jiffies, g=1169, q=3 ncpus=2)",
            "task:msrward         state:R  running task     stack:0     pid:4711 tgid:4700",
            *TRACE,
        ],
        (4711,),
        ("msrward",),
    ),
    "rcu_starved": (
        "RCU stall",
        ["rcu: rcu_preempt kthread starved for 5250 jiffies! g1169 f0x0", *TRACE],
        (),
        (),
    ),
    "general_protection": (
        "general protection fault",
        [
            "Oops: general protection fault, probably for non-canonical address 0xdead000000000100:"
            " 0000 [#1] SMP",
            "KASAN: maybe wild-memory-access in range [0xdead000000000100-0xdead000000000107]",
            *OOPS_TAIL,
        ],
        (4711,),
        ("msrward worker",),
    ),
    "page_fault": (
        "Oops",
        [
            "BUG: unable to handle page fault for address: ffffc90000100000",
            "#PF: supervisor read access in kernel mode",
            "Oops: 0000 [#1] PREEMPT SMP NOPTI",
            *OOPS_TAIL,
        ],
        (4711,),
        ("msrward worker",),
    ),
    "null_pointer": (
        "Oops",
        ["BUG: kernel NULL pointer dereference, address: 0000000000000008", *OOPS_TAIL],
        (4711,),
        ("msrward worker",),
    ),
    "divide_error": (
        "Oops",
        ["divide error: 0000 [#1] SMP", *OOPS_TAIL],
        (4711,),
        ("msrward worker",),
    ),
    "hung_task": (
        "hung task",
        [
            "INFO: task kworker/1:2:4711 blocked for more than 120 seconds.",
            "      Not tainted 6.18.0-test #1",
            '"echo 0 > /proc/sys/kernel/hung_task_timeout_secs" disables this message.',
            "task:msrward         state:D stack:0     pid:4711  tgid:4711  ppid:1      flags:0x0",
            *TRACE,
        ],
        (4711,),
        ("kworker/1:2", "msrward"),
    ),
    "kmemleak": (
        "kmemleak",
        ["kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)"],
        (),
        (),
    ),
    "list": (
        "list corruption",
        [
            CUT,
            "list_del corruption. next->prev should be ffff888100000000, but was dead000000000122",
            "kernel BUG at lib/list_debug.c:62!",
            *OOPS_TAIL,
        ],
        (4711,),
        ("msrward worker",),
    ),
    "refcount": (
        "refcount_t",
        [
            CUT,
            "refcount_t: underflow; use-after-free.",
            "WARNING: CPU: 1 PID: 4711 at lib/refcount.c:28 refcount_warn_saturate+0xba/0x110",
            *OOPS_TAIL,
        ],
        (4711,),
        ("msrward worker",),
    ),
    "atomic": (
        "scheduling while atomic",
        ["BUG: scheduling while atomic: msrward/4711/0x00000002", WHO, *TRACE],
        (4711,),
        ("msrward", "msrward worker"),
    ),
    "sleeping": (
        "BUG",
        [
            "BUG: sleeping function called from invalid context at kernel/locking/mutex.c:580",
            "in_atomic(): 1, irqs_disabled(): 0, non_block: 0, pid: 4711, name: msrward",
            *TRACE,
        ],
        (4711,),
        ("msrward",),
    ),
    "preemptible": (
        "BUG",
        ["BUG: using smp_processor_id() in preemptible [00000000] code: msrward/4711", *TRACE],
        (4711,),
        ("msrward",),
    ),
    "slub": (
        "BUG",
        ["BUG kmalloc-64 (Tainted: G    B  ): Poison overwritten", WHO, *TRACE],
        (4711,),
        ("msrward worker",),
    ),
    "rss": ("BUG", ["BUG: Bad rss-counter state mm:ffff888100 type:MM_ANONPAGES val:4"], (), ()),
    "soft_lockup": (
        "soft lockup",
        ["watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [kworker/1:2:4711]", *TRACE],
        (4711,),
        ("kworker/1:2",),
    ),
    "hard_lockup": (
        "hard lockup",
        ["watchdog: CPU1: Watchdog detected hard LOCKUP on cpu 1", WHO, *TRACE],
        (4711,),
        ("msrward worker",),
    ),
    "hard_lockup_as_of_5_10": (
        "hard lockup",
        ["NMI watchdog: Watchdog detected hard LOCKUP on cpu 0", *TRACE],
        (),
        (),
    ),
    "msr_access": (
        "MSR access",
        [
            "unchecked MSR access error: WRMSR to 0x6e0 (tried to write 0x0000000000000001) at rIP:"
            " 0xffffffff8106b2c4 (native_write_msr+0x4/0x20)",
            *TRACE,
        ],
        (),
        (),
    ),
    "panic": (
        "panic",
        [
            "Kernel panic - not syncing: Fatal exception",
            "Kernel Offset: disabled",
            "---[ end Kernel panic - not syncing: Fatal exception ]---",
        ],
        (),
        (),
    ),
}

HEALTHY = [
    "Linux version 6.18.0-test (b@h) (gcc 15, GNU ld 2.46) #1 SMP PREEMPT_DYNAMIC",
    "[Firmware Bug]: TSC doesn't count with P0 frequency!",
    "x86/cpu: SGX disabled by BIOS, BUG workaround active",
    "bugs : spectre_v1 spectre_v2",
    "Speculative Return Stack Overflow: WARNING: See https://kernel.org/doc/html/latest/srso.html",
    "Spectre V2 : WARNING: Unprivileged eBPF is enabled with eIBRS on, data leaks possible!",
    "WARNING: Spectre v2 mitigation leaves CPU vulnerable to RETBleed attacks",
    "WARNING: the clock source was unlocked by the user",
    "ACPI BIOS Error (bug): Could not resolve symbol [\\_SB.PCI0], AE_NOT_FOUND",
    'PCI: if necessary, use "pci=nocrs" and report a bug',
    "kvm: debug: BUG: is only quoted here",
    "rcu: Hierarchical RCU implementation.",
    "rcu: \tRCU restricting CPUs from NR_CPUS=512 to nr_cpu_ids=2.",
    "rcu: srcu_init: Setting srcu_struct sizes based on contention.",
    "Lock dependency validator: Copyright (c) 2006 Red Hat, Inc., Ingo Molnar",
    "kasan: KernelAddressSanitizer initialized (generic)",
    "kcsan: selftest: 3/3 tests passed",
    "kfence: initialized - using 2097152 bytes for 255 objects at 0x0000000012345678",
    "kmemleak: Kernel memory leak detector initialized (mem pool available: 15679)",
    "watchdog: Delayed init of the lockup detector failed: -19",
    "NMI watchdog: Enabled. Permanently consumes one hw-PMU counter.",
    "INFO: NMI handler (perf_event_nmi_handler) took too long to run: 1.234 msecs",
    "traps: msrward[4711] general protection fault ip:401000 sp:7ffd0 error:0 in msrward[400000]",
    "msrward[4711]: segfault at 0 ip 0000000000401000 sp 00007ffd error 4 in msrward[400000]",
    "kvm [4711]: vcpu0, guest rIP: 0x1000 Unhandled WRMSR(0xdeadbeef) = 0x0",
    "kvm_intel: L1TF CPU bug present and SMT on, data leak possible.",
    "BUG: MAX_LOCKDEP_CHAINS too low!",
    "systemd[1]: Oops: no, only a service of that name",
    "Call Trace:",
    " <TASK>",
    END,
    BAR,
    "SGI XFS with ACLs, security attributes, no debug enabled",
]


@pytest.mark.parametrize("name", SPLATS)
def test_each_splat_is_found_whole_between_healthy_lines(name: str) -> None:
    kind, lines, pids, comms = SPLATS[name]
    trailer = [] if lines[-1] in (BAR, END) else [CUT]  # what surely begins something else
    found = find_splats([*HEALTHY, *lines, *trailer])
    assert len(found) == 1 + len(trailer)
    assert (found[0].kind, found[0].pids, found[0].comms) == (kind, pids, comms)
    assert list(found[0].lines) == lines
    assert found[0].first == [line for line in lines if line != CUT][name == "warn_with_text"]


def test_a_warning_is_named_by_its_warning_line_not_by_the_text_before_it() -> None:
    (found,) = find_splats(SPLATS["warn_with_text"][1])
    assert found.first.startswith("WARNING: CPU: 0 PID: 9")


@pytest.mark.parametrize("line", HEALTHY)
def test_a_healthy_line_is_no_splat(line: str) -> None:
    assert find_splats([line]) == []


@pytest.mark.parametrize(("kind", "pattern", "file"), klog._HEADERS)
def test_each_pattern_stands_in_the_source_that_prints_it(kind: str, pattern: str, file: str):
    source = Path(os.environ.get("MSRWARD_LINUX_SOURCE", ""), file)
    if not source.is_absolute():
        pytest.skip("MSRWARD_LINUX_SOURCE names no kernel tree to look the messages up in")
    optional = re.sub(
        r"\(\?:[^()]*\)\?|\[[0-9a-z\\][^]]*\]", "", pattern
    )  # what pr_fmt puts before it
    words = re.split(r"\(\?.|\\[a-z]|: |[][\\^$.|?*+(){}]", optional)
    words = [word for word in words if len(word) > 4] or ["%04lx [#%d]" * ("#" in pattern)]
    assert any(word in source.read_text() for word in words), f"{kind}: {words}"


ENDED = [name for name, splat in SPLATS.items() if splat[1][-1] in (BAR, END, TRACE[-1])]


@pytest.mark.parametrize("name", [*ENDED, "kmemleak", "rss", "srcu"])
def test_a_splat_ends_where_it_ends(name: str) -> None:
    (found,) = find_splats([*SPLATS[name][1], *HEALTHY])
    assert list(found.lines) == SPLATS[name][1]


def test_all_splats_in_a_row_are_told_apart() -> None:
    log = [line for splat in SPLATS.values() for line in [BAR, *splat[1], BAR]]
    assert [found.kind for found in find_splats(log)] == [splat[0] for splat in SPLATS.values()]


@pytest.mark.parametrize("prefix", ["[   12.345678] ", "[    1.000001][ T4711] ", "<4>[12.3] "])
def test_console_timestamps_are_taken_off(prefix: str) -> None:
    (found,) = find_splats(prefix + line + "\r" for line in SPLATS["kasan"][1])
    assert list(found.lines) == SPLATS["kasan"][1]


def test_a_trace_without_end_marks_ends_at_the_first_foreign_line() -> None:
    head = ["BUG: scheduling while atomic: a/1/0x2", "Call Trace:", " f+0x1/0x2", "RIP: 0033:0x1"]
    (found,) = find_splats([*head, "eth0: link up", "usb 1-1: new device"])
    assert list(found.lines) == head


def test_a_splat_that_never_ends_is_bounded() -> None:
    (found,) = find_splats([CUT, *(f"line {n}" for n in range(10 * MAX_LINES))])
    assert len(found.lines) == MAX_LINES
    assert (found.kind, found.first) == ("WARN", "line 0")


def test_a_cut_line_begins_a_new_splat_even_where_the_last_one_never_ended() -> None:
    warn = SPLATS["warn"][1]
    first, second = find_splats([*warn[:3], *warn])
    assert list(first.lines) == warn[:3]
    assert list(second.lines) == warn


def test_nothing_gives_nothing() -> None:
    assert find_splats([]) == []


def test_a_cut_line_alone_is_a_splat() -> None:
    assert find_splats([CUT]) == [Splat("WARN", CUT, (CUT,), (), ())]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("4,120,307,-;text; with, marks", (120, "text; with, marks")),
        ("6,1,0,-,caller=T4711;x", (1, "x")),
        ("4,2,0,c;", (2, "")),
        ("12,3,0,-;BUG: KASAN: says userspace", (3, "")),
        ("4,4,0,-;a\\x0ab \\x5c c", (4, "a\nb \\ c")),
        (" SUBSYSTEM=acpi", None),
        (" 4,5,0,-;x", None),
        ("", None),
        ("no record", None),
        ("a,b,c,-;x", None),
        ("4;x", None),
        ("4,5,0,-", None),
    ],
)
def test_a_kmsg_record(record: str, message: tuple[int, str] | None) -> None:
    assert kernel_message(record) == message


def records(lines: list[str], first: int = 0, prio: int = 4) -> bytes:
    return "".join(f"{prio},{first + n},99,-;{line}\n" for n, line in enumerate(lines)).encode()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(klog, "SETTLE_SECONDS", 0.0)


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[tuple[KernelLog, Callable[[bytes], object]]]:
    path = tmp_path / "kmsg"
    os.mkfifo(path)
    with KernelLog(str(path)) as log:
        writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        yield log, lambda data: os.write(writer, data)
        os.close(writer)


Pipe = tuple[KernelLog, Callable[[bytes], object]]


def test_only_what_comes_after_opening_counts(tmp_path: Path) -> None:
    path = tmp_path / "kmsg"
    path.write_bytes(records(SPLATS["kasan"][1]))
    with KernelLog(str(path)) as log, KernelLog(str(path), from_start=True) as whole:
        assert log.poll() == []
        assert [found.kind for found in whole.poll()] == ["KASAN"]
        with path.open("ab") as more:
            more.write(records(SPLATS["warn"][1], 50))
        assert [found.kind for found in log.poll()] == ["WARN"]
        assert log.poll() == []


def test_a_pipe_without_news_does_not_block(pipe: Pipe) -> None:
    assert pipe[0].poll() == []


def test_records_cut_anywhere_are_put_together(pipe: Pipe) -> None:
    log, write = pipe
    data = records(SPLATS["rcu_usage"][1])
    for begin in range(0, len(data), 7):
        write(data[begin : begin + 7])
        log._fill()
    (found,) = log.poll()
    assert list(found.lines) == SPLATS["rcu_usage"][1]
    assert log.lost == 0


def test_a_splat_still_being_printed_is_waited_for(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, write = pipe
    lines = SPLATS["warn"][1]
    write(records(lines[:2]))
    monkeypatch.setattr(klog.time, "sleep", lambda _: write(records(lines[2:], 2)))
    (found,) = log.poll()
    assert list(found.lines) == lines


def test_userspace_cannot_convict(pipe: Pipe) -> None:
    log, write = pipe
    for facility in (1, 2, 3, 23):
        write(records(SPLATS["kasan"][1], prio=facility << 3 | 4))
    assert log.poll() == []


def test_userspace_between_the_lines_of_a_splat_is_left_out(pipe: Pipe) -> None:
    log, write = pipe
    lines = SPLATS["kasan"][1]
    write(records(lines[:2]) + b"12,2,0,-;forged by task x/1\n" + records(lines[2:], 3))
    (found,) = log.poll()
    assert "forged" not in "".join(found.lines)
    assert found.pids == SPLATS["kasan"][2]


def test_continuation_lines_are_no_messages(pipe: Pipe) -> None:
    log, write = pipe
    write(
        b"6,1,0,-;acpi: ready\n SUBSYSTEM=acpi\n DEVICE=BUG: KASAN: \n4,2,0,-;BUG: KASAN: x\n K=v\n"
    )
    (found,) = log.poll()
    assert found.lines == ("BUG: KASAN: x",)


def test_a_gap_in_the_sequence_is_counted_as_lost(pipe: Pipe) -> None:
    log, write = pipe
    write(b"6,10,0,-;a\n6,11,0,-;b\n6,15,0,-;c\n")
    log.poll()
    assert log.lost == 3


def reads(monkeypatch: pytest.MonkeyPatch, *answers: bytes | int) -> None:
    """Let os.read answer bytes, or fail with an errno; EAGAIN ever after."""
    script = iter(answers)

    def read(_fd: int, _size: int) -> bytes:
        answer = next(script, errno.EAGAIN)
        if isinstance(answer, int):
            raise OSError(answer, os.strerror(answer))
        return answer

    monkeypatch.setattr(klog.os, "read", read)


@pytest.mark.parametrize("error", [errno.EPIPE, errno.EINVAL])
def test_overwritten_records_are_lost_and_reading_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    (tmp_path / "kmsg").touch()
    with KernelLog(str(tmp_path / "kmsg")) as log:
        reads(monkeypatch, b"6,10,0,-;a\n", error, b"4,14,0,-;BUG: KASAN: x\n")
        assert [found.kind for found in log.poll()] == ["KASAN"]
        assert log.lost == 3


def test_a_loss_before_the_first_record_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kmsg").touch()
    with KernelLog(str(tmp_path / "kmsg")) as log:
        reads(monkeypatch, errno.EPIPE, b"6,10,0,-;a\n")
        assert log.poll() == []
        assert log.lost == 1


def test_a_flood_does_not_hold_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kmsg").touch()
    monkeypatch.setattr(klog, "_MAX_READS", 50)
    with KernelLog(str(tmp_path / "kmsg")) as log:
        monkeypatch.setattr(klog.os, "read", lambda *_: b"6,1,0,-;again\n")
        assert log.poll() == []


def test_another_error_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kmsg").touch()
    with KernelLog(str(tmp_path / "kmsg")) as log:
        reads(monkeypatch, errno.EIO)
        with pytest.raises(OSError, match="Input/output"):
            log.poll()


def test_a_reason_instead_of_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent, hint = tmp_path / "kmsg", " (pass this container the device /dev/kmsg)"
    assert KernelLog.open_or_reason(str(absent)) == f"{absent}: No such file or directory{hint}"
    assert KernelLog.open_or_reason("/dev/null") == f"/dev/null: not the kernel log{hint}"
    assert KernelLog.open_or_reason(str(tmp_path)) == f"{tmp_path}: not the kernel log{hint}"

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(klog.os, "open", refuse)
    reason = KernelLog.open_or_reason()
    assert reason == ("/dev/kmsg: Operation not permitted (kernel.dmesg_restrict: needs root)")


def test_a_refused_read_is_a_reason_and_leaves_no_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kmsg").touch()
    closed: list[int] = []
    close = os.close
    monkeypatch.setattr(klog.os, "close", lambda fd: (closed.append(fd), close(fd)))
    reads(monkeypatch, errno.EPERM)
    assert "not permitted" in str(KernelLog.open_or_reason(str(tmp_path / "kmsg")))
    assert len(closed) == 1


def test_a_log_that_opens_keeps_what_it_read_while_opening(tmp_path: Path) -> None:
    path = tmp_path / "kmsg"
    path.touch()
    log = KernelLog.open_or_reason(str(path))
    assert isinstance(log, KernelLog)
    with log:
        path.write_bytes(records(SPLATS["kmemleak"][1]))
        log._fill()
        assert [found.kind for found in log.poll()] == ["kmemleak"]


def test_closing_twice_is_harmless(tmp_path: Path) -> None:
    (tmp_path / "kmsg").touch()
    log = KernelLog(str(tmp_path / "kmsg"))
    log.close()
    log.close()


def test_the_log_of_this_host_has_no_splats() -> None:
    """A splat here is either a false alarm of ours or a kernel worth a look: both deserve red."""
    watch = KernelLog.open_or_reason()
    if isinstance(watch, str):
        pytest.skip(watch)
    watch.close()
    with KernelLog(from_start=True) as log:
        found = log.poll()
        assert log._next_seq is not None, "the kernel log is empty"
    # A busy host, or whoever holds a task of ours in a debugger, makes these with a good kernel.
    found = [each for each in found if each.kind not in ("hung task", "soft lockup", "RCU stall")]
    assert not found, "\n".join(line for splat in found for line in splat.lines)
