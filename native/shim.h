/* What Python is given of the kernel's ABI and of the few loops that must not run in Python.
 *
 * Stateless; a function returns >= 0 or -errno. Nothing here decides, allocates or prints.
 */
#ifndef MSRWARD_SHIM_H
#define MSRWARD_SHIM_H

#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>

#include <linux/kvm.h>
#include <linux/userfaultfd.h>

#if !defined(KVM_X86_SET_MSR_FILTER) || !defined(KVM_MSR_EXIT_REASON_FILTER)
#error linux/kvm.h is older than Linux 5.10, which brought the MSR filter: install newer headers
#endif

/* The members of kvm_run's union have no type names; cffi needs some. */
#define MW_MEMBER(name) __typeof__(((struct kvm_run *)0)->name)
typedef MW_MEMBER(fail_entry) mw_fail_entry;
typedef MW_MEMBER(io) mw_io;
typedef MW_MEMBER(mmio) mw_mmio;
typedef MW_MEMBER(internal) mw_internal;
typedef MW_MEMBER(debug) mw_debug;
typedef MW_MEMBER(msr) mw_msr;
typedef __typeof__(((struct kvm_vcpu_events *)0)->exception) mw_exception;
typedef __typeof__(((struct kvm_vcpu_events *)0)->interrupt) mw_interrupt;
typedef __typeof__(((struct kvm_vcpu_events *)0)->nmi) mw_nmi;

/* Where a page fault message has its address: inside a union that cffi cannot name. */
#define MW_FAULT_ADDRESS offsetof(struct uffd_msg, arg.pagefault.address)

/* The answer to one access: error, scribble (also overwrite what the kernel must ignore), data. */
struct mw_reply {
	uint64_t data;
	uint8_t error;
	uint8_t scribble;
	uint8_t pad[6];
};

/* One MSR exit as it was found, before the answer. head is kvm_run.msr.error and pad (8 bytes). */
struct mw_exit {
	uint32_t exit_reason;
	uint32_t step;
	uint64_t head;
	uint32_t reason;
	uint32_t index;
	uint64_t data;
	uint64_t rip;
	uint64_t rax;
	uint64_t rcx;
	uint64_t rdx;
};

/* One batch: the vCPU, the program's place in the guest, a reply for each step, room for exits. */
struct mw_batch {
	int fd;
	uint32_t n_replies;
	void *run;
	uint64_t program;
	const struct mw_reply *replies;
	struct mw_exit *log;
	uint32_t log_size;
	uint32_t n_exits;
};

/* Where a case of a bulk runs: its VM, its vCPU at rest, and how that starts a program. */
struct mw_lane {
	int vm;
	struct mw_batch batch;
	uint8_t *memory;
	const struct kvm_regs *start;
};

/* What one case left: this, then its n_exits exits, then MW_RESULT bytes for each step. */
struct mw_seen {
	int32_t installed;
	int32_t ended;
	uint32_t n_exits;
	uint32_t pad;
};
#define MW_STEP 64
#define MW_RESULT 32
#define MW_SPARE_EXITS 16

/* Cases to run one after the other, lanes in turns. They all have n_steps accesses, and their
 * filters, replies and programs stand in arrays. began is in ns of CLOCK_MONOTONIC. */
struct mw_bulk {
	struct mw_lane *lanes;
	uint32_t n_lanes, n_cases, n_steps;
	const struct kvm_msr_filter *filters;
	const struct mw_reply *replies;
	const uint8_t *programs;
	uint64_t *began;
	uint8_t *seen;
	size_t seen_size;
};

/* A sweep: the guest accesses first, first + stride, ... count of them in this order. Each exit is
 * answered with success (reply for a read), and its reason stands in the access's byte of reasons,
 * or MW_NO_SUCH_EXIT if the exit is not what such an access looks like: another kind, index or
 * data, a reason that is none or more than one, error or pad set, or not further on than the one
 * before. */
struct mw_sweep {
	int fd;
	uint32_t exit_reason;
	void *run;
	uint32_t first, stride, count;
	uint32_t n_exits;
	uint64_t data, reply;
	uint8_t *reasons;
};
#define MW_NO_SUCH_EXIT 0xff

int mw_ioctl(int fd, unsigned long number, uintptr_t arg);
int mw_ioctl_compat(int fd, uint32_t number, uint32_t arg);
int mw_ioctl_in_child(int fd, unsigned long number, uintptr_t arg, int compat);
int mw_run(int fd, void *run);
int mw_drain(struct mw_batch *batch);
int mw_sweep(struct mw_sweep *sweep);
int mw_bulk(struct mw_bulk *bulk);
int mw_kick_handler(int signo);
int mw_kick(int tid, int signo);
int mw_blank(void *at, size_t size);
struct kvm_regs *mw_sync_regs(void *run);
/* A vCPU that runs until it is stopped, each MSR exit answered with reply; exits are counted and
 * the last one kept (kind, and reason with index), so that another thread can follow it. */
struct mw_spin {
	int fd;
	int stop;
	void *run;
	uint64_t reply;
	uint64_t exits;
	uint32_t kind;
	uint32_t reason;
	uint32_t index;
	uint64_t data;
};

int mw_spin(struct mw_spin *spin);
int mw_userfaultfd(int flags);

#endif
