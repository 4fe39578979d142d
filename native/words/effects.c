/*
 * The word for instructions that use MSRs without being RDMSR or WRMSR. All that was set for one is
 * set back when it has ended.
 */

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

/*
 * Run to a port write and return which; 0, and said, if it comes to none. An MSR exit is one too
 * many.
 */
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
