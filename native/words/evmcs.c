/*
 * An enlightened VMCS: what a guest of Hyper-V has in a VMCS's place (Top-Level Functional
 * Specification, nested VMX). It is a structure in L1's memory, which a page that L1 shares with
 * its hypervisor points to, and a word in it says which of its fields are as at the last entry.
 */

enum {
	EVMCS_SIZE = 0x400, EVMCS_HOST_RIP = 80, EVMCS_PIN = 92, EVMCS_EXIT = 96,
	EVMCS_TSC_OFFSET = 400,
	EVMCS_ERROR = 688, EVMCS_CPU = 788, EVMCS_ENTRY = 796, EVMCS_CLEAN = 824, EVMCS_USES = 836,
	CLEAN_BITMAP = 1 << 1, CLEAN_CONTROLS = 7 << 2,
};

/*
 * Fields that follow one another there, the next one's number 2 more: how many, where, their size.
 */
static const struct {
	__u16 first, count, at, size;
} evmcs_fields[] = {
	{ 0x0c00, 7, 8, 2 }, { 0x2c00, 2, 24, 8 }, { 0x6c00, 3, 40, 8 }, { 0x6c10, 2, 64, 8 },
	{ 0x6c16, 1, EVMCS_HOST_RIP, 8 }, { 0x4c00, 1, 88, 4 }, { 0x4000, 1, EVMCS_PIN, 4 },
	{ 0x400c, 1, EVMCS_EXIT, 4 }, { 0x2004, 1, 120, 8 }, { 0x0800, 8, 128, 2 },
	{ 0x4800, 10, 144, 4 }, { 0x4814, 8, 184, 4 }, { 0x6806, 10, 216, 8 },
	{ 0x2006, 3, 320, 8 },
	{ 0x4006, 3, 376, 4 }, { 0x400e, 2, 388, 4 }, { 0x4014, 1, 396, 4 },
	{ 0x2010, 1, EVMCS_TSC_OFFSET, 8 }, { 0x2800, 4, 416, 8 }, { 0x6822, 3, 480, 8 },
	{ 0x4826, 1, 504, 4 }, { 0x482a, 1, 508, 4 }, { 0x6000, 4, 512, 8 }, { 0x6800, 3, 544, 8 },
	{ 0x681a, 1, 568, 8 }, { 0x6c06, 5, 576, 8 }, { 0x6c14, 1, 616, 8 }, { 0x681c, 1, 768, 8 },
	{ 0x6820, 1, 776, 8 }, { 0x4824, 1, 784, 4 }, { 0x4002, 1, EVMCS_CPU, 4 },
	{ 0x4004, 1, 792, 4 }, { 0x4012, 1, EVMCS_ENTRY, 4 }, { 0x4016, 3, 800, 4 },
	{ 0x681e, 1, 816, 8 }, { 0x2808, 1, 904, 8 }, { 0x2c04, 1, 976, 8 },
};

static void put_evmcs_field(__u8 *evmcs, const struct field *field)
{
	for (size_t i = 0; i < sizeof(evmcs_fields) / sizeof(evmcs_fields[0]); i++) {
		__u32 number = ((__u32)field->field - evmcs_fields[i].first) / 2;

		if (field->field >= evmcs_fields[i].first && number < evmcs_fields[i].count)
			put(evmcs + evmcs_fields[i].at + evmcs_fields[i].size * number,
			    field->value, evmcs_fields[i].size);
	}
}

/* Without this KVM takes a bitmap for changed, whatever L1 says of it. */
static int has_same_controls(const __u8 *evmcs, const __u8 *before)
{
	return !memcmp(evmcs + EVMCS_PIN, before + EVMCS_PIN, 8) &&	/* and the exit's */
	       !memcmp(evmcs + EVMCS_TSC_OFFSET, before + EVMCS_TSC_OFFSET, 8) &&
	       !memcmp(evmcs + EVMCS_CPU, before + EVMCS_CPU, 4);
}

/*
 * The stub copies the structure: KVM writes it too, of a vCPU that was restored even before L1
 * runs. Returns where L1 starts: its first entry is another than those after it.
 */
static __u64 write_evmcs(int id, const struct l2 *l2)
{
	__u8 evmcs[EVMCS_SIZE] = { 1 }, *is_entered = l1_memory(id, ASSIST + ENLIGHTEN);
	__u64 start = *is_entered ? L1_EVMCS_AGAIN : L1_EVMCS;
	const struct field *field = l1_memory(id, FIELDS);
	int clean = l2->clean ? CLEAN_BITMAP : 0;

	write_vmcs(id, l2);
	for (; field->field; field++)
		put_evmcs_field(evmcs, field);
	put(evmcs + EVMCS_HOST_RIP, L1_EVMCS_EXIT, 8);
	evmcs[EVMCS_EXIT + 1] &= ~(1 << 4);	/* PERF_GLOBAL_CTRL, which another bit of CPUID */
	evmcs[EVMCS_ENTRY + 1] &= ~(1 << 5);	/* would offer */
	if (has_same_controls(evmcs, l1_memory(id, EVMCS)))
		clean |= CLEAN_CONTROLS;
	put(evmcs + EVMCS_CLEAN, clean, 4);
	put(evmcs + EVMCS_USES, 1 << 1, 4);	/* L1 says what it has changed of the bitmap */
	memcpy(l1_memory(id, FIELDS), evmcs, sizeof(evmcs));
	*is_entered = 1;
	return start;
}

static void write_l1_evmcs(void)
{
	__u8 enter[] = {
		0xf3, 0x0f, 0xc7, 0x77, 8,	/* vmxon 8(%rdi): fails from the second time on */
		0x48, 0x81, 0xc7, 0, 8, 0, 0,	/* add $(EVMCS - REGIONS), %rdi */
		0xb9, 128, 0, 0, 0,		/* mov $(EVMCS_SIZE / 8), %ecx */
		0xf3, 0x48, 0xa5,		/* rep movsq: from %rsi */
		0x0f, 0x01, 0xc2,	/* vmlaunch, or vmresume: goes on here if it fails */
		0x8b, 0x84, 0x24, 0xb0, 3, 0, 0,	/* mov its EVMCS_ERROR, %eax */
		0x48, 0x89, 0x44, 0x24, 24,	/* mov %rax, 24(%rsp): got.reason */
		0xe6, L1_FAILED_PORT, 0xeb, -4,	/* out %al, $port, for ever */
	};
	static const __u8 left[] = {
		0x48, 0x89, 0x04, 0x24,		/* mov %rax, (%rsp) */
		0x48, 0x89, 0x4c, 0x24, 8,	/* mov %rcx, 8(%rsp) */
		0x48, 0x89, 0x54, 0x24, 16,	/* mov %rdx, 16(%rsp) */
		0x8b, 0x84, 0x24, 0xb4, 3, 0, 0,	/* mov the structure's exit reason, %eax */
		0x48, 0x89, 0x44, 0x24, 24,	/* mov %rax, 24(%rsp) */
		0x48, 0x8b, 0x84, 0x24, 0xd0, 3, 0, 0,	/* mov its exit qualification, %rax */
		0x48, 0x89, 0x44, 0x24, 32,	/* mov %rax, 32(%rsp) */
		0x48, 0x8b, 0x84, 0x24, 0x30, 4, 0, 0,	/* mov its guest RIP, %rax */
		0x48, 0x89, 0x44, 0x24, 40,	/* mov %rax, 40(%rsp) */
		0xe6, L1_PORT, 0xeb, -4,	/* out %al, $port, for ever */
	};
	/* KVM takes no VMPTRLD while it has such a structure. */
	static const __u8 off[] = {
		0xf3, 0x0f, 0xc7, 0x77, 8,	/* vmxon 8(%rdi) */
		0x66, 0x0f, 0xc7, 0x77, 16,	/* vmclear 16(%rdi): the structure */
		/* movb $0, (ASSIST + ENLIGHTEN - REGIONS)(%rdi) */
		0xc6, 0x87, 0x28, 0x18, 0, 0, 0,
		0xe9, 0x2a, 0xfe, 0xff, 0xff,	/* jmp to L1_VMX */
	};

	memcpy(vm.memory + L1_EVMCS, enter, sizeof(enter));
	enter[22] = 0xc3;	/* vmresume */
	memcpy(vm.memory + L1_EVMCS_AGAIN, enter, sizeof(enter));
	memcpy(vm.memory + L1_EVMCS_EXIT, left, sizeof(left));
	memcpy(vm.memory + L1_EVMCS_OFF, off, sizeof(off));
}

/* Whether the guest's CPUID offers it such structures, and KVM can take them. */
static int offers_evmcs(int id)
{
	struct kvm_cpuid2 *cpuid = cpuid_of(id);
	int has_version = (find_leaf(cpuid, 0x4000000a, 0)->eax & 0xff) != 0;

	free(cpuid);
	return has_version && ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_HYPERV_ENLIGHTENED_VMCS) > 0;
}

static void need_msr(int id, __u32 index, __u64 data)
{
	if (write_msr(id, index, data) != 1)
		die("KVM_SET_MSRS");
}

/* Have KVM take them from this vCPU, by the page that L1 shares with it. */
static void start_evmcs(int id)
{
	__u16 versions;
	struct kvm_enable_cap cap = {
		.cap = KVM_CAP_HYPERV_ENLIGHTENED_VMCS, .args = { (__u64)&versions },
	};

	write_l1_evmcs();
	if (ioctl(vm.vcpus[id].fd, KVM_ENABLE_CAP, &cap) < 0)
		die("KVM_ENABLE_CAP");
	memset(l1_memory(id, ASSIST), 0, PAGE);
	put(l1_memory(id, ASSIST + CURRENT_VMCS), l1_area(id) + EVMCS, 8);
	need_msr(id, 0x40000073, (l1_area(id) + ASSIST) | 1);	/* VP_ASSIST_PAGE: it is on */
}
