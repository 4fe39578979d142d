/*
 * Actions about L2, about instructions and what is injected, and the ends of races.
 */

static struct msr_list msr_list_of(struct cursor *tape)
{
	int count = below(tape, MAX_LIST + 1);
	struct listed *msrs = map_low(MAX_LIST * sizeof(*msrs));

	for (int i = 0; i < count; i++) {
		msrs[i].index = u32(tape);
		msrs[i].value = u64(tape);
	}
	return (struct msr_list){ count, msrs };
}

static void enter_l2_of(struct cursor *tape)
{
	int id = used_vcpu(tape), flags = u8(tape), count = u16(tape);
	struct through *through = map_low((count + 1) * sizeof(*through));
	struct l2 l2 = {
		.passes_all = flags & 1, .no_bitmap = flags & 2, .fields = (flags & 4) != 0,
		.clean = (flags & 8) != 0,
		.n_through = count, .through = through,
	};

	for (int i = 0; i < count; i++) {
		through[i].index = u32(tape);
		through[i].how = u8(tape);
	}
	l2.entry_load = msr_list_of(tape);
	l2.exit_store = msr_list_of(tape);
	l2.exit_load = msr_list_of(tape);
	enter_l2(id, l2);
}

static void execute_of(struct cursor *tape)
{
	/* in the order of the language; RSM, which takes more than to be executed, is the last */
	static const struct effect *const effects[] = {
		&rdtsc_effect, &rdtscp_effect, &rdpid_effect, &rdpmc_effect, &cpuid_effect,
		&syscall_effect, &sysretq_effect, &sysenter_effect, &sysexit_effect, &swapgs_effect,
		&rdfsbase_effect, &rdgsbase_effect, &wrfsbase_effect, &wrgsbase_effect,
		&xsaves_effect, &xrstors_effect,
	};
	enum { RSM_OF_ALL = sizeof(effects) / sizeof(effects[0]) };
	int id = used_vcpu(tape), number = below(tape, RSM_OF_ALL + 1), is_emulated = u8(tape);
	__u64 value = u64(tape);

	if (number == RSM_OF_ALL)
		execute_rsm(id, value);
	else if (is_emulated)
		execute_emulated(id, effects[number], value);
	else
		execute(id, effects[number], value);
}

static void rewrite_of(struct cursor *tape)
{
	static const unsigned long states[][2] = {
		{ KVM_GET_SREGS, KVM_SET_SREGS }, { KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS },
		{ KVM_GET_MP_STATE, KVM_SET_MP_STATE }, { KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS },
		{ KVM_GET_XCRS, KVM_SET_XCRS }, { KVM_GET_REGS, KVM_SET_REGS },
		{ KVM_GET_XSAVE, KVM_SET_XSAVE }, { KVM_GET_FPU, KVM_SET_FPU },
		{ KVM_GET_LAPIC, KVM_SET_LAPIC },
	};
	int id = used_vcpu(tape), state = below(tape, sizeof(states) / sizeof(states[0]));

	rewrite(id, states[state][0], states[state][1]);
}

static void inject_of(struct cursor *tape)
{
	int id = used_vcpu(tape);

	switch (below(tape, 3)) {
	case 0: inject_nmi(id); break;
	case 1: inject_interrupt(id); break;
	default: inject_smi(id);
	}
}

static void resume_of(struct cursor *tape)
{
	char name[20];

	text(tape, name, sizeof(name));
	resume_install(name, u8(tape));
}

static void await_of(struct cursor *tape)
{
	char name[20];

	await_task(text(tape, name, sizeof(name)));
}

static void restore_of(struct cursor *tape)
{
	int id = used_vcpu(tape);

	if (!snapshots[id])
		damaged("what is restored was not saved");
	restore_nested(id);
}

/* The first vCPU is there at once, unless the script makes it. */
static void fresh_vm_of_case(void)
{
	if (pooled)
		damaged("a VM that serves others has a successor");
	fresh_vm();
	if (!makes_vcpus)
		use_vcpu(0);
}
