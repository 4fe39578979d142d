/*
 * The words of the language in C: one function a word, and what they are made of.
 *
 * Two programs are made of this file: `msrward export` copies what a case needs of it, down to one
 * readable program, and the player (player.c) is all of it. A word does its step and says what
 * came of it, in the notation of a trace, with saw(). Nothing here waits for time to pass: every
 * step ends with an event of the kernel, or with a deadline.
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
 * counts at RBX how often it went round. A stub for each exception writes to the port of its vector.
 */
enum {
	RDMSR = 0x10000, WRMSR = 0x10040,	/* where the instructions stand */
	PREFIXED = 0x10,			/* behind the prefix: KVM's emulator executes it */
	LOOP = 0x20,				/* in a loop */
	TOUCH = 0x10080,			/* a read of guest memory at RCX */
	SWEEP_RDMSR = 0x10090, SWEEP_WRMSR = 0x100a0,	/* of RCX, RCX + RSI, ...: RBP of them */
	WRMSRNS = 0x10740, RDMSR_IMM = 0x10700, WRMSRNS_IMM = 0x10760,	/* WRMSR's bit says write */
	STUBS = 0x11000,
	DONE_PORT = 0xd0, VECTOR_PORT = 0x80, VECTORS = 32,
	TF = 0x100, IF = 0x200,
};

/* Where in guest memory things are; the second 2 MiB are mapped for what comes later. */
enum {
	GDT = 0x1000, IDT = 0x2000, PML4 = 0x3000, PDPT = 0x4000, PD = 0x5000,
	COUNTERS = 0x6000, STACKS = 0x20000, MEMORY = 0x200000,
	PARK_AREA = MEMORY, PAGE = 4096, PARK_SIZE = 16 * PAGE,
};

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
	int due, taken, skew;	/* interrupts: how many are to come; which the guest took, and where */
};

struct vcpu {
	int fd;
	struct kvm_run *run;
	struct access access;
	int (*left)(int id);	/* in L2 or another mode: says how the run ended, if that is over */
};

static int kvm;

static struct vm {
	int fd;
	__u8 *memory, *park_area;
	int n_park_pages;
	struct vcpu vcpus[16];
} vm;

/* What the current step has left so far, as text; a thread has its own. */
static __thread char seen[1 << 16];

static void die(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(TROUBLE);
}

static void skip(const char *what)
{
	fprintf(stderr, "skipped: %s\n", what);
	exit(SKIP);
}

static void saw(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void saw(const char *format, ...)
{
	size_t used = strlen(seen);
	va_list args;

	if (used)
		used += snprintf(seen + used, sizeof(seen) - used, ", ");
	va_start(args, format);
	if (used < sizeof(seen))
		used += vsnprintf(seen + used, sizeof(seen) - used, format, args);
	va_end(args);
	errno = E2BIG;
	if (used >= sizeof(seen))
		die("what a step left");
}

/* The host has no more of something, which says nothing of its kernel. */
static int is_exhausted(int error)
{
	return error == EAGAIN || error == ENOMEM || error == EMFILE || error == ENFILE ||
	       error == ENOSPC || error == EDQUOT;
}

static void saw_error(int error)
{
	static const struct { int number; const char *name; } names[] = {
		{ EPERM, "EPERM" }, { ENOENT, "ENOENT" }, { EINTR, "EINTR" }, { EIO, "EIO" },
		{ E2BIG, "E2BIG" }, { EBADF, "EBADF" }, { EFAULT, "EFAULT" }, { EBUSY, "EBUSY" },
		{ EEXIST, "EEXIST" }, { EINVAL, "EINVAL" }, { ENOTTY, "ENOTTY" },
		{ ENOSYS, "ENOSYS" }, { EOPNOTSUPP, "EOPNOTSUPP" }, { ENXIO, "ENXIO" },
	};

	errno = error;
	if (is_exhausted(error))
		die("an ioctl");
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		if (names[i].number == error) {
			saw("rejected(%s)", names[i].name);
			return;
		}
	}
	saw("rejected(%d)", error);
}

static void saw_result(int result)
{
	if (result < 0)
		saw_error(errno);
	else
		saw("done");
}

static struct {
	void *at;
	size_t size;
} mapped[512];
static size_t n_mapped;

/* Memory below 4 GiB, where a 32-bit caller can point too. */
static void *map_low(size_t size)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT;
	void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, -1, 0);

	if (at == MAP_FAILED)
		die("mmap");
	if (n_mapped < sizeof(mapped) / sizeof(mapped[0])) {
		mapped[n_mapped].at = at;
		mapped[n_mapped++].size = size;
	}
	return at;
}

/* Give back what map_low() has mapped. */
static void unmap_low(void)
{
	while (n_mapped--)
		munmap(mapped[n_mapped].at, mapped[n_mapped].size);
	n_mapped = 0;
}

static __u8 *add_memory(int slot, __u64 base, size_t size)
{
	struct kvm_userspace_memory_region region = { .slot = slot, .guest_phys_addr = base };
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
	void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, -1, 0);

	if (at == MAP_FAILED)
		die("mmap");
	region.memory_size = size;
	region.userspace_addr = (unsigned long)at;
	if (ioctl(vm.fd, KVM_SET_USER_MEMORY_REGION, &region) < 0)
		die("KVM_SET_USER_MEMORY_REGION");
	return at;
}

/* In front of an instruction this has KVM's emulator execute it: force_emulation_prefix=1. */
static const __u8 prefix[] = { 0x0f, 0x0b, 'k', 'v', 'm' };

static void write_code(__u64 at, __u8 opcode)
{
	/* who runs on behind the end of an access comes there again */
	const __u8 once[] = { 0x0f, opcode, 0xe6, DONE_PORT, 0xeb, -4 };
	/* incq (%rbx); jmp back to the instruction, or to its prefix */
	const __u8 loop[] = { 0x0f, opcode, 0x48, 0xff, 0x03, 0xeb, -7 };
	const __u8 prefixed_loop[] = { 0x0f, opcode, 0x48, 0xff, 0x03, 0xeb, -12 };

	memcpy(vm.memory + at, once, sizeof(once));
	memcpy(vm.memory + at + LOOP, loop, sizeof(loop));
	memcpy(vm.memory + at + PREFIXED - sizeof(prefix), prefix, sizeof(prefix));
	memcpy(vm.memory + at + PREFIXED, once, sizeof(once));
	memcpy(vm.memory + at + (LOOP | PREFIXED) - sizeof(prefix), prefix, sizeof(prefix));
	memcpy(vm.memory + at + (LOOP | PREFIXED), prefixed_loop, sizeof(prefixed_loop));
}

static void write_sweep(__u64 at, __u8 opcode)
{
	/* the instruction; add %esi, %ecx; dec %rbp; jnz back; out %al, $port */
	const __u8 code[] = {
		0x0f, opcode, 0x01, 0xf1, 0x48, 0xff, 0xcd, 0x75, -9, 0xe6, DONE_PORT,
	};

	memcpy(vm.memory + at, code, sizeof(code));
}

static void write_stub(unsigned int vector)
{
	__u32 stub = STUBS + 16 * vector;
	__u16 gate[] = { stub & 0xffff, 8, 0x8e00, stub >> 16, 0, 0, 0, 0 };
	/* out %al, $port, for ever */
	__u8 code[] = { 0xe6, VECTOR_PORT + vector, 0xeb, -4 };

	memcpy(vm.memory + IDT + 16 * vector, gate, sizeof(gate));
	memcpy(vm.memory + stub, code, sizeof(code));
}

static void open_kvm(void)
{
	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0)
		die("/dev/kvm");
}

static void open_vm(void)
{
	const __u64 gdt[] = { 0, 0x00af9b000000ffff, 0x00cf93000000ffff };
	const __u64 pml4 = PDPT | 7, pdpt = PD | 7, pd[] = { 0x87, MEMORY | 0x87 };
	/* mov (%rcx), %rbx; out %al, $port */
	const __u8 touch[] = { 0x48, 0x8b, 0x19, 0xe6, DONE_PORT };

	if (!kvm)
		open_kvm();
	vm.fd = ioctl(kvm, KVM_CREATE_VM, 0);
	if (vm.fd < 0)
		die("KVM_CREATE_VM");
	vm.memory = add_memory(0, 0, MEMORY);
	memcpy(vm.memory + GDT, gdt, sizeof(gdt));
	memcpy(vm.memory + PML4, &pml4, sizeof(pml4));
	memcpy(vm.memory + PDPT, &pdpt, sizeof(pdpt));
	memcpy(vm.memory + PD, pd, sizeof(pd));
	write_code(RDMSR, 0x32);
	write_code(WRMSR, 0x30);
	write_sweep(SWEEP_RDMSR, 0x32);
	write_sweep(SWEEP_WRMSR, 0x30);
	memcpy(vm.memory + TOUCH, touch, sizeof(touch));
	for (unsigned int vector = 0; vector < VECTORS; vector++)
		write_stub(vector);
}

static struct kvm_segment segment(int selector, int type, int l)
{
	return (struct kvm_segment){
		.limit = 0xffffffff, .selector = selector, .type = type, .dpl = selector & 3,
		.present = 1, .s = 1, .l = l, .db = !l, .g = 1,
	};
}

static struct kvm_sregs read_sregs(int id)
{
	struct kvm_sregs sregs;

	if (ioctl(vm.vcpus[id].fd, KVM_GET_SREGS, &sregs) < 0)
		die("KVM_GET_SREGS");
	return sregs;
}

static void write_sregs(int id, const struct kvm_sregs *sregs)
{
	if (ioctl(vm.vcpus[id].fd, KVM_SET_SREGS, sregs) < 0)
		die("KVM_SET_SREGS");
}

/* 64-bit mode, CPL0, flat, with the tables of open_vm(). */
static void be_long(struct kvm_sregs *sregs)
{
	sregs->cs = segment(0x08, 11, 1);
	sregs->ds = sregs->es = sregs->fs = sregs->gs = sregs->ss = segment(0x10, 3, 0);
	sregs->gdt.base = GDT;
	sregs->gdt.limit = 0x17;
	sregs->idt.base = IDT;
	sregs->idt.limit = 16 * VECTORS - 1;
	sregs->cr3 = PML4;
	sregs->cr4 = 0x220;		/* PAE, OSFXSR */
	sregs->cr0 = 0x80010033;	/* PG, WP, NE, ET, MP, PE */
	sregs->efer = 0xd01;		/* NX, LMA, LME, SCE */
}

/* All that the host supports; the caller frees it. */
static struct kvm_cpuid2 *supported_cpuid(void)
{
	enum { ENTRIES = 512 };
	struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + ENTRIES * sizeof(cpuid->entries[0]));

	if (!cpuid)
		die("calloc");
	cpuid->nent = ENTRIES;
	if (ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid) < 0)
		die("KVM_GET_SUPPORTED_CPUID");
	return cpuid;
}

/* Create a vCPU in 64-bit mode, CPL0; negative (and errno) if the kernel refuses. */
static int add_vcpu(int id)
{
	struct kvm_mp_state runnable = { .mp_state = KVM_MP_STATE_RUNNABLE };
	int fd = ioctl(vm.fd, KVM_CREATE_VCPU, id);
	int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	struct kvm_cpuid2 *cpuid;
	struct kvm_sregs sregs;

	if (fd < 0)
		return -1;
	vm.vcpus[id].fd = fd;
	vm.vcpus[id].run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (vm.vcpus[id].run == MAP_FAILED)
		die("mmap of kvm_run");
	cpuid = supported_cpuid();
	if (ioctl(fd, KVM_SET_CPUID2, cpuid) < 0)
		die("KVM_SET_CPUID2");
	free(cpuid);
	sregs = read_sregs(id);
	be_long(&sregs);
	write_sregs(id, &sregs);
	/* Behind an in-kernel APIC all but the first would wait for a SIPI. */
	if (ioctl(fd, KVM_SET_MP_STATE, &runnable) < 0)
		die("KVM_SET_MP_STATE");
	return 0;
}

static void need_vcpu(int id)
{
	if (add_vcpu(id) < 0)
		die("KVM_CREATE_VCPU");
}

static struct kvm_regs read_regs(int id)
{
	struct kvm_regs regs;

	if (ioctl(vm.vcpus[id].fd, KVM_GET_REGS, &regs) < 0)
		die("KVM_GET_REGS");
	return regs;
}

static void write_regs(int id, const struct kvm_regs *regs)
{
	if (ioctl(vm.vcpus[id].fd, KVM_SET_REGS, regs) < 0)
		die("KVM_SET_REGS");
}

static void saw_regs(int id, const struct kvm_regs *regs)
{
	saw("regs(%d, rax=%#llx, rcx=%#llx, rdx=%#llx)", (int)(regs->rip - vm.vcpus[id].access.rip),
	    regs->rax, regs->rcx, regs->rdx);
}

/* Say what stands in kvm_run.msr. */
static void saw_msr(__u32 exit_reason, const struct kvm_run *run)
{
	static const char * const names[] = {
		"0", "INVAL", "UNKNOWN", "INVAL|UNKNOWN",
		"FILTER", "INVAL|FILTER", "UNKNOWN|FILTER", "INVAL|UNKNOWN|FILTER",
	};
	int is_write = exit_reason == KVM_EXIT_X86_WRMSR;
	char odd[96] = "", reason[32], data[32] = "";
	__u64 pad = 0;

	memcpy(&pad, run->msr.pad, sizeof(run->msr.pad));
	if (run->msr.reason < 8)
		snprintf(reason, sizeof(reason), "%s", names[run->msr.reason]);
	else
		snprintf(reason, sizeof(reason), "%#x", run->msr.reason);
	if (is_write)
		snprintf(data, sizeof(data), ", %#llx", run->msr.data);
	else if (run->msr.data)
		snprintf(data, sizeof(data), ", data=%#llx", run->msr.data);
	if (run->msr.error)
		snprintf(odd, sizeof(odd), ", error=%#x", run->msr.error);
	if (pad)
		snprintf(odd + strlen(odd), sizeof(odd) - strlen(odd), ", pad=%#llx", pad);
	saw("%s(%#x, %s%s%s)", is_write ? "WrmsrExit" : "RdmsrExit", run->msr.index, reason,
	    data, odd);
}

static int has_error_code(int vector)
{
	return vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 ||
	       vector == 29 || vector == 30;
}

/* The exception's frame is on the stack, an error code below it for some. */
static void saw_fault(struct vcpu *vcpu, const struct kvm_regs *regs, int vector)
{
	__u64 *frame = (__u64 *)(vm.memory + regs->rsp);
	__u64 code = has_error_code(vector) ? *frame++ : 0;
	int skew = *frame - vcpu->access.rip;
	char text[160];
	int used = snprintf(text, sizeof(text), "%#x", vector);

	if (code)
		used += snprintf(text + used, sizeof(text) - used, ", error_code=%#llx", code);
	if (skew)
		used += snprintf(text + used, sizeof(text) - used, ", skew=%d", skew);
	if (regs->rax != vcpu->access.rax || regs->rdx != vcpu->access.rdx)
		used += snprintf(text + used, sizeof(text) - used, ", registers=(%#llx, %#llx)",
				 regs->rax, regs->rdx);
	if (strcmp(text, "0xd"))
		saw("Fault(%s)", text);
	else
		saw("gp");
}

static void saw_outcome(int id, int port)
{
	struct vcpu *vcpu = &vm.vcpus[id];
	struct kvm_regs regs = read_regs(id);
	__u64 high = (regs.rdx & ~0xffffffffull) | regs.rax >> 32;
	__u64 value = regs.rdx << 32 | (regs.rax & 0xffffffff);
	int is_read = !(vcpu->access.rip & (RDMSR ^ WRMSR));

	if (vcpu->access.rip == RDMSR_IMM) {	/* all of it is in RAX, and RDX is as it was */
		high = regs.rdx == vcpu->access.rdx ? 0 : ~0ull;
		value = regs.rax;
	}
	if (port != DONE_PORT)
		saw_fault(vcpu, &regs, port - VECTOR_PORT);
	else if (is_read && high)
		saw("returned(%#llx, high=%#llx)", value, high);
	else if (is_read)
		saw("returned(%#llx)", value);
	else if (regs.rax != vcpu->access.rax || regs.rdx != vcpu->access.rdx)
		saw("Wrote((%#llx, %#llx))", regs.rax, regs.rdx);
	else
		saw("wrote");
}

static int is_msr_exit(const struct kvm_run *run)
{
	return run->exit_reason == KVM_EXIT_X86_RDMSR || run->exit_reason == KVM_EXIT_X86_WRMSR;
}

/* KVM_RUN, again after a signal that nobody asked for: negative if it failed, with errno. */
static int enter_guest(int id)
{
	int result;

	do
		result = ioctl(vm.vcpus[id].fd, KVM_RUN, 0);
	while (result < 0 && errno == EINTR);
	if (result < 0 && is_exhausted(errno))
		die("KVM_RUN");
	return result;
}

/* Whether the guest never finished what it was to do. */
static int is_end(const char *text)
{
	return strstr(text, "Lost(") || strstr(text, "internal_error(") || strstr(text, "other_exit(");
}

/* An exit that is no end of an access. */
static void saw_foreign(const struct kvm_run *run)
{
	switch (run->exit_reason) {
	case KVM_EXIT_INTERNAL_ERROR:
		saw("internal_error(%#x)", run->internal.suberror);
		break;
	case KVM_EXIT_HLT: case KVM_EXIT_MMIO: case KVM_EXIT_DEBUG: case KVM_EXIT_SHUTDOWN:
	case KVM_EXIT_FAIL_ENTRY:
		saw("Lost('exit reason %u')", run->exit_reason);
		break;
	default:
		saw("other_exit(%#x)", run->exit_reason);
	}
}

/* Say how the guest's run ended; returns whether it was with an MSR exit. */
static int saw_run(int id, int result)
{
	struct kvm_run *run = vm.vcpus[id].run;

	if (result < 0) {
		/* kvm_run is stale now */
		saw("Lost('KVM_RUN: %s')", strerror(errno));
		return 0;
	}
	if (is_msr_exit(run)) {
		saw_msr(run->exit_reason, run);
		return 1;
	}
	if (vm.vcpus[id].left && vm.vcpus[id].left(id))
		return 0;
	if (run->exit_reason == KVM_EXIT_IO)
		saw_outcome(id, run->io.port);
	else
		saw_foreign(run);
	return 0;
}

/* Write userspace's answer to an MSR exit; the next KVM_RUN delivers it. */
static void answer(int id, struct reply reply)
{
	struct kvm_run *run = vm.vcpus[id].run;

	run->msr.data = reply.data;
	run->msr.error = reply.error;
	if (reply.scribble) {
		memset(run->msr.pad, 0xa5, sizeof(run->msr.pad));
		run->msr.reason = run->msr.index = 0xa5a5a5a5;
	}
}

static void set_up(int id, struct access access)
{
	struct kvm_regs regs = {
		.rip = access.rip - (access.rip & PREFIXED ? sizeof(prefix) : 0) - access.before,
		.rbx = COUNTERS + 8 * id, .rcx = access.rcx, .rax = access.rax, .rdx = access.rdx,
		.rsp = STACKS + PAGE * (id + 1), .rflags = access.rflags | 2,
	};

	vm.vcpus[id].access = access;
	write_regs(id, &regs);
}

/* Run the vCPU into the access, up to its exit or, if it has none, its end. */
static int begin(int id, struct access access)
{
	set_up(id, access);
	return saw_run(id, enter_guest(id));
}

/* Answer every exit of an access that was begun with its reply. */
static void answer_exits(int id, int more)
{
	const struct access *access = &vm.vcpus[id].access;
	int exits = 0;

	while (more) {
		struct kvm_regs regs = read_regs(id);

		if (regs.rip != access->rip || regs.rcx != access->rcx ||
		    regs.rax != access->rax || regs.rdx != access->rdx)
			saw_regs(id, &regs);
		if (++exits > 16) {
			saw("Lost('more exits than accesses')");
			return;
		}
		answer(id, access->reply);
		more = saw_run(id, enter_guest(id));
	}
}

/* The whole access. */
static void do_access(int id, struct access access)
{
	answer_exits(id, begin(id, access));
}

static void get_regs(int id)
{
	struct kvm_regs regs = read_regs(id);

	saw_regs(id, &regs);
}

static void set_regs(int id, struct kvm_regs regs)
{
	write_regs(id, &regs);
	saw("done");
}

/* The same by what KVM_RUN takes from kvm_run at its start. */
static void sync_regs(int id, struct kvm_regs regs)
{
	vm.vcpus[id].run->s.regs.regs = regs;
	vm.vcpus[id].run->kvm_dirty_regs = KVM_SYNC_X86_REGS;
	saw("done");
}

/* One KVM_RUN that has been seen to to end with EINTR. */
static void run_interrupted(int id)
{
	int result = ioctl(vm.vcpus[id].fd, KVM_RUN, 0);

	if (result < 0 && errno == EINTR)
		saw("interrupted");
	else
		saw_run(id, result);
}

/* Re-enter only to complete the access. */
static void complete_by_immediate_exit(int id)
{
	vm.vcpus[id].run->immediate_exit = 1;
	run_interrupted(id);
	vm.vcpus[id].run->immediate_exit = 0;
}

/* The same with a pending signal that only KVM_RUN does not block. */
static void complete_by_signal(int id)
{
	struct kvm_signal_mask *none = calloc(1, sizeof(*none) + 8);
	struct timespec now = { 0 };
	sigset_t usr2;

	if (!none)
		die("calloc");
	none->len = 8;
	sigemptyset(&usr2);
	sigaddset(&usr2, SIGUSR2);
	sigprocmask(SIG_BLOCK, &usr2, NULL);
	if (ioctl(vm.vcpus[id].fd, KVM_SET_SIGNAL_MASK, none) < 0)
		die("KVM_SET_SIGNAL_MASK");
	raise(SIGUSR2);
	run_interrupted(id);
	sigtimedwait(&usr2, NULL, &now);
	if (ioctl(vm.vcpus[id].fd, KVM_SET_SIGNAL_MASK, NULL) < 0)
		die("KVM_SET_SIGNAL_MASK");
	sigprocmask(SIG_UNBLOCK, &usr2, NULL);
	free(none);
}

/* Run the vCPU on to the end of its access. */
static void finish(int id)
{
	saw_run(id, enter_guest(id));
}

static void enable_cap(int fd, struct kvm_enable_cap cap)
{
	saw_result(ioctl(fd, KVM_ENABLE_CAP, &cap));
}

static void check_extension(int fd, int cap)
{
	int result = ioctl(fd, KVM_CHECK_EXTENSION, cap);

	if (result < 0)
		saw_error(errno);
	else if (result)
		saw("got(%#x)", result);
	else
		saw("got(0)");
}

static void install(int fd, unsigned long number, const void *argp)
{
	saw_result(ioctl(fd, number, argp));
}

/* The ioctl by a forked process, whose memory is not the VM's. */
static void install_in_child(int fd, unsigned long number, const void *argp)
{
	pid_t child = fork();
	int status;

	if (child < 0)
		die("fork");
	if (child == 0)
		_exit(ioctl(fd, number, argp) < 0 ? errno : 0);
	while (waitpid(child, &status, 0) < 0)
		if (errno != EINTR)
			die("waitpid");
	if (status == 0)
		saw("done");
	else
		saw_error(WIFEXITED(status) ? WEXITSTATUS(status) : EINTR);
}

/* The 32-bit entry of a 64-bit kernel; it zeroes r8 to r11. */
static int ioctl_compat(int fd, unsigned long number, const void *argp)
{
	long result = 54;	/* ia32 __NR_ioctl */

	__asm__ volatile("int $0x80"
			 : "+a"(result)
			 : "b"((long)fd), "c"(number), "d"(argp)
			 : "memory", "r8", "r9", "r10", "r11");
	return (int)result;
}

static void install_compat(int fd, unsigned long number, const void *argp)
{
	int result = ioctl_compat(fd, number, argp);

	if (result < 0)
		saw_error(-result);
	else
		saw("done");
}

/* Without ia32 emulation the 32-bit entry is a fault, which only a child can take. */
static const char *lacks_compat(void)
{
	pid_t child = fork();
	int status;

	if (child < 0)
		die("fork");
	if (child == 0)
		_exit(ioctl_compat(kvm, KVM_GET_API_VERSION, NULL) != KVM_API_VERSION);
	while (waitpid(child, &status, 0) < 0)
		if (errno != EINTR)
			die("waitpid");
	if (WIFSIGNALED(status))
		return "compat syscalls: this kernel has no ia32 emulation";
	return status ? "compat syscalls: int $0x80 is refused here" : NULL;
}

/* The filter as a 32-bit caller lays it out. */
struct compat_filter {
	__u32 flags;
	struct {
		__u32 flags, nmsrs, base, bitmap;
	} ranges[KVM_MSR_FILTER_MAX_RANGES];
};

#define KVM_X86_SET_MSR_FILTER_COMPAT _IOW(KVMIO, 0xc6, struct compat_filter)

/* What the kernel reads as a bitmap, but no more than a page. */
static size_t bitmap_size(__u32 nmsrs)
{
	size_t size = ((__u64)nmsrs + 63) / 64 * 8;

	return size < PAGE ? size : PAGE;
}

/* The copies below 4 GiB of the last filter's bitmaps. */
static __u8 *low_bitmaps;
static size_t low_size;

/* Where a 32-bit caller can point to: a copy, if the bitmap lies above. */
static __u8 *low_bitmap(const struct kvm_msr_filter_range *range)
{
	__u64 at = (unsigned long)range->bitmap;
	size_t size = bitmap_size(range->nmsrs);
	__u8 *copy = low_bitmaps + low_size;

	if (at < 1ull << 32 || at >> 63)
		return range->bitmap;
	memcpy(copy, range->bitmap, size);
	low_size += size;
	return copy;
}

static void make_low_bitmaps(void)
{
	low_bitmaps = map_low(KVM_MSR_FILTER_MAX_RANGES * PAGE);
	low_size = 0;
}

/* The same filter below 4 GiB. */
static void *low(const struct kvm_msr_filter *filter)
{
	struct kvm_msr_filter *copy = map_low(sizeof(*copy));

	make_low_bitmaps();
	*copy = *filter;
	for (int i = 0; i < KVM_MSR_FILTER_MAX_RANGES; i++)
		copy->ranges[i].bitmap = low_bitmap(&filter->ranges[i]);
	return copy;
}

/* The same filter in the 32-bit layout, below 4 GiB. */
static void *low_compat(const struct kvm_msr_filter *filter)
{
	struct compat_filter *copy = map_low(sizeof(*copy));

	make_low_bitmaps();
	copy->flags = filter->flags;
	for (int i = 0; i < KVM_MSR_FILTER_MAX_RANGES; i++) {
		copy->ranges[i].flags = filter->ranges[i].flags;
		copy->ranges[i].nmsrs = filter->ranges[i].nmsrs;
		copy->ranges[i].base = filter->ranges[i].base;
		copy->ranges[i].bitmap = (unsigned long)low_bitmap(&filter->ranges[i]);
	}
	return copy;
}

/* Return a copy of the bitmap whose last byte is the last before an inaccessible page. */
static __u8 *at_edge(const __u8 *bits, size_t size)
{
	__u8 *pages = map_low(2 * PAGE);

	if (mprotect(pages + PAGE, PAGE, PROT_NONE) < 0)
		die("mprotect");
	return memcpy(pages + PAGE - size, bits, size);
}

static void *unmapped(void)
{
	void *page = map_low(PAGE);

	if (mprotect(page, PAGE, PROT_NONE) < 0)
		die("mprotect");
	return page;
}

/* Overwrite, in user memory, what the kernel must have copied. */
static void scribble_bitmap(__u8 *bitmap, size_t size)
{
	while (size--)
		bitmap[size] ^= 0xff;
}

static struct kvm_msrs *one_msr(__u32 index, __u64 data)
{
	struct kvm_msrs *msrs = calloc(1, sizeof(*msrs) + sizeof(msrs->entries[0]));

	if (!msrs)
		die("calloc");
	msrs->nmsrs = 1;
	msrs->entries[0].index = index;
	msrs->entries[0].data = data;
	return msrs;
}

static void get_msr(int id, __u32 index)
{
	struct kvm_msrs *msrs = one_msr(index, 0);
	int count = ioctl(vm.vcpus[id].fd, KVM_GET_MSRS, msrs);

	if (count < 0)
		saw_error(errno);
	else if (count)
		saw("got(%#llx)", msrs->entries[0].data);
	else
		saw("refused");
	free(msrs);
}

/* Set one MSR: 1, 0 if the vCPU refuses it, or negative (and errno). */
static int write_msr(int id, __u32 index, __u64 data)
{
	struct kvm_msrs *msrs = one_msr(index, data);
	int count = ioctl(vm.vcpus[id].fd, KVM_SET_MSRS, msrs), error = errno;

	free(msrs);
	errno = error;
	return count;
}

static void set_msr(int id, __u32 index, __u64 data)
{
	int count = write_msr(id, index, data);

	if (count)
		saw_result(count);
	else
		saw("refused");
}

/* Without CONFIG_KVM_IOAPIC there are only the local APICs, which KVM_CAP_SPLIT_IRQCHIP makes. */
static int make_irqchip(void)
{
	struct kvm_enable_cap split = { .cap = KVM_CAP_SPLIT_IRQCHIP, .args = { 24 } };
	int result = ioctl(vm.fd, KVM_CREATE_IRQCHIP, 0);

	if (result < 0 && errno == ENOTTY)
		result = ioctl(vm.fd, KVM_ENABLE_CAP, &split);
	return result;
}

static void create_irqchip(void)
{
	saw_result(make_irqchip());
}

static void create_vcpu(int id)
{
	saw_result(add_vcpu(id));
}

enum { EAX, EBX, ECX, EDX };

/* The vCPU's CPUID: all that the host supports, but one bit of a leaf as given. */
static void set_cpuid(int id, __u32 leaf, int reg, int bit, int on)
{
	struct kvm_cpuid2 *cpuid = supported_cpuid();

	for (__u32 i = 0; i < cpuid->nent; i++) {
		struct kvm_cpuid_entry2 *entry = &cpuid->entries[i];
		__u32 *regs[] = { &entry->eax, &entry->ebx, &entry->ecx, &entry->edx };

		if (entry->function == leaf)
			*regs[reg] = (*regs[reg] & ~(1u << bit)) | (__u32)on << bit;
	}
	saw_result(ioctl(vm.vcpus[id].fd, KVM_SET_CPUID2, cpuid));
	free(cpuid);
}

/*
 * Sweeps: very many accesses in one go, and how each ended, by the number that it has in the sweep.
 * The last two are patterns, which only an expectation has.
 */
enum { PASSED = 0, INVAL = 1, UNKNOWN = 2, FILTER = 4, GP = 8, STRANGE = 16, UNFILTERED, WHATEVER };

struct sweep {
	__u64 rip;	/* SWEEP_RDMSR or SWEEP_WRMSR */
	__u32 first, count, stride;
	__u64 value, reply;
};

static struct sweep sweep_done;
static __u8 *sweep_ended;

/* Which access the MSR belongs to, from the one that is due; that one, if it cannot be. */
static __u32 number_in_sweep(__u32 index, __u32 due)
{
	__u32 number = (index - sweep_done.first) / sweep_done.stride;

	if (sweep_done.first + number * sweep_done.stride == index && number >= due &&
	    number < sweep_done.count)
		return number;
	sweep_ended[due] = STRANGE;
	return due;
}

static __u32 swept_exit(const struct kvm_run *run, __u32 due)
{
	int is_write = sweep_done.rip == SWEEP_WRMSR;
	__u32 number = number_in_sweep(run->msr.index, due);
	__u64 head;

	memcpy(&head, &run->msr.error, sizeof(head));
	if (run->exit_reason != (__u32)(is_write ? KVM_EXIT_X86_WRMSR : KVM_EXIT_X86_RDMSR) || head ||
	    run->msr.data != (is_write ? sweep_done.value : 0) || sweep_ended[number] ||
	    (run->msr.reason != INVAL && run->msr.reason != UNKNOWN && run->msr.reason != FILTER))
		sweep_ended[number] = STRANGE;
	else
		sweep_ended[number] = run->msr.reason;
	return number;
}

/* #GP(0) at the instruction, without an exit before it: anything else is strange. Go on behind it. */
static __u32 swept_fault(int id, int vector, __u32 due)
{
	struct kvm_regs regs = read_regs(id);
	__u64 *frame = (__u64 *)(vm.memory + regs.rsp);
	__u32 number = number_in_sweep(regs.rcx, due);
	int is_gp = vector == 13 && frame[0] == 0 && frame[1] == sweep_done.rip;

	sweep_ended[number] = is_gp && !sweep_ended[number] ? GP : STRANGE;
	regs.rip = sweep_done.rip + 2;
	regs.rsp = STACKS + PAGE * (id + 1);
	write_regs(id, &regs);
	return number;
}

/* Run the guest to the end of its loop; NULL, or what ended it instead: "" if that is said already. */
static const char *run_sweep(int id)
{
	struct kvm_run *run = vm.vcpus[id].run;
	__u32 due = 0;

	for (__u64 exits = 0; exits <= 2ull * sweep_done.count; exits++) {
		if (enter_guest(id) < 0)
			return "KVM_RUN failed";
		if (vm.vcpus[id].left && !is_msr_exit(run) && vm.vcpus[id].left(id))
			return "";
		if (run->exit_reason == KVM_EXIT_IO && run->io.port == DONE_PORT)
			return NULL;
		if (run->exit_reason == KVM_EXIT_IO) {
			due = swept_fault(id, run->io.port - VECTOR_PORT, due);
		} else if (is_msr_exit(run)) {
			due = swept_exit(run, due);
			answer(id, (struct reply){ .data = sweep_done.reply });
		} else {
			return "an exit that is none of an MSR";
		}
	}
	return "more exits than accesses";
}

static const char *name_of(int ended)
{
	switch (ended) {
	case PASSED: return "PASSED";
	case INVAL: return "INVAL";
	case UNKNOWN: return "UNKNOWN";
	case FILTER: return "FILTER";
	case GP: return "GP";
	default: return "STRANGE";
	}
}

/* Say how they ended, as runs of accesses that ended alike: first MSR, count, how. */
static void saw_swept(void)
{
	char *text = calloc(sweep_done.count, 48);
	__u32 first = 0, used = 0;

	if (!text)
		die("calloc");
	for (__u32 i = 1; i <= sweep_done.count; i++) {
		if (i < sweep_done.count && sweep_ended[i] == sweep_ended[first])
			continue;
		used += sprintf(text + used, "%srun(%#x, %#x, %s)", used ? ", " : "",
				sweep_done.first + first * sweep_done.stride, i - first,
				name_of(sweep_ended[first]));
		first = i;
	}
	saw("swept((%s))", text);
	free(text);
}

/* The guest executes the access of count MSRs: first, first + stride, and so on. */
static void sweep(int id, struct sweep sweep)
{
	struct kvm_regs regs = {
		.rip = sweep.rip, .rcx = sweep.first, .rax = (__u32)sweep.value,
		.rdx = sweep.value >> 32, .rbp = sweep.count, .rsi = sweep.stride,
		.rsp = STACKS + PAGE * (id + 1), .rflags = 2,
	};
	const char *why;

	free(sweep_ended);
	sweep_ended = calloc(sweep.count, 1);
	if (!sweep_ended)
		die("calloc");
	sweep_done = sweep;
	vm.vcpus[id].access = (struct access){ .rip = sweep.rip };
	write_regs(id, &regs);
	why = run_sweep(id);
	if (!why)
		saw_swept();
	else if (*why)
		saw("Lost('%s')", why);
}

/* Closes the descriptor: the vCPUs keep their VM alive. */
static void close_vm(void)
{
	close(vm.fd);
	vm.fd = -1;
	saw("done");
}

static void drop_vcpu(int id)
{
	munmap(vm.vcpus[id].run, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0));
	close(vm.vcpus[id].fd);
	vm.vcpus[id] = (struct vcpu){ 0 };
}

static void close_vcpu(int id)
{
	drop_vcpu(id);
	saw("done");
}

/* Close and unmap all of the VM. */
static void drop_vm(void)
{
	for (int id = 0; id < 16; id++)
		if (vm.vcpus[id].run)
			drop_vcpu(id);
	if (vm.fd > 0)
		close(vm.fd);
	if (vm.park_area)
		munmap(vm.park_area, PARK_SIZE);
	munmap(vm.memory, MEMORY);
	memset(&vm, 0, sizeof(vm));
}

/*
 * Races. An install is stalled when userfaultfd says that the kernel wants its bitmap, a vCPU is
 * parked when userfaultfd says that it wants its page. A thread is blocked when the kernel shows
 * it asleep in its ioctl while whole installs of another VM, each with a grace period of its own,
 * come and go: what slows one down slows the others too.
 */
enum {
	DEADLINE = 10000,	/* ms after which an event is not waited for any more */
	SLICE = 100,		/* ms of one wait, after which the clock is looked at */
	GLANCE = 1,		/* ms between two looks at what has no descriptor to wait on */
	OBEYS_WITHIN = 3000, RETURNS_WITHIN = 2000,
	CONTROLS = 5, CONTROLLED = 60,	/* installs, and the ms they must last */
	LONGER = 3, LONGER_CONTROLLED = 20,
};

/* Whether "blocked" or "never" would be wrong in this step, so that it takes a longer wait to say it. */
static int patient;

static int ms_of_clock(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* So many ms, of which those do not count in which this process was stopped. */
struct patience {
	int left, last;
};

static struct patience patience_of(int ms)
{
	return (struct patience){ ms, ms_of_clock() };
}

static int is_left(struct patience *patience)
{
	int now = ms_of_clock(), passed = now - patience->last;

	patience->left -= passed < 5 * SLICE ? passed : 5 * SLICE;
	patience->last = now;
	return patience->left > 0;
}

/* A thread that does one thing, and what that left. */
struct task {
	char name[20];
	void (*work)(const void *);
	const void *argument;
	pthread_t thread;
	int tid;
	int ended;		/* an eventfd */
	char seen[sizeof(seen)];
};

static struct task tasks[64];
static int n_tasks;

static void *do_task(void *argument)
{
	struct task *task = argument;
	__u64 one = 1;

	__atomic_store_n(&task->tid, (int)syscall(SYS_gettid), __ATOMIC_SEQ_CST);
	task->work(task->argument);
	memcpy(task->seen, seen, sizeof(seen));
	if (write(task->ended, &one, sizeof(one)) < 0)
		die("eventfd");
	return NULL;
}

static struct task *start(const char *name, void (*work)(const void *), const void *argument)
{
	struct task *task = &tasks[n_tasks];

	if (n_tasks++ == sizeof(tasks) / sizeof(tasks[0])) {
		errno = E2BIG;
		die("threads");
	}
	*task = (struct task){ .work = work, .argument = argument };
	snprintf(task->name, sizeof(task->name), "%s", name);
	task->ended = eventfd(0, EFD_CLOEXEC);
	if (task->ended < 0)
		die("eventfd");
	errno = pthread_create(&task->thread, NULL, do_task, task);
	if (errno)
		die("pthread_create");
	return task;
}

/* The last thread of that name. */
static struct task *find_task(const char *name)
{
	for (int i = n_tasks - 1; i >= 0; i--)
		if (!strcmp(tasks[i].name, name))
			return &tasks[i];
	errno = ESRCH;
	die(name);
	return NULL;
}

/* Whether the thread has ended, after at most so many ms. */
static int has_ended(struct task *task, int ms)
{
	struct pollfd ended = { .fd = task->ended, .events = POLLIN };
	struct patience patience = patience_of(ms);
	int result;

	do
		result = poll(&ended, 1, ms < SLICE ? ms : SLICE);
	while (result <= 0 && is_left(&patience));
	return result > 0;
}

/* Whether the kernel shows the thread asleep inside an ioctl, native (16) or ia32 (54). */
static int is_asleep_in_an_ioctl(struct task *task)
{
	char path[64], text[64] = "";
	int tid = __atomic_load_n(&task->tid, __ATOMIC_SEQ_CST), fd;
	ssize_t size;

	snprintf(path, sizeof(path), "/proc/self/task/%d/syscall", tid);
	fd = tid ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	if (fd < 0 && errno != ENOENT && tid)
		die(path);
	if (fd < 0)
		return 0;
	size = read(fd, text, sizeof(text) - 1);
	close(fd);
	return size > 3 && (!strncmp(text, "16 ", 3) || !strncmp(text, "54 ", 3));
}

/* What the thread left becomes what this step left. */
static void saw_task(struct task *task)
{
	saw("%s", task->seen);
}

static int uffd;

/* A userfaultfd that also sees the faults of the kernel itself. */
static int try_userfaultfd(void)
{
	int flags = O_CLOEXEC | O_NONBLOCK, fd = syscall(SYS_userfaultfd, flags), device;

	if (fd >= 0)
		return fd;
	device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (device < 0)
		return -1;
	fd = ioctl(device, _IO(0xaa, 0), flags);	/* USERFAULTFD_IOC_NEW */
	close(device);
	return fd;
}

static void open_userfaultfd(void)
{
	struct uffdio_api api = { .api = UFFD_API };

	uffd = try_userfaultfd();
	if (uffd < 0)
		skip("userfaultfd for the kernel's own faults: run as root");
	if (ioctl(uffd, UFFDIO_API, &api) < 0)
		die("UFFDIO_API");
}

/* Have the first access to each of the pages wait. */
static void watch(void *pages, size_t size)
{
	struct uffdio_register missing = {
		.range = { (unsigned long)pages, size }, .mode = UFFDIO_REGISTER_MODE_MISSING,
	};

	if (!uffd)
		open_userfaultfd();
	if (ioctl(uffd, UFFDIO_REGISTER, &missing) < 0)
		die("UFFDIO_REGISTER");
}

static void give(const void *page, const void *content)
{
	struct uffdio_copy copy = {
		.dst = (unsigned long)page, .src = (unsigned long)content, .len = PAGE,
	};

	if (ioctl(uffd, UFFDIO_COPY, &copy) < 0)
		die("UFFDIO_COPY");
}

/* The pages that somebody waits for, as far as they have been read. */
static __u64 faults[64];
static int n_faults;

/* Whether somebody waits for the page, after at most so many ms, or as soon as the thread ended. */
static int is_awaited(const void *page, int ms, struct task *task)
{
	struct pollfd fds[] = { { .fd = uffd, .events = POLLIN }, { .fd = task->ended, .events = POLLIN } };
	struct uffd_msg message;

	poll(fds, 2, ms);
	while (n_faults < 64 && read(uffd, &message, sizeof(message)) == sizeof(message))
		faults[n_faults++] = message.arg.pagefault.address / PAGE * PAGE;
	for (int i = 0; i < n_faults; i++)
		if (faults[i] == (unsigned long)page)
			return 1;
	return 0;
}

/* An install of another VM: it takes a grace period of its own. */
static void control_install(void)
{
	static struct kvm_msr_filter off;
	static int control;

	if (!control)
		control = ioctl(kvm, KVM_CREATE_VM, 0);
	if (control < 0 || ioctl(control, KVM_X86_SET_MSR_FILTER, &off) < 0)
		die("an install of another VM");
}

/* Whether the thread sleeps on while other VMs' installs come and go. */
static int sleeps_through(struct task *task)
{
	int times = patient ? LONGER_CONTROLLED : 1, start = ms_of_clock();

	for (int i = 0; i < CONTROLS * times || ms_of_clock() - start < CONTROLLED * times; i++) {
		if (has_ended(task, 0))
			return 0;
		control_install();
	}
	return !has_ended(task, 0) && is_asleep_in_an_ioctl(task);
}

/*
 * Wait until the thread is back, waits for the page (if it wants one), or is seen to be blocked. Who
 * sleeps for a page has said so before, so a look after the sleep was seen cannot miss it.
 */
static void settle(struct task *task, const void *page)
{
	struct patience patience = patience_of(DEADLINE);

	do {
		if (has_ended(task, GLANCE)) {
			saw_task(task);
			return;
		}
		if (is_asleep_in_an_ioctl(task)) {
			if (page && is_awaited(page, 0, task)) {
				saw("stalled");
				return;
			}
			if (sleeps_through(task)) {
				saw(page && is_awaited(page, 0, task) ? "stalled" : "blocked");
				return;
			}
		}
	} while (is_left(&patience));
	saw("never");
}

static int n_parked;

/* Wait for a thread that nothing else in flight can be in the way of, or settle it. */
static void await(struct task *task)
{
	int others = n_parked;

	for (int i = 0; i < n_tasks; i++)
		others += &tasks[i] != task && !has_ended(&tasks[i], 0);
	if (others)
		settle(task, NULL);
	else if (has_ended(task, RETURNS_WITHIN * (patient ? LONGER : 1)))
		saw_task(task);
	else
		saw("blocked");
}

/* The bitmap of a stalled install: a page that is not there, and what it is to hold. */
struct stall {
	char name[20];
	__u8 *page;
	__u8 bits[4096];
};

static struct stall stalls[16];
static int n_stalls;

/* A bitmap that the kernel waits for in the install that is begun under this name. */
static __u8 *not_there(const char *name, const __u8 *bits, size_t size)
{
	struct stall *stall = &stalls[n_stalls++ % 16];

	snprintf(stall->name, sizeof(stall->name), "%s", name);
	memset(stall->bits, 0, sizeof(stall->bits));
	memcpy(stall->bits, bits, size < PAGE ? size : PAGE);
	stall->page = map_low(PAGE);
	watch(stall->page, PAGE);
	return stall->page;
}

static struct stall *find_stall(const char *name)
{
	for (int i = n_stalls - 1; i >= 0 && i > n_stalls - 16; i--)
		if (!strcmp(stalls[i % 16].name, name))
			return &stalls[i % 16];
	return NULL;
}

/* Start an install in a thread, and see whether it stalls. */
static void begin_install(const char *name, void (*work)(const void *), const void *argument)
{
	struct stall *stall = find_stall(name);

	settle(start(name, work, argument), stall ? stall->page : NULL);
}

/* Give a stalled install its bitmap, or make the bitmap unreadable for good. */
static void resume_install(const char *name, int fails)
{
	struct stall *stall = find_stall(name);
	struct uffdio_range range = { (unsigned long)stall->page, PAGE };

	if (!fails)
		give(stall->page, stall->bits);
	else if (mprotect(stall->page, PAGE, PROT_NONE) < 0 || ioctl(uffd, UFFDIO_WAKE, &range) < 0)
		die("UFFDIO_WAKE");
	stall->name[0] = 0;
	await(find_task(name));
}

/* Do a step in a thread: what it leaves, or blocked. */
static void meanwhile(const char *name, void (*work)(const void *), const void *argument)
{
	settle(start(name, work, argument), NULL);
}

/* Wait for an install or another step that was blocked. */
static void await_task(const char *name)
{
	await(find_task(name));
}

/* The page that a parked vCPU waits for, and its thread. */
static struct {
	__u8 *page;
	struct task *task;
} parked[16];

static void run_parked(const void *argument)
{
	int id = *(const int *)argument;

	if (ioctl(vm.vcpus[id].fd, KVM_RUN, 0) < 0 && errno == EINTR)
		die("a signal took a parked vCPU out of the kernel, run it again: KVM_RUN");
	if (vm.vcpus[id].run->exit_reason == KVM_EXIT_IO && vm.vcpus[id].run->io.port == DONE_PORT)
		saw("released");
	else
		saw("Lost('exit reason %u')", vm.vcpus[id].run->exit_reason);
}

/* Run a vCPU in a thread until it waits, inside the kernel, for a page of guest memory. */
static void park(int id)
{
	static const int ids[16] = { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15 };
	struct patience patience = patience_of(DEADLINE);
	int page = PAGE * (vm.n_park_pages++ % (PARK_SIZE / PAGE));
	struct task *task;

	if (!vm.park_area) {
		vm.park_area = add_memory(1, PARK_AREA, PARK_SIZE);
		watch(vm.park_area, PARK_SIZE);
	}
	set_up(id, (struct access){ .rip = TOUCH, .rcx = PARK_AREA + page });
	task = parked[id].task = start("", run_parked, &ids[id]);
	parked[id].page = vm.park_area + page;
	n_parked++;
	while (!has_ended(task, 0) && is_left(&patience)) {
		if (is_awaited(parked[id].page, SLICE, task)) {
			saw("parked");
			return;
		}
	}
	saw("%s", has_ended(task, 0) ? task->seen : "never");
}

/* Give a parked vCPU its page and wait until its guest went on. */
static void release(int id)
{
	static const __u8 zeroes[4096];

	give(parked[id].page, zeroes);
	if (!has_ended(parked[id].task, DEADLINE)) {
		errno = ETIMEDOUT;
		die("a vCPU has its page and does not come back from KVM_RUN");
	}
	n_parked--;
	saw_task(parked[id].task);
}

/* A vCPU whose guest goes round an access in a thread that answers every exit. */
struct spinner {
	struct task *task;
	struct vcpu *vcpu;
	volatile __u64 *rounds;
	int id, stop;
	__u64 exits;
	__u32 exit_reason;
	struct kvm_run last;	/* its msr, as of the last exit */
};

static struct spinner spinners[16];

/* A #GP in the loop ends its round: go on behind the instruction. */
static void skip_instruction(struct spinner *spinner)
{
	struct kvm_regs regs = read_regs(spinner->id);

	regs.rip = spinner->vcpu->access.rip + 2;
	regs.rsp = STACKS + PAGE * (spinner->id + 1);
	write_regs(spinner->id, &regs);
}

static int answer_spinning(struct spinner *spinner)
{
	struct kvm_run *run = spinner->vcpu->run;

	if (run->exit_reason == KVM_EXIT_IO && run->io.port == VECTOR_PORT + 13) {
		skip_instruction(spinner);
		return 1;
	}
	if (!is_msr_exit(run))
		return 0;
	spinner->last.msr = run->msr;
	spinner->exit_reason = run->exit_reason;
	__atomic_add_fetch(&spinner->exits, 1, __ATOMIC_SEQ_CST);
	answer(spinner->id, spinner->vcpu->access.reply);
	return 1;
}

static void run_spinning(const void *argument)
{
	struct spinner *spinner = (struct spinner *)argument;

	for (;;) {
		if (ioctl(spinner->vcpu->fd, KVM_RUN, 0) < 0) {
			if (errno != EINTR) {
				saw("Lost('the spinning vCPU ended with %d')", -errno);
				return;
			}
			if (__atomic_load_n(&spinner->stop, __ATOMIC_SEQ_CST)) {
				saw("stopped");
				return;
			}
		} else if (!answer_spinning(spinner)) {
			saw("Lost('the spinning vCPU ended with %u')", spinner->vcpu->run->exit_reason);
			return;
		}
	}
}

static void kicked(int signal)
{
	(void)signal;
}

/* Let the vCPU go round the access, and wait until it did. */
static void spin(int id, struct access access)
{
	struct sigaction action = { .sa_handler = kicked };
	struct patience patience = patience_of(DEADLINE);
	struct spinner *spinner = &spinners[id];

	access.rip |= LOOP;
	access.rflags |= IF;	/* some emulators take a CPU out of its guest only then */
	set_up(id, access);
	*spinner = (struct spinner){ .id = id, .vcpu = &vm.vcpus[id] };
	spinner->rounds = (__u64 *)(vm.memory + COUNTERS + 8 * id);
	*spinner->rounds = 0;
	sigaction(SIGUSR1, &action, NULL);
	spinner->task = start("", run_spinning, spinner);
	while (!*spinner->rounds && !has_ended(spinner->task, GLANCE) && is_left(&patience))
		;
	saw(*spinner->rounds ? "spinning" : "never");
}

static __u64 exits_of(struct spinner *spinner)
{
	return __atomic_load_n(&spinner->exits, __ATOMIC_SEQ_CST);
}

/* Wait for an exit that is newer than this call: the first may have left the guest before it. */
static void until_exits(int id)
{
	struct patience patience = patience_of(OBEYS_WITHIN * (patient ? LONGER : 1));
	struct spinner *spinner = &spinners[id];
	__u64 enough = exits_of(spinner) + 2;

	while (exits_of(spinner) < enough && !has_ended(spinner->task, GLANCE)) {
		if (!is_left(&patience)) {
			saw("never");
			return;
		}
	}
	saw_msr(spinner->exit_reason, &spinner->last);
}

/* Wait until the loop goes round several times without an exit: those are read outside of it. */
static void until_runs(int id)
{
	struct patience patience = patience_of(OBEYS_WITHIN * (patient ? LONGER : 1));
	struct spinner *spinner = &spinners[id];
	__u64 exits = exits_of(spinner), rounds = *spinner->rounds;

	while (is_left(&patience) && !has_ended(spinner->task, GLANCE)) {
		__u64 now = *spinner->rounds;

		if (exits_of(spinner) != exits) {
			exits = exits_of(spinner);
			rounds = *spinner->rounds;
		} else if (now >= rounds + 4) {
			saw("ran");
			return;
		}
	}
	saw("never");
}

/* End the loop: kick the vCPU until its thread is back. */
static int stop_spinner(struct spinner *spinner)
{
	struct patience patience = patience_of(DEADLINE);

	__atomic_store_n(&spinner->stop, 1, __ATOMIC_SEQ_CST);
	while (!has_ended(spinner->task, GLANCE) && is_left(&patience)) {
		spinner->vcpu->run->immediate_exit = 1;
		pthread_kill(spinner->task->thread, SIGUSR1);
	}
	spinner->vcpu->run->immediate_exit = 0;
	return has_ended(spinner->task, 0);
}

static void stop_spin(int id)
{
	if (!stop_spinner(&spinners[id])) {
		errno = ETIMEDOUT;
		die("a vCPU does not come back from KVM_RUN when kicked");
	}
	spinners[id].vcpu = NULL;
	saw("stopped");
}

static void stop_spinners(void)
{
	for (int id = 0; id < 16; id++)
		if (spinners[id].vcpu)
			stop_spinner(&spinners[id]);
	memset(spinners, 0, sizeof(spinners));
}

/* Release whoever still waits and wait for every thread; a page that is taken away is zeroes. */
static void end_race(void)
{
	if (uffd)
		close(uffd);
	for (int i = 0; i < n_tasks; i++) {
		if (!has_ended(&tasks[i], DEADLINE)) {
			errno = ETIMEDOUT;
			die("a thread does not come back from the kernel");
		}
		pthread_join(tasks[i].thread, NULL);
		close(tasks[i].ended);
	}
	n_tasks = 0;
}

/*
 * What a script may need beside KVM itself, found by doing it: NULL where it is there, else why
 * not. What makes a VM does so before the script's own.
 */
static const char *lacks_userfaultfd(void)
{
	int fd = try_userfaultfd();

	if (fd < 0)
		return "userfaultfd for the kernel's own faults: run as root";
	close(fd);
	return NULL;
}

/* Only /proc/self/task/TID/syscall tells that a thread is blocked. */
static const char *lacks_task_syscall(void)
{
	int fd = open("/proc/self/syscall", O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return "/proc/self/task/*/syscall cannot be read";
	close(fd);
	return NULL;
}

static const char *lacks_irqchip(void)
{
	const char *why = NULL;

	open_vm();
	if (make_irqchip() < 0)
		why = "no in-kernel irqchip";
	drop_vm();
	return why;
}

static const char *lacks_vcpus(void)
{
	const char *why = NULL;

	open_vm();
	if (add_vcpu(0) < 0 || add_vcpu(1) < 0)
		why = "a second vCPU cannot be made";
	drop_vm();
	return why;
}

/* Without the parameter the prefix is an undefined instruction. */
static const char *lacks_force_emulation_prefix(void)
{
	const char *why = NULL;

	open_vm();
	need_vcpu(0);
	do_access(0, (struct access){ .rip = RDMSR | PREFIXED, .rcx = 0x10 });	/* the TSC */
	if (strncmp(seen, "returned(", 9))
		why = "kvm.force_emulation_prefix is 0: load kvm with force_emulation_prefix=1";
	seen[0] = 0;
	drop_vm();
	return why;
}
