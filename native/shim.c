#define _GNU_SOURCE
#include "shim.h"

#include <cpuid.h>
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>

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

/* One KVM_RUN: the exit reason, or -errno (then kvm_run holds an earlier exit: R65). */
int mw_run(int fd, void *run)
{
	if (ioctl(fd, KVM_RUN, 0) < 0)
		return -errno;
	return (int)((struct kvm_run *)run)->exit_reason;
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

static void answer(struct kvm_run *run, const struct mw_reply *reply)
{
	run->msr.error = reply->error;
	run->msr.data = reply->data;
	if (!reply->scribble)
		return;
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

		if (reason != KVM_EXIT_X86_RDMSR && reason != KVM_EXIT_X86_WRMSR)
			return reason;
		step = (run->s.regs.regs.rsp - batch->program) / 64;
		if (step >= batch->n_replies || batch->n_exits == batch->log_size)
			return reason;
		note(&batch->log[batch->n_exits++], run, (uint32_t)step);
		answer(run, &batch->replies[step]);
	}
}

static void kicked(int signo)
{
	(void)signo;
}

/* Let signo interrupt KVM_RUN (EINTR) and do nothing else. */
int mw_kick_handler(int signo)
{
	struct sigaction action = { .sa_handler = kicked };

	return sigaction(signo, &action, NULL) < 0 ? -errno : 0;
}

int mw_cpuid(uint32_t leaf, uint32_t out[4])
{
	__cpuid_count(leaf, 0, out[0], out[1], out[2], out[3]);
	return 0;
}
