/*** includes ***/
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
#include <time.h>
#include <unistd.h>

#include <linux/kvm.h>

/*** guest ***/
/*
 * The guest: an access and the port write that tells that it is done, one for
 * each instruction. A stub for each exception writes to the port of its vector.
 */
#define RDMSR		0x10000
#define WRMSR		0x10010
#define PREFIXED	0x20
#define TF		0x100
#define STUBS		0x11000
#define DONE_PORT	0xd0
#define VECTOR_PORT	0x80

static const __u8 rdmsr_code[] = { 0x0f, 0x32, 0xe6, DONE_PORT };
static const __u8 wrmsr_code[] = { 0x0f, 0x30, 0xe6, DONE_PORT };
/* In front of an instruction this has KVM's emulator execute it: force_emulation_prefix=1. */
static const __u8 prefix[] = { 0x0f, 0x0b, 'k', 'v', 'm' };

#define GDT		0x1000
#define IDT		0x2000
#define PML4		0x3000
#define PDPT		0x4000
#define PD		0x5000
#define STACK(vcpu)	(0x20000 + 0x1000 * ((vcpu) + 1))
#define MEMORY		0x200000
#define VECTORS		32

struct reply {
	__u64 data;
	__u8 error;
	__u8 scribble;	/* also overwrite what the kernel must ignore */
};

struct access {
	__u64 rip;	/* RDMSR or WRMSR, | PREFIXED behind the prefix */
	__u64 rcx, rax, rdx;
	__u64 rflags;	/* TF: a #DB comes right after it */
	struct reply reply;
};

struct vcpu {
	int fd;
	struct kvm_run *run;
	struct access access;
};

static int kvm, vm;
static __u8 *memory;
/* What the current step has left so far, as text. */
static char seen[4096];

/*** die ***/
static void die(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(2);
}

/*** need_parameter ***/
/* A parameter of kvm.ko that changes what is seen: the program says nothing unless it is as given. */
static void need_parameter(const char *name, int on)
{
	char path[96];
	FILE *file;
	int is;

	snprintf(path, sizeof(path), "/sys/module/kvm/parameters/%s", name);
	file = fopen(path, "r");
	is = file ? fgetc(file) : 'N';
	if (file)
		fclose(file);
	if ((is != 'N' && is != '0') != on) {
		fprintf(stderr, "%s is %s: load kvm with %s=%d\n", path, on ? "off" : "on", name, on);
		exit(2);
	}
}

/*** saw ***/
static void saw(const char *format, ...) __attribute__((format(printf, 1, 2)));

static void saw(const char *format, ...)
{
	size_t used = strlen(seen);
	va_list args;

	if (used)
		used += snprintf(seen + used, sizeof(seen) - used, ", ");
	va_start(args, format);
	if (used < sizeof(seen))
		vsnprintf(seen + used, sizeof(seen) - used, format, args);
	va_end(args);
}

/*** matches ***/
/* Say whether a step is as expected; ANY stands for one number. */
static int matches(const char *want, const char *have)
{
	if (!strcmp(want, "whatever"))
		return !strstr(have, "Lost(");
	if (!strcmp(want, "unfiltered"))
		return !strstr(have, "Lost(") && !strstr(have, "FILTER") && !strstr(have, "regs(");
	while (*want && *have) {
		if (!strncmp(want, "ANY", 3)) {
			want += 3;
			have += strcspn(have, ",)");
		} else if (*want++ != *have++) {
			return 0;
		}
	}
	return *want == *have;
}

/*** expect ***/
/* End a step: print what it left, and at the first step that is wrong stop. */
static void expect(int step, const char *want)
{
	printf("%d: %s\n", step, seen);
	if (!matches(want, seen)) {
		printf("FAIL: step %d: expected %s, saw %s\n", step, want, seen);
		exit(1);
	}
	seen[0] = 0;
}

/*** observe ***/
/* End a step that may leave anything: print it. */
static void observe(int step)
{
	printf("%d: %s\n", step, seen);
	if (strstr(seen, "Lost(")) {
		printf("FAIL: step %d: saw %s\n", step, seen);
		exit(1);
	}
	seen[0] = 0;
}

/*** saw_result ***/
static void saw_result(int result)
{
	static const struct { int number; const char *name; } names[] = {
		{ EPERM, "EPERM" }, { ENOENT, "ENOENT" }, { EINTR, "EINTR" }, { EIO, "EIO" },
		{ E2BIG, "E2BIG" }, { EBADF, "EBADF" }, { ENOMEM, "ENOMEM" }, { EFAULT, "EFAULT" },
		{ EBUSY, "EBUSY" }, { EEXIST, "EEXIST" }, { EINVAL, "EINVAL" }, { ENOTTY, "ENOTTY" },
		{ ENOSYS, "ENOSYS" }, { EOPNOTSUPP, "EOPNOTSUPP" },
	};
	int error = errno;

	if (result >= 0) {
		saw("done");
		return;
	}
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		if (names[i].number == error) {
			saw("rejected(%s)", names[i].name);
			return;
		}
	}
	saw("rejected(%d)", error);
}

/*** open_vm ***/
static void open_vm(void)
{
	struct kvm_userspace_memory_region region = { .memory_size = MEMORY };
	__u64 gdt[] = { 0, 0x00af9b000000ffff, 0x00cf93000000ffff };
	__u64 pml4 = PDPT | 3, pdpt = PD | 3, pd = 0x83;

	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0)
		die("/dev/kvm");
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	if (vm < 0)
		die("KVM_CREATE_VM");
	memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		die("mmap");
	region.userspace_addr = (unsigned long)memory;
	if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) < 0)
		die("KVM_SET_USER_MEMORY_REGION");

	memcpy(memory + GDT, gdt, sizeof(gdt));
	memcpy(memory + PML4, &pml4, sizeof(pml4));
	memcpy(memory + PDPT, &pdpt, sizeof(pdpt));
	memcpy(memory + PD, &pd, sizeof(pd));
	memcpy(memory + RDMSR, rdmsr_code, sizeof(rdmsr_code));
	memcpy(memory + WRMSR, wrmsr_code, sizeof(wrmsr_code));
	memcpy(memory + (RDMSR | PREFIXED) - sizeof(prefix), prefix, sizeof(prefix));
	memcpy(memory + (RDMSR | PREFIXED), rdmsr_code, sizeof(rdmsr_code));
	memcpy(memory + (WRMSR | PREFIXED) - sizeof(prefix), prefix, sizeof(prefix));
	memcpy(memory + (WRMSR | PREFIXED), wrmsr_code, sizeof(wrmsr_code));
	for (unsigned int i = 0; i < VECTORS; i++) {
		__u32 stub = STUBS + 16 * i;
		__u16 gate[] = { stub & 0xffff, 8, 0x8e00, stub >> 16, 0, 0, 0, 0 };
		/* out %al, $port */
		__u8 code[] = { 0xe6, VECTOR_PORT + i };

		memcpy(memory + IDT + 16 * i, gate, sizeof(gate));
		memcpy(memory + stub, code, sizeof(code));
	}
}

/*** long_mode ***/
static struct kvm_segment segment(int selector, int type, int l)
{
	return (struct kvm_segment){
		.limit = 0xffffffff, .selector = selector, .type = type,
		.present = 1, .s = 1, .l = l, .db = !l, .g = 1,
	};
}

static void long_mode(int fd)
{
	struct kvm_sregs sregs;

	if (ioctl(fd, KVM_GET_SREGS, &sregs) < 0)
		die("KVM_GET_SREGS");
	sregs.cs = segment(0x08, 11, 1);
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = segment(0x10, 3, 0);
	sregs.gdt.base = GDT;
	sregs.gdt.limit = 0x17;
	sregs.idt.base = IDT;
	sregs.idt.limit = 16 * VECTORS - 1;
	sregs.cr3 = PML4;
	sregs.cr4 = 0x220;	/* PAE, OSFXSR */
	sregs.cr0 = 0x80010033;	/* PG, WP, NE, ET, MP, PE */
	sregs.efer = 0xd01;	/* NX, LMA, LME, SCE */
	if (ioctl(fd, KVM_SET_SREGS, &sregs) < 0)
		die("KVM_SET_SREGS");
}

/*** set_cpuid ***/
static void set_cpuid(int fd)
{
	enum { ENTRIES = 512 };
	struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + ENTRIES * sizeof(cpuid->entries[0]));

	if (!cpuid)
		die("calloc");
	cpuid->nent = ENTRIES;
	if (ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid) < 0)
		die("KVM_GET_SUPPORTED_CPUID");
	if (ioctl(fd, KVM_SET_CPUID2, cpuid) < 0)
		die("KVM_SET_CPUID2");
	free(cpuid);
}

/*** add_vcpu ***/
/* Create a vCPU in 64-bit mode, CPL0; negative (and errno) if the kernel refuses. */
static int add_vcpu(int id)
{
	struct kvm_mp_state runnable = { .mp_state = KVM_MP_STATE_RUNNABLE };
	int fd = ioctl(vm, KVM_CREATE_VCPU, id);
	int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);

	if (fd < 0)
		return -1;
	vcpus[id].fd = fd;
	vcpus[id].run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (vcpus[id].run == MAP_FAILED)
		die("mmap of kvm_run");
	set_cpuid(fd);
	long_mode(fd);
	/* Behind an in-kernel APIC all but the first would wait for a SIPI. */
	if (ioctl(fd, KVM_SET_MP_STATE, &runnable) < 0)
		die("KVM_SET_MP_STATE");
	return 0;
}

/*** need_vcpu ***/
static void need_vcpu(int id)
{
	if (add_vcpu(id) < 0)
		die("KVM_CREATE_VCPU");
}

/*** get_kvm_regs ***/
static struct kvm_regs get_kvm_regs(struct vcpu *vcpu)
{
	struct kvm_regs regs;

	if (ioctl(vcpu->fd, KVM_GET_REGS, &regs) < 0)
		die("KVM_GET_REGS");
	return regs;
}

/*** saw_regs ***/
static void saw_regs(struct vcpu *vcpu, struct kvm_regs regs)
{
	saw("regs(%d, rax=%#llx, rcx=%#llx, rdx=%#llx)", (int)(regs.rip - vcpu->access.rip),
	    regs.rax, regs.rcx, regs.rdx);
}

/*** saw_msr_exit ***/
static void saw_msr_exit(struct kvm_run *run)
{
	static const char * const names[] = {
		"0", "INVAL", "UNKNOWN", "INVAL|UNKNOWN",
		"FILTER", "INVAL|FILTER", "UNKNOWN|FILTER", "INVAL|UNKNOWN|FILTER",
	};
	int is_write = run->exit_reason == KVM_EXIT_X86_WRMSR;
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

/*** saw_fault ***/
/* The exception's frame is on the stack, an error code below it for some. */
static void saw_fault(struct vcpu *vcpu, struct kvm_regs regs, int vector)
{
	int has_code = vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 ||
		       vector == 21 || vector == 29 || vector == 30;
	__u64 *frame = (__u64 *)(memory + regs.rsp);
	__u64 code = has_code ? frame[0] : 0;
	int skew = frame[has_code] - vcpu->access.rip;
	char text[160];
	int used = snprintf(text, sizeof(text), "%#x", vector);

	if (code)
		used += snprintf(text + used, sizeof(text) - used, ", error_code=%#llx", code);
	if (skew)
		used += snprintf(text + used, sizeof(text) - used, ", skew=%d", skew);
	if (regs.rax != vcpu->access.rax || regs.rdx != vcpu->access.rdx)
		used += snprintf(text + used, sizeof(text) - used, ", registers=(%#llx, %#llx)",
				 regs.rax, regs.rdx);
	if (strcmp(text, "0xd"))
		saw("Fault(%s)", text);
	else
		saw("gp");
}

/*** saw_outcome ***/
static void saw_outcome(struct vcpu *vcpu, int port)
{
	struct kvm_regs regs = get_kvm_regs(vcpu);
	__u64 high = (regs.rdx & ~0xffffffffull) | regs.rax >> 32;
	__u64 value = regs.rdx << 32 | (regs.rax & 0xffffffff);
	int is_read = (vcpu->access.rip & ~PREFIXED) == RDMSR;

	if (port != DONE_PORT)
		saw_fault(vcpu, regs, port - VECTOR_PORT);
	else if (is_read && high)
		saw("returned(%#llx, high=%#llx)", value, high);
	else if (is_read)
		saw("returned(%#llx)", value);
	else if (regs.rax != vcpu->access.rax || regs.rdx != vcpu->access.rdx)
		saw("Wrote((%#llx, %#llx))", regs.rax, regs.rdx);
	else
		saw("wrote");
}

/*** run_vcpu ***/
/* One KVM_RUN: returns whether it ended with an MSR exit. */
static int run_vcpu(struct vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;

	if (ioctl(vcpu->fd, KVM_RUN, 0) < 0) {
		/* kvm_run is stale now */
		if (errno == EINTR)
			saw("interrupted");
		else
			saw("Lost(KVM_RUN: %s)", strerror(errno));
		return 0;
	}
	if (run->exit_reason == KVM_EXIT_X86_RDMSR || run->exit_reason == KVM_EXIT_X86_WRMSR) {
		saw_msr_exit(run);
		return 1;
	}
	if (run->exit_reason == KVM_EXIT_IO)
		saw_outcome(vcpu, run->io.port);
	else
		saw("Lost(exit reason %u)", run->exit_reason);
	return 0;
}

/*** answer ***/
/* Write userspace's answer to an MSR exit; the next KVM_RUN delivers it. */
static void answer(int id, struct reply reply)
{
	struct kvm_run *run = vcpus[id].run;

	run->msr.data = reply.data;
	run->msr.error = reply.error;
	if (reply.scribble) {
		memset(run->msr.pad, 0xa5, sizeof(run->msr.pad));
		run->msr.reason = run->msr.index = 0xa5a5a5a5;
	}
}

/*** begin ***/
/* Run the vCPU into the access, up to its exit or, if it has none, its end. */
static int begin(int id, struct access access)
{
	struct kvm_regs regs = {
		.rip = access.rip & PREFIXED ? access.rip - sizeof(prefix) : access.rip,
		.rcx = access.rcx, .rax = access.rax, .rdx = access.rdx,
		.rsp = STACK(id), .rflags = access.rflags | 2,
	};

	vcpus[id].access = access;
	if (ioctl(vcpus[id].fd, KVM_SET_REGS, &regs) < 0)
		die("KVM_SET_REGS");
	return run_vcpu(&vcpus[id]);
}

/*** do_access ***/
/* The whole access, every exit answered with its reply. */
static void do_access(int id, struct access access)
{
	struct vcpu *vcpu = &vcpus[id];
	int exits = 0, more = begin(id, access);

	while (more) {
		struct kvm_regs regs = get_kvm_regs(vcpu);

		if (regs.rip != access.rip || regs.rcx != access.rcx ||
		    regs.rax != access.rax || regs.rdx != access.rdx)
			saw_regs(vcpu, regs);
		if (++exits > 16) {
			saw("Lost(more exits than accesses)");
			return;
		}
		answer(id, access.reply);
		more = run_vcpu(vcpu);
	}
}

/*** get_regs ***/
static void get_regs(int id)
{
	saw_regs(&vcpus[id], get_kvm_regs(&vcpus[id]));
}

/*** set_regs ***/
static void set_regs(int id, struct kvm_regs regs)
{
	if (ioctl(vcpus[id].fd, KVM_SET_REGS, &regs) < 0)
		die("KVM_SET_REGS");
	saw("done");
}

/*** sync_regs ***/
static void sync_regs(int id, struct kvm_regs regs)
{
	vcpus[id].run->s.regs.regs = regs;
	vcpus[id].run->kvm_dirty_regs = KVM_SYNC_X86_REGS;
	saw("done");
}

/*** complete_by_immediate_exit ***/
/* Re-enter only to complete the access. */
static void complete_by_immediate_exit(int id)
{
	vcpus[id].run->immediate_exit = 1;
	run_vcpu(&vcpus[id]);
	vcpus[id].run->immediate_exit = 0;
}

/*** complete_by_signal ***/
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
	if (ioctl(vcpus[id].fd, KVM_SET_SIGNAL_MASK, none) < 0)
		die("KVM_SET_SIGNAL_MASK");
	raise(SIGUSR2);
	run_vcpu(&vcpus[id]);
	sigtimedwait(&usr2, NULL, &now);
	if (ioctl(vcpus[id].fd, KVM_SET_SIGNAL_MASK, NULL) < 0)
		die("KVM_SET_SIGNAL_MASK");
	sigprocmask(SIG_UNBLOCK, &usr2, NULL);
	free(none);
}

/*** finish ***/
/* Run the vCPU on to the end of its access. */
static void finish(int id)
{
	run_vcpu(&vcpus[id]);
}

/*** enable_cap ***/
static void enable_cap(int fd, struct kvm_enable_cap cap)
{
	saw_result(ioctl(fd, KVM_ENABLE_CAP, &cap));
}

/*** check_extension ***/
static void check_extension(int fd, int cap)
{
	int result = ioctl(fd, KVM_CHECK_EXTENSION, cap);

	if (result < 0)
		saw_result(result);
	else
		saw("got(%#x)", result);
}

/*** set_filter ***/
static void set_filter(int fd, unsigned long number, const void *argp)
{
	saw_result(ioctl(fd, number, argp));
}

/*** at_edge ***/
/* Return a copy of the bitmap whose last byte is the last before an unmapped page. */
static __u8 *at_edge(const __u8 *bits, size_t size)
{
	__u8 *pages = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (pages == MAP_FAILED || mprotect(pages + 4096, 4096, PROT_NONE) < 0)
		die("mmap");
	return memcpy(pages + 4096 - size, bits, size);
}

/*** unmapped ***/
static void *unmapped(void)
{
	void *page = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (page == MAP_FAILED)
		die("mmap");
	return page;
}

/*** scribble ***/
static void scribble(__u8 *bitmap, size_t size)
{
	while (size--)
		bitmap[size] ^= 0xff;
}

/*** one_msr ***/
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

/*** get_msr ***/
static void get_msr(int id, __u32 index)
{
	struct kvm_msrs *msrs = one_msr(index, 0);
	int count = ioctl(vcpus[id].fd, KVM_GET_MSRS, msrs);

	if (count < 0)
		saw_result(count);
	else if (count)
		saw("got(%#llx)", msrs->entries[0].data);
	else
		saw("refused");
	free(msrs);
}

/*** set_msr ***/
static void set_msr(int id, __u32 index, __u64 data)
{
	struct kvm_msrs *msrs = one_msr(index, data);
	int count = ioctl(vcpus[id].fd, KVM_SET_MSRS, msrs);

	if (count)
		saw_result(count);
	else
		saw("refused");
	free(msrs);
}

/*** create_irqchip ***/
static void create_irqchip(void)
{
	/* Without CONFIG_KVM_IOAPIC there are only the local APICs, which KVM_CAP_SPLIT_IRQCHIP makes. */
	struct kvm_enable_cap split = { .cap = KVM_CAP_SPLIT_IRQCHIP, .args = { 24 } };
	int result = ioctl(vm, KVM_CREATE_IRQCHIP, 0);

	if (result < 0 && errno == ENOTTY)
		result = ioctl(vm, KVM_ENABLE_CAP, &split);
	saw_result(result);
}

/*** create_vcpu ***/
static void create_vcpu(int id)
{
	saw_result(add_vcpu(id));
}
