/*
 * A vCPU as an L1: the memory it has, the stubs that enter L2 and tell what L1 gets of it, and the
 * bitmap of MSRs, which both vendors have. L2 has L1's map, tables and code: in L2 every other word
 * works as it does in L1.
 */

/* The ports of the stubs: L2 was entered, L1 got an exit of it, L1 could not enter it at all. */
enum { L2_PORT = 0xd8, L1_PORT, L1_FAILED_PORT };

/* Where the stubs are, and which memory a vCPU has as an L1: what lies where in it. */
enum {
	L1_SVM = 0x12000, L1_VMX = 0x12040, L1_VMX_EXIT = 0x120a0, L2_START = 0x120e0,
	L2_VMMCALL = 0x120f0, L2_VMCALL = 0x12100,
	L1_EVMCS = 0x12140, L1_EVMCS_AGAIN = 0x12180, L1_EVMCS_EXIT = 0x121c0,
	L1_EVMCS_OFF = 0x12200,
	L1_AREAS = 0x60000, L1_SIZE = 0x8000,
	VMCB = 0, VMCS = 0,
	HOST = 0x1000,			/* SVM's host save area, or the VMXON region */
	BITMAP = 0x2000,		/* of MSRs: two pages on SVM, one on VMX */
	FIELDS = 0x4000,	/* VMX: fields and values to write, up to a field 0; or the EVMCS */
	LOAD = 0x5000, STORE = 0x5200, BACK = 0x5400,	/* VMX's lists of MSRs */
	REGIONS = 0x5800,		/* VMX: the addresses of VMCS, VMXON region and EVMCS */
	GOT = 0x5f00,			/* what L1 leaves of an exit: struct got */
	EVMCS = 0x6000,	/* VMX with Hyper-V's interface: the enlightened VMCS, and */
	ASSIST = 0x7000, ENLIGHTEN = 40, CURRENT_VMCS = 48,	/* the page that says where it is */
};

/*
 * On SVM all but RCX and RDX is in the VMCB, and "all" says to the stub to switch what VMRUN does
 * not.
 */
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
	int passes_all;	/* L1 intercepts no MSR that its bitmap has bits for, else all but */
	int n_through;
	const struct through *through;
	int no_bitmap;		/* no MSR (SVM) or every one (VMX) is L1's */
	struct msr_list entry_load, exit_store, exit_load;	/* VMX's */
	int fields;		/* the VMCB or VMCS switches every MSR that it can */
	int clean;	/* L1 says, as Hyper-V does, that its bitmap is as at its last entry */
};

static int is_svm;
static struct {
	int is_in_l2, n_stored;
	int has_evmcs;		/* VMX: L1 is a guest of Hyper-V, and has an enlightened VMCS */
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
		has_svm |= cpuid->entries[i].function == 0x80000001 &&
			   cpuid->entries[i].ecx & 1 << 2;
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
