/*
 * Actions of the host: completions, registers, capabilities, CPUID, MSRs, vCPUs; and sweeps.
 */

static void complete_of(struct cursor *tape)
{
	int id = used_vcpu(tape), has_reply = u8(tape);
	struct reply reply = reply_of(tape);

	if (has_reply)
		answer(id, reply);
	switch (below(tape, 4)) {
	case 0: complete_by_immediate_exit(id); break;
	case 1: complete_by_signal(id); break;
	case 3: complete_by_debugger(id); break;
	default: finish(id);
	}
}

static void set_regs_of(struct cursor *tape)
{
	int id = used_vcpu(tape), flags = u8(tape);
	struct kvm_regs regs = read_regs(id);
	__u64 rax = u64(tape), rdx = u64(tape), rcx = u64(tape);

	regs.rax = flags & 1 ? rax : regs.rax;
	regs.rdx = flags & 2 ? rdx : regs.rdx;
	regs.rcx = flags & 8 ? rcx : regs.rcx;
	regs.rip += u64(tape);
	if (flags & 4)
		sync_regs(id, regs);
	else
		set_regs(id, regs);
}

static void enable_cap_of(struct cursor *tape)
{
	int fd = fd_of(tape);
	struct kvm_enable_cap cap = { .cap = u32(tape) };

	cap.flags = u32(tape);
	for (int i = 0; i < 4; i++)
		cap.args[i] = u64(tape);
	enable_cap(fd, cap);
}

/* A leaf of 0xffffffff stands for all features at once. */
static void set_cpuid_of(struct cursor *tape)
{
	int id = used_vcpu(tape);
	__u32 leaf = u32(tape);
	__u8 reg = below(tape, 4), bit = below(tape, 32), on = u8(tape);

	if (leaf == ~0u)
		set_cpuid_everything(id, on);
	else
		set_cpuid(id, leaf, reg, bit, on);
}

static void set_cpuid_bits_of(struct cursor *tape)
{
	int id = used_vcpu(tape);
	__u32 leaf = u32(tape), index = u32(tape);
	__u8 reg = below(tape, 4);
	__u32 bits = u32(tape);

	set_cpuid_bits(id, leaf, index, reg, bits, u8(tape));
}

/* An MSR by name: of many at once, or one by itself. */
static void get_msr_of(struct cursor *tape)
{
	int id = used_vcpu(tape);
	__u32 index = u32(tape);

	if (u8(tape))
		get_msr_by_one_reg(id, index);
	else
		get_msr(id, index);
}

static void set_msr_of(struct cursor *tape)
{
	int id = used_vcpu(tape);
	__u32 index = u32(tape);
	__u64 value = u64(tape);

	if (u8(tape))
		set_msr_by_one_reg(id, index, value);
	else
		set_msr(id, index, value);
}

static void create_vcpu_of(struct cursor *tape)
{
	int id = vcpu_of(tape);

	if (u8(tape))
		create_vcpu_without_fd(id);
	else
		create_vcpu(id);
}

static void xen_hvm_config_of(struct cursor *tape)
{
	__u32 msr = u32(tape);
	__u8 pages = u8(tape);

	xen_hvm_config(msr, pages, u32(tape));
}

static void sweep_of(struct cursor *tape)
{
	int id = used_vcpu(tape);
	struct sweep request = { .rip = u8(tape) ? SWEEP_WRMSR : SWEEP_RDMSR };

	request.first = u32(tape);
	request.count = u32(tape);
	request.stride = u32(tape);
	request.value = u64(tape);
	request.reply = u64(tape);
	if (!request.count || request.count > 1 << 24)
		damaged("a sweep of so many MSRs");
	sweep(id, request);
}
