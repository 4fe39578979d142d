/*
 * The word for instructions that use MSRs without being RDMSR or WRMSR. The host puts a value into
 * what one works with, the guest executes it, and what it did shows the value. All that was set for
 * it is set back when it has ended.
 */

/* Where the instruction and what it leads to are; a page of memory for each vCPU to work on. */
enum {
	EFFECT = 0x10400,
	LANDED = 0x10440, LANDED_PORT = 0xd3,	/* where SYSCALL and its like jump to */
	AREAS = 0x40000,	/* an XSAVES area ... */
	CONTROL = 0xf00,	/* ... and behind it the FPU's control word */
	MOST_EXITS = 16,	/* after which an instruction comes back for ever */
};

/* All that the host sets for an instruction, and all that is there when it has ended. */
struct setting {
	int id;
	__u64 value;
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct { __u32 index; __u64 old; } msrs[3];
	int n_msrs, is_refused;
};

/* An instruction, how the host gives it a value, and how it finds the value again. */
struct effect {
	__u8 code[8];
	int size;
	int before;	/* bytes of the code in front of the instruction itself */
	int port;	/* where its way ends */
	const struct mode *mode;
	void (*gives)(struct setting *setting);
	__u64 (*shows)(const struct setting *setting);
};

static void give_msr(struct setting *setting, __u32 index, __u64 data)
{
	int number = setting->n_msrs++;

	setting->msrs[number].index = index;
	setting->msrs[number].old = msr_of(setting->id, index);
	if (write_msr(setting->id, index, data) != 1)
		setting->is_refused = 1;
}

static __u64 show_rax(const struct setting *setting)
{
	return setting->regs.rax;
}

/* The selector that the instruction has loaded; that of a return to user code is so much more. */
static __u64 show_cs(const struct setting *setting)
{
	return setting->sregs.cs.selector & 0xfffc;
}

static __u64 show_user_cs(const struct setting *setting)
{
	return show_cs(setting) - 16;
}

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

static void give_syscall(struct setting *setting)
{
	give_msr(setting, 0xc0000081, setting->value << 32);	/* STAR */
	give_msr(setting, 0xc0000082, LANDED);			/* LSTAR */
	give_msr(setting, 0xc0000084, 0);			/* SYSCALL_MASK */
}

static const struct effect syscall_effect = {
	.code = { 0x0f, 0x05 }, .size = 2, .port = LANDED_PORT, .mode = &long_mode,
	.gives = give_syscall, .shows = show_cs,
};

/* It leads to user code, which may write to ports by what R11 becomes: RFLAGS. */
static void give_sysret(struct setting *setting)
{
	give_msr(setting, 0xc0000081, setting->value << 48);	/* STAR */
	setting->regs.rcx = LANDED;
	setting->regs.r11 = 2 | IOPL3;
}

static const struct effect sysretq_effect = {
	.code = { 0x48, 0x0f, 0x07 }, .size = 3, .port = LANDED_PORT, .mode = &long_mode,
	.gives = give_sysret, .shows = show_user_cs,
};

static void give_sysenter(struct setting *setting)
{
	give_msr(setting, 0x174, setting->value);		/* SYSENTER_CS */
	give_msr(setting, 0x175, setting->regs.rsp);		/* SYSENTER_ESP */
	give_msr(setting, 0x176, LANDED);			/* SYSENTER_EIP */
}

static const struct effect sysenter_effect = {
	.code = { 0x0f, 0x34 }, .size = 2, .port = LANDED_PORT, .mode = &protected_mode,
	.gives = give_sysenter, .shows = show_cs,
};

static void give_sysexit(struct setting *setting)
{
	give_msr(setting, 0x174, setting->value);		/* SYSENTER_CS */
	setting->regs.rdx = LANDED;
	setting->regs.rcx = setting->regs.rsp;
}

static const struct effect sysexit_effect = {
	.code = { 0x0f, 0x35 }, .size = 2, .port = LANDED_PORT, .mode = &protected_mode,
	.gives = give_sysexit, .shows = show_user_cs,
};

/* Two bases that change places: the value in KERNEL_GS_BASE, and another one in GS. */
enum { KERNEL_GS_BASE = 0xc0000102, OTHER_BASE = 0x12345000 };

static void give_swapped(struct setting *setting)
{
	give_msr(setting, KERNEL_GS_BASE, setting->value);
	setting->sregs.gs.base = OTHER_BASE;
}

static __u64 show_swapped(const struct setting *setting)
{
	int is_swapped = msr_of(setting->id, KERNEL_GS_BASE) == OTHER_BASE;

	return is_swapped ? setting->sregs.gs.base : 0;
}

static const struct effect swapgs_effect = {
	.code = { 0x0f, 0x01, 0xf8 }, .size = 3, .port = DONE_PORT, .mode = &long_mode,
	.gives = give_swapped, .shows = show_swapped,
};

/* Without FSGSBASE in CR4 there are no such instructions. */
static void allow_fsgsbase(struct setting *setting)
{
	setting->sregs.cr4 |= 1 << 16;
}

static void give_fs_base(struct setting *setting)
{
	allow_fsgsbase(setting);
	setting->sregs.fs.base = setting->value;
}

static void give_gs_base(struct setting *setting)
{
	allow_fsgsbase(setting);
	setting->sregs.gs.base = setting->value;
}

static void give_new_base(struct setting *setting)
{
	allow_fsgsbase(setting);
	setting->regs.rax = setting->value;
}

static __u64 show_fs_base(const struct setting *setting)
{
	return setting->sregs.fs.base;
}

static __u64 show_gs_base(const struct setting *setting)
{
	return setting->sregs.gs.base;
}

/* rdfsbase %rax, and so on */
static const struct effect rdfsbase_effect = {
	.code = { 0xf3, 0x48, 0x0f, 0xae, 0xc0 }, .size = 5, .port = DONE_PORT, .mode = &long_mode,
	.gives = give_fs_base, .shows = show_rax,
};

static const struct effect rdgsbase_effect = {
	.code = { 0xf3, 0x48, 0x0f, 0xae, 0xc8 }, .size = 5, .port = DONE_PORT, .mode = &long_mode,
	.gives = give_gs_base, .shows = show_rax,
};

static const struct effect wrfsbase_effect = {
	.code = { 0xf3, 0x48, 0x0f, 0xae, 0xd0 }, .size = 5, .port = DONE_PORT, .mode = &long_mode,
	.gives = give_new_base, .shows = show_fs_base,
};

static const struct effect wrgsbase_effect = {
	.code = { 0xf3, 0x48, 0x0f, 0xae, 0xd8 }, .size = 5, .port = DONE_PORT, .mode = &long_mode,
	.gives = give_new_base, .shows = show_gs_base,
};

/* The control word has a bit that is always 1. */
enum { ALWAYS = 0x40, CONTROL_BITS = 0xf3f };

/* The form of an XSAVES area that only XSAVES writes: compact, with the state of the FPU in it. */
static const __u64 compact_x87[] = { 1, 1ull << 63 | 1 };

static __u8 *area_of(const struct setting *setting)
{
	return vm.memory + AREAS + PAGE * setting->id;
}

static __u64 control_at(const __u8 *at)
{
	return (at[0] | at[1] << 8) & ~ALWAYS;
}

/* The guest works on its area, on the state of the FPU alone (EDX:EAX = 1). */
static void give_control(struct setting *setting, size_t offset)
{
	__u16 control = (setting->value & CONTROL_BITS) | ALWAYS;

	memset(area_of(setting), 0, PAGE);
	memcpy(area_of(setting) + offset, &control, sizeof(control));
	setting->sregs.cr4 |= 1 << 18;	/* OSXSAVE */
	setting->regs.rax = 1;
	setting->regs.rdi = AREAS + PAGE * setting->id;
	setting->regs.rsi = AREAS + PAGE * setting->id + CONTROL;
}

static void give_loaded(struct setting *setting)
{
	give_control(setting, CONTROL);
}

static __u64 show_saved(const struct setting *setting)
{
	const __u8 *area = area_of(setting);
	int is_compact = !memcmp(area + 520, &compact_x87[1], sizeof(compact_x87[1]));

	return is_compact ? control_at(area) : 0;
}

/* fldcw (%rsi); xsaves (%rdi) */
static const struct effect xsaves_effect = {
	.code = { 0xd9, 0x2e, 0x0f, 0xc7, 0x2f }, .size = 5, .before = 2, .port = DONE_PORT,
	.mode = &long_mode, .gives = give_loaded, .shows = show_saved,
};

static void give_saved(struct setting *setting)
{
	give_control(setting, 0);
	memcpy(area_of(setting) + 512, compact_x87, sizeof(compact_x87));
}

static __u64 show_stored(const struct setting *setting)
{
	return control_at(area_of(setting) + CONTROL);
}

/* fninit; xrstors (%rdi); fnstcw (%rsi) */
static const struct effect xrstors_effect = {
	.code = { 0xdb, 0xe3, 0x0f, 0xc7, 0x1f, 0xd9, 0x3e }, .size = 7, .before = 2,
	.port = DONE_PORT, .mode = &long_mode, .gives = give_saved, .shows = show_stored,
};

static void give_interrupted_base(struct setting *setting)
{
	setting->sregs.fs.base = setting->value;
}

/* What it loads is what an SMI has saved. */
static const struct effect rsm_effect = {
	.code = { 0x0f, 0xaa }, .size = 2, .port = DONE_PORT, .mode = &long_mode,
	.gives = give_interrupted_base, .shows = show_fs_base,
};

/* The instruction between what belongs to it and its end; the prefix stands in front. */
static void write_effect(const struct effect *effect)
{
	static const __u8 end[] = { 0xe6, DONE_PORT, 0xeb, -4 };
	static const __u8 landed[] = { 0xe6, LANDED_PORT, 0xeb, -4 };

	memcpy(vm.memory + EFFECT - sizeof(prefix), prefix, sizeof(prefix));
	memcpy(vm.memory + EFFECT, effect->code, effect->size);
	memcpy(vm.memory + EFFECT + effect->size, end, sizeof(end));
	memcpy(vm.memory + LANDED, landed, sizeof(landed));
}

/* Put the vCPU in front of the instruction; a return to user code must let that write to ports. */
static struct setting set_up_effect(int id, const struct effect *effect, __u64 rip, __u64 value)
{
	struct setting setting = { .id = id, .value = value };

	write_vectors();
	write_tasks(id);
	write_effect(effect);
	enter_mode(id, effect->mode);
	mode_of[id] = effect->mode;
	setting.sregs = read_sregs(id);
	setting.regs.rip = rip;
	setting.regs.rsp = STACKS + PAGE * (id + 1);
	setting.regs.rflags = 2 | IOPL3;
	effect->gives(&setting);
	write_sregs(id, &setting.sregs);
	write_regs(id, &setting.regs);
	return setting;
}

/* Run to a port write and return which; 0, and said, if it comes to none. An MSR exit is one too many. */
static int run_effect(int id)
{
	const struct kvm_run *run = vm.vcpus[id].run;
	int exits = 0, result = enter_guest(id);

	while (result >= 0 && is_msr_exit(run) && exits++ < MOST_EXITS) {
		saw_msr(run->exit_reason, run);
		result = enter_guest(id);
	}
	if (result >= 0 && run->exit_reason == KVM_EXIT_IO)
		return run->io.port;
	saw("Lost('the instruction ended with %d')", result < 0 ? -errno : (int)run->exit_reason);
	return 0;
}

static void saw_effect_fault(int id, const struct effect *effect, int vector)
{
	struct kvm_regs regs = read_regs(id);
	struct vcpu at = {
		.access = { .rip = EFFECT + effect->before, .rax = regs.rax, .rdx = regs.rdx },
	};

	push_again(id, &regs, vector);
	saw_fault(&at, &regs, vector);
}

/* Say how the instruction has ended; 0 if it has not. */
static int saw_effect(struct setting *setting, const struct effect *effect, int port)
{
	if (port == effect->port) {
		setting->regs = read_regs(setting->id);
		setting->sregs = read_sregs(setting->id);
		saw("executed(%#llx)", effect->shows(setting));
	} else if (port != DONE_PORT && port_of_end(setting->id)) {
		saw_effect_fault(setting->id, effect, port - VECTOR_PORT);
	} else {
		if (port)
			saw("Lost('the instruction ended at port %#x')", port);
		return 0;
	}
	return 1;
}

/* Run the instruction to its end, and set back what was set for it. */
static void end_effect(struct setting *setting, const struct effect *effect,
		       const struct kvm_sregs *before)
{
	if (!saw_effect(setting, effect, run_effect(setting->id)))
		return;
	write_sregs(setting->id, before);
	while (setting->n_msrs--)
		write_msr(setting->id, setting->msrs[setting->n_msrs].index,
			  setting->msrs[setting->n_msrs].old);
}

static void execute_at(int id, const struct effect *effect, __u64 rip, __u64 value)
{
	struct kvm_sregs before = read_sregs(id);
	struct setting setting = set_up_effect(id, effect, rip, value);

	if (setting.is_refused)
		saw("Lost('KVM_SET_MSRS refuses what the instruction works with')");
	else
		end_effect(&setting, effect, &before);
}

static void execute(int id, const struct effect *effect, __u64 value)
{
	execute_at(id, effect, EFFECT, value);
}

static void execute_emulated(int id, const struct effect *effect, __u64 value)
{
	execute_at(id, effect, EFFECT - sizeof(prefix), value);
}

/* RSM is for SMM alone, where the CPU is in real mode, and leads to where the SMI came. */
static void execute_rsm(int id, __u64 value)
{
	struct kvm_regs rsm = { .rip = EFFECT - REAL_CODE, .rsp = PAGE, .rflags = 2 };
	struct kvm_sregs before = read_sregs(id);
	struct setting setting = set_up_effect(id, &rsm_effect, EFFECT, value);

	if (!enters_smm(id))
		return;
	enter_mode(id, &real_mode);
	write_regs(id, &rsm);
	end_effect(&setting, &rsm_effect, &before);
}

static const char *lacks_rdtscp(void)
{
	return lacks_feature(0x80000001, 0, EDX, 1 << 27, "KVM_GET_SUPPORTED_CPUID has no rdtscp");
}

static const char *lacks_rdpid(void)
{
	return lacks_feature(7, 0, ECX, 1 << 22, "KVM_GET_SUPPORTED_CPUID has no rdpid");
}

static const char *lacks_fsgsbase(void)
{
	return lacks_feature(7, 0, EBX, 1, "KVM_GET_SUPPORTED_CPUID has no fsgsbase");
}

static const char *lacks_xsaves(void)
{
	return lacks_feature(0xd, 1, EAX, 1 << 3, "KVM_GET_SUPPORTED_CPUID has no xsaves");
}

static const char *lacks_sep(void)
{
	return lacks_feature(1, 0, EDX, 1 << 11, "KVM_GET_SUPPORTED_CPUID has no sep");
}

static const char *lacks_pmu(void)
{
	const char *why = "no PMU: this CPU, or its KVM for a guest, has no performance counters";

	open_vm();
	need_vcpu(0);
	if (counter_of(0))
		why = NULL;
	drop_vm();
	return why;
}

/* On some hosts a guest's TSC is the host's own. */
static const char *lacks_guest_tsc(void)
{
	const char *why = "guest_tsc: RDTSC does not show the TSC that KVM_SET_MSRS has set, "
			  "without a filter too";

	open_vm();
	need_vcpu(0);
	execute(0, &rdtsc_effect, 0x1234);
	if (!strcmp(seen, "executed(0x1234)"))
		why = NULL;
	seen[0] = 0;
	drop_vm();
	return why;
}
