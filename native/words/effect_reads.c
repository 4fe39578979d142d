/*
 * Instructions that read a counter, the CPU's number or its features.
 */

/* The upper 16 bits of the TSC do not run on while it is read. */
static void give_tsc(struct setting *setting)
{
	give_msr(setting, 0x10, setting->value << 48);
}

static __u64 show_tsc(const struct setting *setting)
{
	return (setting->regs.rdx & 0xffffffff) >> 16;
}

static const struct effect rdtsc_effect = {
	.code = { 0x0f, 0x31 }, .size = 2, .port = DONE_PORT, .mode = &long_mode,
	.gives = give_tsc, .shows = show_tsc,
};

static void give_tsc_aux(struct setting *setting)
{
	give_msr(setting, 0xc0000103, setting->value);
}

static __u64 show_rcx(const struct setting *setting)
{
	return setting->regs.rcx;
}

static const struct effect rdtscp_effect = {
	.code = { 0x0f, 0x01, 0xf9 }, .size = 3, .port = DONE_PORT, .mode = &long_mode,
	.gives = give_tsc_aux, .shows = show_rcx,
};

/* rdpid %rax */
static const struct effect rdpid_effect = {
	.code = { 0xf3, 0x0f, 0xc7, 0xf8 }, .size = 4, .port = DONE_PORT, .mode = &long_mode,
	.gives = give_tsc_aux, .shows = show_rax,
};

/* The MSR of the vCPU's performance counter 0, Intel's or AMD's; 0 if it has none. */
static __u32 counter_of(int id)
{
	static const __u32 counters[] = { 0xc1, 0xc0010004 };

	for (int i = 0; i < 2; i++)
		if (write_msr(id, counters[i], 0x1234) == 1 && msr_of(id, counters[i]) == 0x1234)
			return counters[i];
	return 0;
}

static void give_counter(struct setting *setting)
{
	__u32 counter = counter_of(setting->id);

	give_msr(setting, counter ? counter : 0xc1, setting->value);
}

/* A counter's upper bits are the sign of what the host has set. */
static __u64 show_counter(const struct setting *setting)
{
	return setting->regs.rax & 0x7fffffff;
}

static const struct effect rdpmc_effect = {
	.code = { 0x0f, 0x33 }, .size = 2, .port = DONE_PORT, .mode = &long_mode,
	.gives = give_counter, .shows = show_counter,
};

static void give_rax(struct setting *setting)
{
	setting->regs.rax = setting->value;
}

/* The leaf, if it has the signature of KVM. */
static __u64 show_leaf_of_kvm(const struct setting *setting)
{
	const struct kvm_regs *regs = &setting->regs;
	const __u32 text[] = { regs->rbx, regs->rcx, regs->rdx };

	return memcmp(text, "KVMKVMKVM\0\0", 12) ? regs->rbx : 0x40000000;
}

static const struct effect cpuid_effect = {
	.code = { 0x0f, 0xa2 }, .size = 2, .port = DONE_PORT, .mode = &long_mode,
	.gives = give_rax, .shows = show_leaf_of_kvm,
};
