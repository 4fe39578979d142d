/* The bare C side of scripts/bench: the same guests and the same accesses as the Python side, with
 * straight ioctl(KVM_RUN) loops that check nothing. It shares no code with the shim.
 *
 *   bench SPIN.ELF READ_FOREVER ACCESS.ELF
 *
 * reads one command a line and answers each with one line of numbers, ns before all others:
 *   exits N            N exits of the spinning guest                  -> ns of CPU time, exits
 *   plan FILE          the cases to come (layout: struct plan)        -> 0 cases
 *   cases FIRST N      N cases of the plan, from FIRST, in order      -> ns exits began...
 */
#include <elf.h>
#include <err.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "shim.h" /* for the constants that old headers lack */

#define GDT 0x1000
#define IDT 0x2000
#define PML4 0x3000
#define PDPT 0x4000
#define PD 0x5000
#define TSS 0x40000
#define STACK_TOP 0x51000
#define PROGRAM 0x100000
#define MEMORY_SIZE 0x200000
#define VECTORS 32
#define STEP_SIZE 64
#define DENIED 0x474f4f00
#define REPLY 0x1122334455667788

struct guest {
	int vm, vcpu;
	struct kvm_run *run;
	uint8_t *memory;
	struct kvm_regs start;
};

/* A case: its filter, the answers to its exits in the order of the exits, and its program. The
 * bitmap pointers are offsets into the file. */
struct plan_case {
	struct kvm_msr_filter filter;
	uint64_t n_exits;
	uint8_t rest[]; /* struct mw_reply[n_steps], then n_steps * STEP_SIZE bytes of program */
};

struct plan {
	uint64_t n_cases, n_steps, end_handler, first_case;
};

static int kvm;
static struct plan *plan;

static uint64_t at(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static uint64_t now(void)
{
	return at(CLOCK_MONOTONIC);
}

static int call(int fd, unsigned long number, void *arg, const char *name)
{
	int r = ioctl(fd, number, arg);

	if (r < 0)
		err(2, "bench: %s", name);
	return r;
}
#define CALL(fd, number, arg) call(fd, number, (void *)(uintptr_t)(arg), #number)

static void *map_file(const char *path, size_t *size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	void *at;

	if (fd < 0 || fstat(fd, &st) < 0)
		err(2, "bench: %s", path);
	at = mmap(NULL, st.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	if (at == MAP_FAILED)
		err(2, "bench: mmap %s", path);
	close(fd);
	*size = st.st_size;
	return at;
}

static uint64_t vectors_of(uint8_t *image)
{
	Elf64_Ehdr *elf = (void *)image;
	Elf64_Shdr *sections = (void *)(image + elf->e_shoff), *each;

	for (each = sections; each < sections + elf->e_shnum; each++) {
		Elf64_Sym *sym = (void *)(image + each->sh_offset);
		const char *names = (char *)image + sections[each->sh_link].sh_offset;

		if (each->sh_type != SHT_SYMTAB)
			continue;
		for (; (uint8_t *)sym < image + each->sh_offset + each->sh_size; sym++)
			if (!strcmp(names + sym->st_name, "vectors"))
				return sym->st_value;
	}
	return 0;
}

/* Load the image; identity map 2 MiB; give each of the 32 vectors a gate onto the IST 1 stack. */
static uint64_t load(struct guest *g, const char *path)
{
	size_t size;
	uint8_t *image = map_file(path, &size);
	Elf64_Ehdr *elf = (void *)image;
	Elf64_Phdr *segment = (void *)(image + elf->e_phoff);
	uint64_t vectors = vectors_of(image), *gdt = (void *)(g->memory + GDT);
	int i;

	for (i = 0; i < elf->e_phnum; i++, segment++)
		if (segment->p_type == PT_LOAD)
			memcpy(g->memory + segment->p_vaddr, image + segment->p_offset, segment->p_filesz);
	gdt[1] = 0x00af9b000000ffff;
	gdt[2] = 0x00cf93000000ffff;
	*(uint64_t *)(g->memory + PML4) = PDPT | 3;
	*(uint64_t *)(g->memory + PDPT) = PD | 3;
	*(uint64_t *)(g->memory + PD) = 0x83;
	*(uint64_t *)(g->memory + TSS + 0x24) = STACK_TOP;
	for (i = 0; vectors && i < VECTORS; i++) {
		uint64_t to = vectors + 16 * i, *gate = (uint64_t *)(g->memory + IDT) + 2 * i;

		gate[0] = (to & 0xffff) | 0x8 << 16 | 1ull << 32 | 0x8eull << 40 | (to >> 16) << 48;
	}
	return elf->e_entry;
}

static void enter_long_mode(struct guest *g)
{
	struct kvm_segment code = { .limit = ~0u, .selector = 8, .type = 11, .present = 1,
				    .s = 1, .l = 1, .g = 1 };
	struct kvm_segment data = { .limit = ~0u, .selector = 16, .type = 3, .present = 1,
				    .s = 1, .db = 1, .g = 1 };
	struct kvm_segment task = { .base = TSS, .limit = 0x67, .selector = 24, .type = 11,
				    .present = 1 };
	struct kvm_sregs sregs;

	CALL(g->vcpu, KVM_GET_SREGS, &sregs);
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.ss = sregs.fs = sregs.gs = data;
	sregs.tr = task;
	sregs.gdt = (struct kvm_dtable){ .base = GDT, .limit = 0x1f };
	sregs.idt = (struct kvm_dtable){ .base = IDT, .limit = VECTORS * 16 - 1 };
	sregs.cr0 = 0x80010033;
	sregs.cr3 = PML4;
	sregs.cr4 = 0x220;
	sregs.efer = 0xd01;
	CALL(g->vcpu, KVM_SET_SREGS, &sregs);
}

static struct guest boot(const char *path)
{
	static union {
		uint8_t room[sizeof(struct kvm_cpuid2) + 512 * sizeof(struct kvm_cpuid_entry2)];
		struct kvm_cpuid2 head;
	} cpuid;
	struct guest g;
	struct kvm_userspace_memory_region region = { .memory_size = MEMORY_SIZE };
	int size = CALL(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);

	g.vm = CALL(kvm, KVM_CREATE_VM, 0);
	g.memory = mmap(NULL, MEMORY_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	region.userspace_addr = (uintptr_t)g.memory;
	CALL(g.vm, KVM_SET_USER_MEMORY_REGION, &region);
	g.vcpu = CALL(g.vm, KVM_CREATE_VCPU, 0);
	g.run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, g.vcpu, 0);
	if (g.memory == MAP_FAILED || g.run == MAP_FAILED)
		err(2, "bench: mmap");
	cpuid.head.nent = 512;
	CALL(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid);
	CALL(g.vcpu, KVM_SET_CPUID2, &cpuid);
	enter_long_mode(&g);
	g.start = (struct kvm_regs){ .rip = load(&g, path), .rsp = PROGRAM, .rflags = 2 };
	CALL(g.vcpu, KVM_SET_REGS, &g.start);
	return g;
}

static void enable_exits(struct guest *g, uint64_t mask)
{
	struct kvm_enable_cap cap = { .cap = KVM_CAP_X86_USER_SPACE_MSR, .args = { mask } };

	CALL(g->vm, KVM_ENABLE_CAP, &cap);
}

static struct guest boot_spin(const char *path, uint64_t rip)
{
	struct guest g = boot(path);
	uint64_t none = 0;
	struct kvm_msr_filter filter = {
		.ranges[0] = { .flags = 3, .nmsrs = 1, .base = DENIED, .bitmap = (uint8_t *)&none },
	};

	enable_exits(&g, KVM_MSR_EXIT_REASON_FILTER);
	CALL(g.vm, KVM_X86_SET_MSR_FILTER, &filter);
	g.start.rip = rip;
	g.start.rcx = DENIED;
	CALL(g.vcpu, KVM_SET_REGS, &g.start);
	return g;
}

static void exits(struct guest *g, uint64_t n)
{
	struct kvm_run *run = g->run;
	uint64_t i, began = at(CLOCK_THREAD_CPUTIME_ID);

	for (i = 0; i < n; i++) {
		if (ioctl(g->vcpu, KVM_RUN, 0) < 0 || run->exit_reason != KVM_EXIT_X86_RDMSR)
			err(2, "bench: KVM_RUN: exit reason %u", run->exit_reason);
		run->msr.data = REPLY;
		run->msr.error = 0;
	}
	printf("%lu %lu\n", at(CLOCK_THREAD_CPUTIME_ID) - began, i);
}

static struct plan_case *case_at(uint64_t number)
{
	uint64_t size = sizeof(struct plan_case) + plan->n_steps * (sizeof(struct mw_reply) + STEP_SIZE);

	return (void *)((uint8_t *)plan + plan->first_case + number * size);
}

static void use_plan(const char *path, struct guest *guests)
{
	size_t size;
	uint64_t i;
	int range;

	plan = map_file(path, &size);
	for (i = 0; i < plan->n_cases; i++)
		for (range = 0; range < KVM_MSR_FILTER_MAX_RANGES; range++)
			case_at(i)->filter.ranges[range].bitmap += (uintptr_t)plan;
	for (i = 0; i < 2; i++)
		memcpy(guests[i].memory + PROGRAM + plan->n_steps * STEP_SIZE, &plan->end_handler, 8);
	printf("0 %lu\n", plan->n_cases);
}

static uint64_t one_case(struct guest *g, struct plan_case *c)
{
	struct mw_reply *reply = (void *)c->rest;
	struct kvm_run *run = g->run;
	uint64_t n = 0;

	CALL(g->vm, KVM_X86_SET_MSR_FILTER, &c->filter);
	memcpy(g->memory + PROGRAM, reply + plan->n_steps, plan->n_steps * STEP_SIZE);
	run->s.regs.regs = g->start;
	run->kvm_dirty_regs = KVM_SYNC_X86_REGS;
	for (;;) {
		if (ioctl(g->vcpu, KVM_RUN, 0) < 0)
			err(2, "bench: KVM_RUN");
		if (run->exit_reason != KVM_EXIT_X86_RDMSR && run->exit_reason != KVM_EXIT_X86_WRMSR)
			return n;
		if (n < c->n_exits) {
			run->msr.data = reply[n].data;
			run->msr.error = reply[n].error;
		}
		n++;
	}
}

static void cases(struct guest *guests, uint64_t first, uint64_t n)
{
	uint64_t i, n_exits = 0, *began = calloc(n, sizeof(*began)), start = now(), ns;

	for (i = 0; i < n; i++) {
		began[i] = now();
		n_exits += one_case(&guests[i % 2], case_at((first + i) % plan->n_cases));
	}
	ns = now() - start;
	printf("%lu %lu", ns, n_exits);
	for (i = 0; i < n; i++)
		printf(" %lu", began[i] - start);
	printf("\n");
	free(began);
}

int main(int argc, char **argv)
{
	struct guest spin, access[2];
	char line[4096], path[4096];
	uint64_t first, n;
	int i;

	if (argc != 4)
		errx(2, "usage: bench SPIN.ELF READ_FOREVER ACCESS.ELF");
	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0)
		err(2, "bench: /dev/kvm");
	spin = boot_spin(argv[1], strtoull(argv[2], NULL, 0));
	for (i = 0; i < 2; i++) {
		access[i] = boot(argv[3]);
		enable_exits(&access[i], 7);
	}
	while (fgets(line, sizeof(line), stdin)) {
		if (sscanf(line, "exits %lu", &n) == 1)
			exits(&spin, n);
		else if (sscanf(line, "plan %4095s", path) == 1)
			use_plan(path, access);
		else if (sscanf(line, "cases %lu %lu", &first, &n) == 2 && plan)
			cases(access, first, n);
		else
			errx(2, "bench: not a command: %s", line);
		fflush(stdout);
	}
	return 0;
}
