/* One thread at a time in a vCPU, and how that ends. Nothing here knows Python.
 *
 * Whoever runs a vCPU claims it first, so that a second thread is told at once (the kernel would
 * have it wait until the guest exits), and so that a close from another thread finds who is in it.
 */
#ifndef MSRWARD_ENTRY_H
#define MSRWARD_ENTRY_H

#include <errno.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/kvm.h>

/* state: one thread is in it; it is open, so that threads may come. */
enum { IN_USE = 1, OPEN = 2 };

/* What a run ends with besides an exit reason and -errno: nothing waits for the answer; it was
 * closed meanwhile, and who ran it ends it; another thread is in it. */
enum { NOT_PENDING = -4096, GONE = -4097, BUSY = -4098 };

typedef __typeof__(((struct kvm_run *)0)->msr) msr_exit;

/* is_pending: the last exit was an MSR exit that the kernel has not completed yet. kvm_run cannot
 * say so: after EINTR it still shows the exit that is over (R65). */
struct entry {
	int fd;
	uint32_t state;
	struct kvm_run *run;
	uint32_t is_pending;
	int tid;
};

/* error, or a value for a read, or neither. */
struct answer {
	int is_given;
	uint8_t error;
	uint64_t data;
};

static inline int claim(struct entry *vcpu)
{
	static __thread int tid;
	uint32_t idle = OPEN;

	if (!__atomic_compare_exchange_n(&vcpu->state, &idle, OPEN | IN_USE, 0, __ATOMIC_SEQ_CST,
					 __ATOMIC_SEQ_CST))
		return idle & OPEN ? BUSY : -EBADF;
	if (!tid)
		tid = (int)syscall(SYS_gettid);
	__atomic_store_n(&vcpu->tid, tid, __ATOMIC_RELAXED);
	return 0;
}

/* Leave it: whether it was retired meanwhile. */
static inline int unclaim(struct entry *vcpu)
{
	return !(__atomic_fetch_and(&vcpu->state, ~(uint32_t)IN_USE, __ATOMIC_SEQ_CST) & OPEN);
}

/* KVM_RUN completes the access before anything else, but for what it refuses at the door: EINVAL
 * (dirty or valid registers), EIO (another mm), EBADF. */
static inline int enter(struct entry *vcpu, msr_exit *msr)
{
	int reason = ioctl(vcpu->fd, KVM_RUN, 0) < 0 ? -errno : (int)vcpu->run->exit_reason;

	if (reason == -EINVAL || reason == -EIO || reason == -EBADF)
		return reason;
	vcpu->is_pending = reason == KVM_EXIT_X86_RDMSR || reason == KVM_EXIT_X86_WRMSR;
	if (vcpu->is_pending)
		*msr = vcpu->run->msr;
	return reason;
}

static inline int answer_and_enter(struct entry *vcpu, const struct answer *answer, msr_exit *msr)
{
	int reason = claim(vcpu);

	if (reason)
		return reason;
	if (answer->is_given && !vcpu->is_pending) {
		reason = NOT_PENDING;
	} else {
		if (answer->is_given) {
			vcpu->run->msr.error = answer->error;
			if (!answer->error)
				vcpu->run->msr.data = answer->data;
		}
		reason = enter(vcpu, msr);
	}
	return unclaim(vcpu) ? GONE : reason;
}

/* Let nobody in any more: whether somebody is. */
static inline int retire(struct entry *vcpu)
{
	return __atomic_fetch_and(&vcpu->state, ~(uint32_t)OPEN, __ATOMIC_SEQ_CST) & IN_USE;
}

#endif
