/*
 * What every word stands on: where things are in guest memory, and what is kept of a VM and its
 * vCPUs.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <linux/kvm.h>

/* pthread_t eventfd poll uffdio_copy SYS_gettid */
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <linux/userfaultfd.h>

/* The ways for a program to end: kselftest's, and 2 where nothing can be said. */
enum { PASS, FAIL, TROUBLE, SKIP = 4 };

/*
 * The guest. An access is an instruction and the port write that tells that it is done; a loop
 * counts at RBX how often it went round. A stub for each exception writes to the port of its
 * vector.
 */
enum {
	RDMSR = 0x10000, WRMSR = 0x10040,	/* where the instructions stand */
	PREFIXED = 0x10,			/* behind the prefix: KVM's emulator executes it */
	LOOP = 0x20,				/* in a loop */
	TOUCH = 0x10080,			/* a read of guest memory at RCX */
	SWEEP_RDMSR = 0x10090, SWEEP_WRMSR = 0x100a0,	/* of RCX, RCX + RSI, ...: RBP of them */
	WRMSRNS = 0x10740, RDMSR_IMM = 0x10700, WRMSRNS_IMM = 0x10760,	/* WRMSR's bit says write */
	REX_RDMSR = 0x10720, REX_WRMSR = 0x107c0,
	STUBS = 0x11000,
	DONE_PORT = 0xd0, VECTOR_PORT = 0x80, VECTORS = 32,
	TF = 0x100, IF = 0x200, RF = 0x10000,
	FLAGS = 0x8d5,			/* those of arithmetic, all set: no access changes one */
};

/* Where in guest memory things are; the second 2 MiB are mapped for what comes later. */
enum {
	GDT = 0x1000, IDT = 0x2000, PML4 = 0x3000, PDPT = 0x4000, PD = 0x5000,
	COUNTERS = 0x6000, STACKS = 0x20000, MEMORY = 0x200000,
	PARK_AREA = MEMORY, PAGE = 4096, PARK_SIZE = 16 * PAGE,
	SIPI_VECTOR = 0xe0,	/* the page of what runs after a SIPI */
};

/* Where all of it is mapped once more: where Linux has its text. */
#define HIGHER_HALF 0xffffffff80000000

/* What userspace answers an MSR exit with. */
struct reply {
	__u64 data;
	__u8 error;
	__u8 scribble;	/* also overwrite what the kernel must ignore */
};

struct access {
	__u64 rip;	/* RDMSR or WRMSR, | PREFIXED behind the prefix */
	__u64 rcx, rax, rdx;
	__u64 rflags;	/* TF: a #DB comes right after it */
	int before;	/* bytes of code in front of it that are executed too */
	struct reply reply;
	/* interrupts: how many are to come; which the guest took, and where */
	int due, taken, skew;
};

struct vcpu {
	int fd;
	struct kvm_run *run;
	struct access access;
	/* of that access, until the guest goes on; else rflags is 0 */
	struct kvm_regs at_exit;
	int (*left)(int id);	/* in L2 or another mode: says how the run ended, if that is over */
};

static int kvm;

static struct vm {
	int fd;
	__u8 *memory, *park_area;
	int n_park_pages;
	struct vcpu vcpus[16];
} vm;
