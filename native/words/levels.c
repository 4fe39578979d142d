/*
 * The words for levels: a stub makes the vCPU an L1 that enters L2, and tells what it gets of it. L2
 * has L1's map, tables and code: in L2 every other word works as it does in L1. The control blocks are
 * AMD's (APM volume 2, appendix B) and Intel's (SDM volume 3, appendix B).
 */

/* The ports of the stubs: L2 was entered, L1 got an exit of it, L1 could not enter it at all. */
enum { L2_PORT = 0xd8, L1_PORT, L1_FAILED_PORT };

/* Where the stubs are, and which memory a vCPU has as an L1: what lies where in it. */
enum {
	L1_SVM = 0x12000, L1_VMX = 0x12040, L1_VMX_EXIT = 0x120a0, L2_START = 0x120e0,
	L2_VMMCALL = 0x120f0, L2_VMCALL = 0x12100,
	L1_AREAS = 0x60000, L1_SIZE = 0x8000,
	VMCB = 0, VMCS = 0,
	HOST = 0x1000,			/* SVM's host save area, or the VMXON region */
	BITMAP = 0x2000,		/* of MSRs: two pages on SVM, one on VMX */
	FIELDS = 0x4000,		/* VMX: fields and values to write, up to a field 0 */
	LOAD = 0x5000, STORE = 0x5200, BACK = 0x5400,	/* VMX's lists of MSRs */
	REGIONS = 0x5800,		/* VMX: the addresses of VMCS and VMXON region */
	GOT = 0x5f00,			/* what L1 leaves of an exit: struct got */
};

/* On SVM all but RCX and RDX is in the VMCB, and "all" says to the stub to switch what VMRUN does not. */
struct got {
	__u64 rax, rcx, rdx, reason, info, rip, all;
};

enum { READS = 1, WRITES = 2, MAX_LIST = 32 };

/* An MSR that L1 lets L2 reach. */
struct through {
	__u32 index, how;
};

/* One entry of a list, as VMX has it. */
struct listed {
	__u32 index, zero;
	__u64 value;
};

struct msr_list {
	int count;
	const struct listed *msrs;
};

/* An L2 to enter. */
struct l2 {
	int passes_all;		/* L1 intercepts no MSR that its bitmap has bits for, else all but */
	int n_through;
	const struct through *through;
	int no_bitmap;		/* no MSR (SVM) or every one (VMX) is L1's */
	struct msr_list entry_load, exit_store, exit_load;	/* VMX's */
	int fields;		/* the VMCB or VMCS switches every MSR that it can */
	int clean;		/* SVM: L1 says, as Hyper-V does, that its bitmap is as at its last entry */
};

static int is_svm;
static struct {
	int is_in_l2, n_stored;
} levels[16];

static __u64 l1_area(int id)
{
	return L1_AREAS + L1_SIZE * id;
}

static void *l1_memory(int id, int offset)
{
	return vm.memory + l1_area(id) + offset;
}

/* Whose extensions KVM offers a guest: 's' or 'v', 0 for none. */
static int extensions(void)
{
	struct kvm_cpuid2 *cpuid = supported_cpuid();
	int has_svm = 0, has_vmx = 0;

	for (__u32 i = 0; i < cpuid->nent; i++) {
		has_svm |= cpuid->entries[i].function == 0x80000001 && cpuid->entries[i].ecx & 1 << 2;
		has_vmx |= cpuid->entries[i].function == 1 && cpuid->entries[i].ecx & 1 << 5;
	}
	free(cpuid);
	return has_svm ? 's' : has_vmx ? 'v' : 0;
}

static void write_l1_svm(void)
{
	static const __u8 code[] = {
		0xf6, 0x44, 0x24, 0x30, 1,	/* testb $1, 48(%rsp): got.all */
		0x74, 3,			/* jz over it */
		0x0f, 0x01, 0xda,		/* vmload */
		0x0f, 0x01, 0xd8,		/* vmrun */
		0x0f, 0x01, 0xdc,		/* stgi: the exit has cleared GIF */
		0xf6, 0x44, 0x24, 0x30, 1,	/* testb $1, 48(%rsp) */
		0x74, 3,			/* jz over it */
		0x0f, 0x01, 0xdb,		/* vmsave */
		0x48, 0x89, 0x4c, 0x24, 8,	/* mov %rcx, 8(%rsp) */
		0x48, 0x89, 0x54, 0x24, 16,	/* mov %rdx, 16(%rsp) */
		0xe6, L1_PORT, 0xeb, -4,	/* out %al, $port, for ever */
	};
	static const __u8 call[] = { 0x0f, 0x01, 0xd9, 0xe6, DONE_PORT };	/* vmmcall */

	memcpy(vm.memory + L1_SVM, code, sizeof(code));
	memcpy(vm.memory + L2_VMMCALL, call, sizeof(call));
}

static void write_l1_vmx(void)
{
	static const __u8 enter[] = {
		0xf3, 0x0f, 0xc7, 0x77, 8,	/* vmxon 8(%rdi): fails from the second time on */
		0x66, 0x0f, 0xc7, 0x37,		/* vmclear (%rdi) */
		0x76, 28,			/* jbe to the end: it failed */
		0x0f, 0xc7, 0x37,		/* vmptrld (%rdi) */
		0x76, 23,			/* jbe to the end */
		0x48, 0x8b, 0x06,		/* mov (%rsi), %rax: the field */
		0x48, 0x85, 0xc0,		/* test %rax, %rax */
		0x74, 12,			/* jz to the launch */
		0x0f, 0x79, 0x46, 8,		/* vmwrite 8(%rsi), %rax */
		0x76, 9,			/* jbe to the end */
		0x48, 0x83, 0xc6, 16,		/* add $16, %rsi */
		0xeb, -20,			/* jmp to the next field */
		0x0f, 0x01, 0xc2,		/* vmlaunch: goes on here if it fails */
		0xb9, 0x00, 0x44, 0, 0,		/* mov $VM_INSTRUCTION_ERROR, %ecx */
		0x0f, 0x78, 0x4c, 0x24, 24,	/* vmread %rcx, 24(%rsp): got.reason */
		0xe6, L1_FAILED_PORT, 0xeb, -4,	/* out %al, $port, for ever */
	};
	static const __u8 left[] = {
		0x48, 0x89, 0x04, 0x24,		/* mov %rax, (%rsp) */
		0x48, 0x89, 0x4c, 0x24, 8,	/* mov %rcx, 8(%rsp) */
		0x48, 0x89, 0x54, 0x24, 16,	/* mov %rdx, 16(%rsp) */
		0xb8, 0x02, 0x44, 0, 0,		/* mov $VM_EXIT_REASON, %eax */
		0x0f, 0x78, 0x44, 0x24, 24,	/* vmread %rax, 24(%rsp) */
		0xb8, 0x00, 0x64, 0, 0,		/* mov $EXIT_QUALIFICATION, %eax */
		0x0f, 0x78, 0x44, 0x24, 32,	/* vmread %rax, 32(%rsp) */
		0xb8, 0x1e, 0x68, 0, 0,		/* mov $GUEST_RIP, %eax */
		0x0f, 0x78, 0x44, 0x24, 40,	/* vmread %rax, 40(%rsp) */
		0xe6, L1_PORT, 0xeb, -4,	/* out %al, $port, for ever */
	};
	static const __u8 call[] = { 0x0f, 0x01, 0xc1, 0xe6, DONE_PORT };	/* vmcall */

	memcpy(vm.memory + L1_VMX, enter, sizeof(enter));
	memcpy(vm.memory + L1_VMX_EXIT, left, sizeof(left));
	memcpy(vm.memory + L2_VMCALL, call, sizeof(call));
}

/* Have the bitmap, of ones, let one MSR through; MSRs that it has no bit for stay L1's. */
static void let_through(__u8 *bitmap, struct through msr)
{
	static const __u32 spans[] = { 0, 0xc0000000, 0xc0010000 };	/* VMX has the first two */

	for (int span = 0; span < (is_svm ? 3 : 2); span++) {
		__u32 number = msr.index - spans[span];

		for (int is_write = 0; is_write < 2 && number < 0x2000; is_write++) {
			/* SVM has an MSR's two bits side by side, VMX the writes 2 KiB later */
			__u32 bit = is_svm ? span * 0x4000 + 2 * number + is_write :
				    span * 0x2000 + number + is_write * 0x4000;

			if (msr.how & (is_write ? WRITES : READS))
				bitmap[bit / 8] &= ~(1 << bit % 8);
		}
	}
}

static void write_bitmap(int id, const struct l2 *l2)
{
	__u8 *bitmap = l1_memory(id, BITMAP);

	memset(bitmap, l2->passes_all ? 0 : 0xff, 2 * PAGE);
	for (int i = 0; i < l2->n_through; i++)
		let_through(bitmap, l2->through[i]);
}

static void put(__u8 *at, __u64 value, size_t size)
{
	memcpy(at, &value, size);
}

static __u64 vmcb_field(int id, int offset)
{
	__u64 value;

	memcpy(&value, l1_memory(id, VMCB + offset), sizeof(value));
	return value;
}

static void put_segment(__u8 *at, __u16 selector, __u16 attributes, __u32 limit, __u64 base)
{
	put(at, selector, 2);
	put(at + 2, attributes, 2);
	put(at + 4, limit, 4);
	put(at + 8, base, 8);
}

static void write_vmcb_segments(__u8 *vmcb)
{
	static const int data[] = { 0x400, 0x420, 0x430, 0x440, 0x450 };	/* ES, SS, DS, FS, GS */

	for (int i = 0; i < 5; i++)
		put_segment(vmcb + data[i], 0x10, 0xc93, 0xffffffff, 0);
	put_segment(vmcb + 0x410, 0x08, 0xa9b, 0xffffffff, 0);		/* CS */
	put_segment(vmcb + 0x460, 0, 0, 0x17, GDT);
	put_segment(vmcb + 0x470, 0, 0x82, 0, 0);			/* LDTR */
	put_segment(vmcb + 0x480, 0, 0, 16 * VECTORS - 1, IDT);
	put_segment(vmcb + 0x490, 0x18, 0x8b, 0x67, 0);			/* TR */
}

static void write_vmcb(int id, const struct l2 *l2)
{
	__u8 *vmcb = l1_memory(id, VMCB);

	memset(vmcb, 0, PAGE);
	/* L1 intercepts shutdown, VMRUN, VMMCALL, and the MSRs that its bitmap says */
	put(vmcb + 0x00c, 1u << 31 | (l2->no_bitmap ? 0 : 1 << 28), 4);
	put(vmcb + 0x010, 1 << 0 | 1 << 1, 4);
	put(vmcb + 0x048, l1_area(id) + BITMAP, 8);
	put(vmcb + 0x058, 1, 4);			/* the ASID: 0 is the host's */
	put(vmcb + 0x0c0, l2->clean ? 1u << 31 : 0, 4);	/* Hyper-V's clean bit, and that it */
	put(vmcb + 0x3e0, l2->clean ? 1 << 1 : 0, 4);	/* says the bitmap of MSRs too */
	write_vmcb_segments(vmcb);
	put(vmcb + 0x4d0, 0x1d01, 8);			/* EFER: SVME, NX, LMA, LME, SCE */
	put(vmcb + 0x548, 0x220, 8);			/* CR4 */
	put(vmcb + 0x550, PML4, 8);			/* CR3 */
	put(vmcb + 0x558, 0x80010033, 8);		/* CR0 */
	put(vmcb + 0x560, 0x400, 8);			/* DR7 */
	put(vmcb + 0x568, 0xffff0ff0, 8);		/* DR6 */
	put(vmcb + 0x570, 2, 8);			/* RFLAGS */
	put(vmcb + 0x578, L2_START, 8);			/* RIP */
	put(vmcb + 0x5d8, STACKS + PAGE * (id + 1), 8);	/* RSP */
	put(vmcb + 0x668, 0x0007040600070406, 8);	/* PAT */
	write_bitmap(id, l2);
	*(struct got *)l1_memory(id, GOT) = (struct got){ .all = l2->fields };
}

/* The fields of a VMCS that are no segment's. */
enum {
	MSR_BITMAP = 0x2004, EXIT_STORE_ADDR = 0x2006, EXIT_LOAD_ADDR = 0x2008,
	ENTRY_LOAD_ADDR = 0x200a, TSC_OFFSET = 0x2010,
	LINK_POINTER = 0x2800, GUEST_DEBUGCTL = 0x2802, GUEST_PAT = 0x2804, GUEST_EFER = 0x2806,
	GUEST_PERF_GLOBAL_CTRL = 0x2808, HOST_PAT = 0x2c00, HOST_EFER = 0x2c02,
	HOST_PERF_GLOBAL_CTRL = 0x2c04,
	PIN_CONTROLS = 0x4000, CPU_CONTROLS = 0x4002, EXCEPTION_BITMAP = 0x4004,
	PAGE_FAULT_MASK = 0x4006, PAGE_FAULT_MATCH = 0x4008, CR3_TARGETS = 0x400a,
	EXIT_CONTROLS = 0x400c, EXIT_STORE_COUNT = 0x400e, EXIT_LOAD_COUNT = 0x4010,
	ENTRY_CONTROLS = 0x4012, ENTRY_LOAD_COUNT = 0x4014, ENTRY_INTERRUPTION = 0x4016,
	ENTRY_ERROR_CODE = 0x4018, ENTRY_INSTRUCTION_LEN = 0x401a,
	GUEST_GDT_LIMIT = 0x4810, GUEST_IDT_LIMIT = 0x4812, GUEST_INTERRUPTIBILITY = 0x4824,
	GUEST_ACTIVITY = 0x4826, GUEST_SYSENTER_CS = 0x482a, HOST_SYSENTER_CS = 0x4c00,
	CR0_MASK = 0x6000, CR4_MASK = 0x6002, CR0_SHADOW = 0x6004, CR4_SHADOW = 0x6006,
	GUEST_CR0 = 0x6800, GUEST_CR3 = 0x6802, GUEST_CR4 = 0x6804, GUEST_GDT = 0x6816,
	GUEST_IDT = 0x6818, GUEST_DR7 = 0x681a, GUEST_RSP = 0x681c, GUEST_RIP = 0x681e,
	GUEST_RFLAGS = 0x6820, GUEST_PENDING_DEBUG = 0x6822, GUEST_SYSENTER_ESP = 0x6824,
	GUEST_SYSENTER_EIP = 0x6826,
	HOST_CR0 = 0x6c00, HOST_CR3 = 0x6c02, HOST_CR4 = 0x6c04, HOST_FS_BASE = 0x6c06,
	HOST_GS_BASE = 0x6c08, HOST_TR_BASE = 0x6c0a, HOST_GDT = 0x6c0c, HOST_IDT = 0x6c0e,
	HOST_SYSENTER_ESP = 0x6c10, HOST_SYSENTER_EIP = 0x6c12, HOST_RSP = 0x6c14,
	HOST_RIP = 0x6c16,
};

struct field {
	__u64 field, value;
};

static __u64 msr_of(int id, __u32 index)
{
	struct kvm_msrs *msrs = one_msr(index, 0);
	int count = ioctl(vm.vcpus[id].fd, KVM_GET_MSRS, msrs);
	__u64 data = count == 1 ? msrs->entries[0].data : 0;

	free(msrs);
	return data;
}

/* What a VMCS's controls must be and, of "wanted", may be; from 0: pin, CPU, exit, entry. */
static __u32 controls(int id, int which, __u32 wanted)
{
	int has_true = msr_of(id, 0x480) >> 55 & 1;	/* IA32_VMX_BASIC */
	__u64 control = msr_of(id, (has_true ? 0x48d : 0x481) + which);

	return (__u32)control | (wanted & control >> 32);
}

static struct field *put_controls(struct field *to, int id, const struct l2 *l2)
{
	/* Load and save DEBUGCTL, PERF_GLOBAL_CTRL, PAT and EFER; 64-bit mode is bit 9 of both. */
	__u32 leave = l2->fields ? 1 << 2 | 1 << 12 | 0xf << 18 : 0;
	__u32 enter = l2->fields ? 1 << 2 | 7 << 13 : 0;
	const struct field fields[] = {
		{ PIN_CONTROLS, controls(id, 0, 0) },
		{ CPU_CONTROLS, controls(id, 1, 0) | (l2->no_bitmap ? 0 : 1 << 28) },
		{ EXIT_CONTROLS, controls(id, 2, leave) | 1 << 9 },
		{ ENTRY_CONTROLS, controls(id, 3, enter) | 1 << 9 },
		{ MSR_BITMAP, l2->no_bitmap ? 0 : l1_area(id) + BITMAP },
		{ ENTRY_LOAD_ADDR, l1_area(id) + LOAD }, { ENTRY_LOAD_COUNT, l2->entry_load.count },
		{ EXIT_STORE_ADDR, l1_area(id) + STORE }, { EXIT_STORE_COUNT, l2->exit_store.count },
		{ EXIT_LOAD_ADDR, l1_area(id) + BACK }, { EXIT_LOAD_COUNT, l2->exit_load.count },
		{ EXCEPTION_BITMAP, 0 }, { PAGE_FAULT_MASK, 0 }, { PAGE_FAULT_MATCH, 0 },
		{ CR3_TARGETS, 0 }, { ENTRY_INTERRUPTION, 0 }, { ENTRY_ERROR_CODE, 0 },
		{ ENTRY_INSTRUCTION_LEN, 0 }, { CR0_MASK, 0 }, { CR4_MASK, 0 },
		{ CR0_SHADOW, 0x80010033 }, { CR4_SHADOW, 0x2220 }, { TSC_OFFSET, 0 },
	};

	memcpy(to, fields, sizeof(fields));
	return to + sizeof(fields) / sizeof(fields[0]);
}

static struct field *put_segments(struct field *to)
{
	static const struct { __u32 selector, limit, rights; } segments[] = {
		{ 0x10, 0xffffffff, 0xc093 }, { 0x08, 0xffffffff, 0xa09b },	/* ES, CS */
		{ 0x10, 0xffffffff, 0xc093 }, { 0x10, 0xffffffff, 0xc093 },	/* SS, DS */
		{ 0x10, 0xffffffff, 0xc093 }, { 0x10, 0xffffffff, 0xc093 },	/* FS, GS */
		{ 0, 0, 0x10000 }, { 0x18, 0x67, 0x8b },	/* LDTR: unusable; TR */
	};

	for (int i = 0; i < 8; i++) {
		*to++ = (struct field){ 0x800 + 2 * i, segments[i].selector };
		*to++ = (struct field){ 0x4800 + 2 * i, segments[i].limit };
		*to++ = (struct field){ 0x4814 + 2 * i, segments[i].rights };
		*to++ = (struct field){ 0x6806 + 2 * i, 0 };	/* the base */
	}
	return to;
}

static struct field *put_guest(struct field *to, int id)
{
	const struct field fields[] = {
		{ GUEST_GDT, GDT }, { GUEST_GDT_LIMIT, 0x17 },
		{ GUEST_IDT, IDT }, { GUEST_IDT_LIMIT, 16 * VECTORS - 1 },
		{ GUEST_INTERRUPTIBILITY, 0 }, { GUEST_ACTIVITY, 0 }, { GUEST_PENDING_DEBUG, 0 },
		{ GUEST_SYSENTER_CS, 0 }, { GUEST_SYSENTER_ESP, 0 }, { GUEST_SYSENTER_EIP, 0 },
		{ LINK_POINTER, ~0ull }, { GUEST_DEBUGCTL, 0 }, { GUEST_PAT, 0x0007040600070406 },
		{ GUEST_EFER, 0xd01 }, { GUEST_PERF_GLOBAL_CTRL, 0 },
		{ GUEST_CR0, 0x80010033 }, { GUEST_CR3, PML4 }, { GUEST_CR4, 0x2220 },
		{ GUEST_DR7, 0x400 }, { GUEST_RSP, STACKS + PAGE * (id + 1) },
		{ GUEST_RIP, L2_START }, { GUEST_RFLAGS, 2 },
	};

	memcpy(to, fields, sizeof(fields));
	return to + sizeof(fields) / sizeof(fields[0]);
}

/* Where an exit takes L1: to its stub, and else as it was. */
static struct field *put_host(struct field *to, int id)
{
	const struct field fields[] = {
		{ 0xc00, 0x10 }, { 0xc02, 0x08 }, { 0xc04, 0x10 }, { 0xc06, 0x10 },	/* ES, CS, SS, DS */
		{ 0xc08, 0x10 }, { 0xc0a, 0x10 }, { 0xc0c, 0x18 },			/* FS, GS, TR */
		{ HOST_PAT, 0x0007040600070406 }, { HOST_EFER, 0xd01 },
		{ HOST_PERF_GLOBAL_CTRL, 0 },
		{ HOST_SYSENTER_CS, 0 }, { HOST_SYSENTER_ESP, 0 }, { HOST_SYSENTER_EIP, 0 },
		{ HOST_FS_BASE, 0 }, { HOST_GS_BASE, 0 }, { HOST_TR_BASE, 0 },
		{ HOST_GDT, GDT }, { HOST_IDT, IDT },
		{ HOST_CR0, 0x80010033 }, { HOST_CR3, PML4 }, { HOST_CR4, 0x2220 },
		{ HOST_RSP, l1_area(id) + GOT }, { HOST_RIP, L1_VMX_EXIT },
		{ 0, 0 },
	};

	memcpy(to, fields, sizeof(fields));
	return to + sizeof(fields) / sizeof(fields[0]);
}

static void write_list(int id, int offset, struct msr_list list)
{
	if (list.count)
		memcpy(l1_memory(id, offset), list.msrs, list.count * sizeof(list.msrs[0]));
}

static void write_vmcs(int id, const struct l2 *l2)
{
	struct field *to = l1_memory(id, FIELDS);

	to = put_controls(to, id, l2);
	to = put_segments(to);
	to = put_guest(to, id);
	put_host(to, id);
	write_list(id, LOAD, l2->entry_load);
	write_list(id, STORE, l2->exit_store);
	write_list(id, BACK, l2->exit_load);
	write_bitmap(id, l2);
	*(struct got *)l1_memory(id, GOT) = (struct got){ 0 };
}

/* The regions start with the revision of a VMCS, and the stub takes their addresses from memory. */
static void write_regions(int id)
{
	__u32 revision = msr_of(id, 0x480) & 0x7fffffff;
	const __u64 regions[] = { l1_area(id) + VMCS, l1_area(id) + HOST };

	memcpy(l1_memory(id, VMCS), &revision, sizeof(revision));
	memcpy(l1_memory(id, HOST), &revision, sizeof(revision));
	memcpy(l1_memory(id, REGIONS), regions, sizeof(regions));
}

/* The same of both vendors; on SVM it is in the VMCB. */
static struct got got_by_l1(int id)
{
	struct got got = *(struct got *)l1_memory(id, GOT);

	if (is_svm) {
		got.reason = vmcb_field(id, 0x070);
		got.info = vmcb_field(id, 0x078);
		got.rip = vmcb_field(id, 0x578);
		got.rax = vmcb_field(id, 0x5f8);
	}
	return got;
}

static const char *name_of_svm_exit(const struct got *got)
{
	switch (got->reason) {
	case 0x7c: return got->info & 1 ? "wrmsr" : "rdmsr";
	case 0x7f: return "shutdown";
	case 0x80: return "entry";	/* VMRUN */
	case 0x81: return "hypercall";
	default: return "other";
	}
}

static const char *name_of_vmx_exit(const struct got *got)
{
	switch (got->reason) {
	case 2: return "shutdown";
	case 18: return "hypercall";
	case 19 ... 27: return "entry";	/* VMCLEAR to VMXON */
	case 31: return "rdmsr";
	case 32: return "wrmsr";
	default: return "other";
	}
}

/* Of an access its registers, and how far from its instruction L2 stopped. */
static int msr_text(int id, const struct got *got, const char *name, char *text, size_t size)
{
	__u64 value = got->rdx << 32 | (got->rax & 0xffffffff);
	int skew = got->rip - vm.vcpus[id].access.rip, used = 0;

	if ((__u32)got->rcx)
		used += snprintf(text + used, size - used, ", index=%#x", (__u32)got->rcx);
	if (!strcmp(name, "wrmsr") && value)
		used += snprintf(text + used, size - used, ", value=%#llx", value);
	if (skew)
		used += snprintf(text + used, size - used, ", skew=%d", skew);
	return used;
}

static void saw_l1_exit(int id, const struct got *got)
{
	const char *name = is_svm ? name_of_svm_exit(got) : name_of_vmx_exit(got);
	const struct listed *stored = l1_memory(id, STORE);
	char text[1024] = "";
	int used = 0, count = levels[id].n_stored;

	if (!strcmp(name, "rdmsr") || !strcmp(name, "wrmsr"))
		used = msr_text(id, got, name, text, sizeof(text));
	for (int i = 0; i < count; i++)
		used += snprintf(text + used, sizeof(text) - used, "%s%#llx%s", i ? ", " :
				 ", stored=(", stored[i].value, i < count - 1 ? "" : ")");
	if (!strcmp(name, "other") && got->reason)
		snprintf(text + used, sizeof(text) - used, ", number=%#llx", got->reason);
	saw("l1_exit(%s%s)", name, text);
}

/* SVM has one number for an entry that fails, VMX marks its reasons. */
static int saw_failed_entry(const struct got *got)
{
	if (is_svm ? got->reason != ~0ull : !(got->reason >> 31 & 1))
		return 0;
	if (!is_svm && (__u16)got->reason == 34 && (__u32)got->info)
		saw("entry_failed(msr_load, entry=%#x)", (__u32)got->info);
	else
		saw("entry_failed(%s)", !is_svm && (__u16)got->reason == 34 ? "msr_load" : "state");
	return 1;
}

/* Say what L1 got, if that is how the guest's run ended. */
static int saw_left(int id)
{
	const struct kvm_run *run = vm.vcpus[id].run;
	int port = run->exit_reason == KVM_EXIT_IO ? run->io.port : 0;
	struct got got = got_by_l1(id);

	if (port == L1_FAILED_PORT && (__u32)got.reason)
		saw("entry_failed(instruction, entry=%#x)", (__u32)got.reason);
	else if (port == L1_FAILED_PORT)
		saw("entry_failed(instruction)");
	else if (run->exit_reason == KVM_EXIT_SHUTDOWN && levels[id].is_in_l2)
		saw("shutdown");
	else if (port != L1_PORT)
		return 0;
	else if (!saw_failed_entry(&got))
		saw_l1_exit(id, &got);
	levels[id].is_in_l2 = 0;
	return 1;
}

static void need_msr(int id, __u32 index, __u64 data)
{
	if (write_msr(id, index, data) != 1)
		die("KVM_SET_MSRS");
}

/* Switch the extensions on, which a vCPU has off until it is an L1. */
static void become_l1(int id)
{
	static const __u8 first[] = { 0xe6, L2_PORT };	/* out %al, $port */
	struct kvm_sregs sregs;

	if (vm.vcpus[id].left)
		return;
	vm.vcpus[id].left = saw_left;
	levels[id].is_in_l2 = levels[id].n_stored = 0;
	is_svm = extensions() == 's';
	memcpy(vm.memory + L2_START, first, sizeof(first));
	sregs = read_sregs(id);
	if (is_svm) {
		write_l1_svm();
		sregs.efer |= 1 << 12;						/* SVME */
		need_msr(id, 0xc0010117, l1_area(id) + HOST);			/* VM_HSAVE_PA */
	} else {
		write_l1_vmx();
		write_regions(id);
		sregs.cr4 |= 1 << 13;						/* VMXE */
		need_msr(id, 0x3a, 5);	/* FEAT_CTL: locked, with VMX outside of SMX */
	}
	write_sregs(id, &sregs);
}

/* Run L1's stub or L2's call to where it ends. */
static void run_level(int id, __u64 rip)
{
	struct kvm_run *run = vm.vcpus[id].run;
	struct kvm_regs regs = {
		.rip = rip, .rsp = l1_area(id) + GOT, .rax = l1_area(id) + VMCB,
		.rdi = l1_area(id) + REGIONS, .rsi = l1_area(id) + FIELDS, .rflags = 2,
	};
	int result;

	write_regs(id, &regs);
	result = enter_guest(id);
	if (result < 0)
		saw("Lost('KVM_RUN: %s')", strerror(errno));
	else if (saw_left(id))
		return;
	else if (run->exit_reason == KVM_EXIT_IO && run->io.port == L2_PORT)
		saw("entered");
	else if (run->exit_reason == KVM_EXIT_IO && run->io.port == DONE_PORT)
		saw("done");
	else
		saw("Lost('exit reason %u')", run->exit_reason);
}

/* L1 enters L2; from L2 that is an exit that L1 gets. */
static void enter_l2(int id, struct l2 l2)
{
	become_l1(id);
	if (!levels[id].is_in_l2) {
		levels[id].is_in_l2 = 1;
		levels[id].n_stored = l2.exit_store.count;
		if (is_svm)
			write_vmcb(id, &l2);
		else
			write_vmcs(id, &l2);
	}
	run_level(id, is_svm ? L1_SVM : L1_VMX);
}

/* L2 calls L1, which ends it; in L1 it is a call that KVM answers. */
static void leave_l2(int id)
{
	become_l1(id);
	run_level(id, is_svm ? L2_VMMCALL : L2_VMCALL);
}

static const char *lacks_nested(void)
{
	return extensions() ? NULL : "guests have neither SVM nor VMX: load kvm_amd or kvm_intel with nested=1";
}

static const char *lacks_nested_svm(void)
{
	return extensions() == 's' ? NULL : "guests have no SVM here";
}

/* KVM takes L1's word for it that its bitmap is as it was: here L1 lies, and MSRs pass that it no
 * longer lets through. */
static const char *lacks_clean_bitmap(void)
{
	const char *why = lacks_nested_svm();

	if (why)
		return why;
	open_vm();
	need_vcpu(0);
	set_cpuid_bits(0, 0x40000001, 0, EAX, 0xffffffff, 0);
	set_cpuid_bits(0, 0x40000001, 0, EAX, 0x31237648, 1);			/* "Hv#1" */
	do_access(0, (struct access){ .rip = WRMSR, .rcx = 0x40000000, .rax = 1 });	/* GUEST_OS_ID */
	enter_l2(0, (struct l2){ .passes_all = 1 });
	leave_l2(0);
	enter_l2(0, (struct l2){ .clean = 1 });
	seen[0] = 0;
	do_access(0, (struct access){ .rip = RDMSR, .rcx = 0xc0000081 });		/* STAR */
	if (strncmp(seen, "returned(", 9))
		why = "KVM does not ask a Hyper-V guest which bitmap of MSRs is clean";
	seen[0] = 0;
	drop_vm();
	return why;
}

static const char *lacks_nested_vmx(void)
{
	return extensions() == 'v' ? NULL : "guests have no VMX here";
}
