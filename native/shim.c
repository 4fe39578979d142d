#define _GNU_SOURCE
#include "shim.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

int mw_ioctl(int fd, unsigned long number, uintptr_t arg)
{
	int r = ioctl(fd, number, arg);

	return r < 0 ? -errno : r;
}

/* The 32-bit entry of a 64-bit kernel: it sees the caller as ia32 whatever the caller's mode. The
 * registers that a 64-bit kernel's ia32 entry zeroes on return are clobbers. */
int mw_ioctl_compat(int fd, uint32_t number, uint32_t arg)
{
	long r = 54; /* ia32 __NR_ioctl */

	asm volatile("int $0x80"
		     : "+a"(r)
		     : "b"(fd), "c"(number), "d"(arg)
		     : "memory", "r8", "r9", "r10", "r11");
	return (int)r;
}

/* An ioctl (mw_ioctl_compat's, if compat) by a forked child, whose memory is a copy and not the
 * caller's (R03): how the child ended, as waitpid has it; its exit status is the errno, or 0. In C,
 * since the caller may have threads: such a child may make system calls and do nothing else. */
int mw_ioctl_in_child(int fd, unsigned long number, uintptr_t arg, int compat)
{
	pid_t child = fork();
	int result, status;

	if (child < 0)
		return -errno;
	if (child == 0) {
		result = compat ? mw_ioctl_compat(fd, number, arg) : mw_ioctl(fd, number, arg);
		/* 0xff: not 0, and no errno */
		_exit(result < 0 ? -result : result ? 0xff : 0);
	}
	while (waitpid(child, &status, 0) < 0)
		if (errno != EINTR)
			return -errno;
	return status;
}

/* One KVM_RUN: the exit reason, or -errno (then kvm_run holds an earlier exit: R65). */
int mw_run(int fd, void *run)
{
	if (ioctl(fd, KVM_RUN, 0) < 0)
		return -errno;
	return (int)((struct kvm_run *)run)->exit_reason;
}

/* Put zeroes where a mapping was, so that who still knows the address reads and writes nothing. */
int mw_blank(void *at, size_t size)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;

	return mmap(at, size, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED ? -errno : 0;
}

struct kvm_regs *mw_sync_regs(void *run)
{
	return &((struct kvm_run *)run)->s.regs.regs;
}

static void note(struct mw_exit *exit, const struct kvm_run *run, uint32_t step)
{
	const struct kvm_regs *regs = &run->s.regs.regs;

	exit->exit_reason = run->exit_reason;
	exit->step = step;
	memcpy(&exit->head, &run->msr.error, sizeof(exit->head));
	exit->reason = run->msr.reason;
	exit->index = run->msr.index;
	exit->data = run->msr.data;
	exit->rip = regs->rip;
	exit->rax = regs->rax;
	exit->rcx = regs->rcx;
	exit->rdx = regs->rdx;
}

/* Scribbling makes the exit one of the other access, too: the kernel knows what it asked. */
static void answer(struct kvm_run *run, const struct mw_reply *reply)
{
	run->msr.error = reply->error;
	run->msr.data = reply->data;
	if (!reply->scribble)
		return;
	run->exit_reason ^= KVM_EXIT_X86_RDMSR ^ KVM_EXIT_X86_WRMSR;
	memset(run->msr.pad, 0xa5, sizeof(run->msr.pad));
	run->msr.reason = 0xa5a5a5a5;
	run->msr.index = 0xa5a5a5a5;
}

/* Run a batch to its end: the first exit that is no MSR exit, or that has no reply or no room in
 * the log (both left unanswered). A step is 64 bytes of program and RSP points into the step that
 * is being executed, so the exit says by itself which reply is its own. */
int mw_drain(struct mw_batch *batch)
{
	struct kvm_run *run = batch->run;

	batch->n_exits = 0;
	run->kvm_valid_regs |= KVM_SYNC_X86_REGS;
	for (;;) {
		int reason = mw_run(batch->fd, run);
		uint64_t step;

		/* Nobody asked for it: SIGSTOP, the freezer, a debugger, a live patch. What was
		 * answered is complete (R65), and the guest goes on where it was. */
		if (reason == -EINTR)
			continue;
		if (reason != KVM_EXIT_X86_RDMSR && reason != KVM_EXIT_X86_WRMSR)
			return reason;
		step = (run->s.regs.regs.rsp - batch->program) / 64;
		if (step >= batch->n_replies || batch->n_exits == batch->log_size)
			return reason;
		note(&batch->log[batch->n_exits++], run, (uint32_t)step);
		answer(run, &batch->replies[step]);
	}
}

/* Which access of the sweep the exit shows, or count for none that can come now. */
static uint32_t swept(const struct mw_sweep *sweep, const struct kvm_run *run, uint32_t next)
{
	uint32_t number = (run->msr.index - sweep->first) / sweep->stride;
	uint64_t head;

	memcpy(&head, &run->msr.error, sizeof(head));
	if (run->exit_reason != sweep->exit_reason || run->msr.data != sweep->data || head)
		return sweep->count;
	if (sweep->first + number * sweep->stride != run->msr.index || number < next)
		return sweep->count;
	return number;
}

static int is_one_reason(uint64_t reason)
{
	return reason == KVM_MSR_EXIT_REASON_INVAL || reason == KVM_MSR_EXIT_REASON_UNKNOWN ||
	       reason == KVM_MSR_EXIT_REASON_FILTER;
}

/* Run the guest to the first exit that is no MSR exit, or to one more than there are accesses. */
int mw_sweep(struct mw_sweep *sweep)
{
	struct kvm_run *run = sweep->run;
	uint32_t next = 0;

	sweep->n_exits = 0;
	run->kvm_valid_regs = 0;
	for (;;) {
		int reason = mw_run(sweep->fd, run);
		uint32_t number;

		if (reason == -EINTR)
			continue;
		if (reason != KVM_EXIT_X86_RDMSR && reason != KVM_EXIT_X86_WRMSR)
			return reason;
		if (next == sweep->count)
			return reason;
		sweep->n_exits++;
		number = swept(sweep, run, next);
		if (number < sweep->count && is_one_reason(run->msr.reason))
			sweep->reasons[number] = (uint8_t)run->msr.reason;
		else
			sweep->reasons[number < sweep->count ? number : next] = MW_NO_SUCH_EXIT;
		next = (number < sweep->count ? number : next) + 1;
		run->msr.error = 0;
		run->msr.data = sweep->reply;
	}
}

/* Returns 0 when stopped (set stop, then kick), or what else ended the run. */
int mw_spin(struct mw_spin *spin)
{
	struct kvm_run *run = spin->run;

	for (;;) {
		int reason = mw_run(spin->fd, run);

		if (reason == -EINTR && __atomic_load_n(&spin->stop, __ATOMIC_ACQUIRE))
			return 0;
		if (reason == -EINTR)
			continue;
		if (reason != KVM_EXIT_X86_RDMSR && reason != KVM_EXIT_X86_WRMSR)
			return reason;
		spin->kind = (uint32_t)reason;
		spin->reason = run->msr.reason;
		spin->index = run->msr.index;
		spin->data = run->msr.data;
		__atomic_add_fetch(&spin->exits, 1, __ATOMIC_RELEASE);
		run->msr.error = 0;
		run->msr.data = spin->reply;
	}
}

/* A userfaultfd that also sees the faults of the kernel itself. */
int mw_userfaultfd(int flags)
{
	long fd = syscall(SYS_userfaultfd, flags);

	return fd < 0 ? -errno : (int)fd;
}

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ull + time.tv_nsec;
}

/* One case: install, load the program, run it to its end; returns where what it left ends. */
static uint8_t *one_case(const struct mw_bulk *bulk, struct mw_lane *lane, uint32_t number)
{
	struct mw_seen *seen = (struct mw_seen *)bulk->seen;
	size_t size = (size_t)bulk->n_steps * MW_STEP, step;
	struct kvm_run *run = lane->batch.run;
	uint8_t *at;

	bulk->began[number] = now();
	seen->installed = mw_ioctl(lane->vm, KVM_X86_SET_MSR_FILTER,
				   (uintptr_t)&bulk->filters[number]);
	memcpy(lane->memory, bulk->programs + number * size, size);
	run->s.regs.regs = *lane->start;
	run->kvm_dirty_regs = KVM_SYNC_X86_REGS;
	lane->batch.replies = bulk->replies + (size_t)number * bulk->n_steps;
	lane->batch.n_replies = bulk->n_steps;
	lane->batch.log = (struct mw_exit *)(seen + 1);
	lane->batch.log_size = bulk->n_steps + MW_SPARE_EXITS;
	seen->ended = mw_drain(&lane->batch);
	seen->n_exits = lane->batch.n_exits;
	seen->pad = 0;
	at = (uint8_t *)(lane->batch.log + seen->n_exits);
	for (step = MW_STEP - MW_RESULT; step < size; step += MW_STEP, at += MW_RESULT)
		memcpy(at, lane->memory + step, MW_RESULT);
	return at;
}

/* Run the cases up to the first whose guest did not reach its program's end (it may be anywhere);
 * seen gets what they left, without gaps. Returns how many ran. */
int mw_bulk(struct mw_bulk *bulk)
{
	struct mw_bulk rest = *bulk;
	uint32_t number = 0;
	int ended = KVM_EXIT_IO;

	while (number < bulk->n_cases && ended == KVM_EXIT_IO) {
		struct mw_seen *seen = (struct mw_seen *)rest.seen;

		rest.seen = one_case(&rest, &bulk->lanes[number % bulk->n_lanes], number);
		ended = seen->ended;
		number++;
	}
	bulk->seen_size = rest.seen - bulk->seen;
	return (int)number;
}

static void kicked(int signo)
{
	(void)signo;
}

/* Let signo interrupt KVM_RUN (EINTR); what the process handles already, it goes on handling. */
int mw_kick_handler(int signo)
{
	struct sigaction action = { .sa_handler = kicked }, old;

	if (sigaction(signo, NULL, &old) < 0)
		return -errno;
	if (old.sa_flags & SA_SIGINFO || (old.sa_handler != SIG_DFL && old.sa_handler != SIG_IGN))
		return 0;
	return sigaction(signo, &action, NULL) < 0 ? -errno : 0;
}

/* A thread that has ended is -ESRCH, where pthread_kill would crash. */
int mw_kick(int tid, int signo)
{
	return syscall(SYS_tgkill, getpid(), tid, signo) < 0 ? -errno : 0;
}
