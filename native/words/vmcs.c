/*
 * L2 as VMX has it: the fields of the VMCS (SDM volume 3, appendix B), and lists of MSRs.
 */

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
		{ EXIT_STORE_ADDR, l1_area(id) + STORE },
		{ EXIT_STORE_COUNT, l2->exit_store.count },
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
		/* ES, CS, SS, DS */
		{ 0xc00, 0x10 }, { 0xc02, 0x08 }, { 0xc04, 0x10 }, { 0xc06, 0x10 },
		{ 0xc08, 0x10 }, { 0xc0a, 0x10 }, { 0xc0c, 0x18 },	/* FS, GS, TR */
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
	const __u64 regions[] = { l1_area(id) + VMCS, l1_area(id) + HOST, l1_area(id) + EVMCS };

	memcpy(l1_memory(id, VMCS), &revision, sizeof(revision));
	memcpy(l1_memory(id, HOST), &revision, sizeof(revision));
	memcpy(l1_memory(id, REGIONS), regions, sizeof(regions));
}
