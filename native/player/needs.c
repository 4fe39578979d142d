/*
 * Which needs can be asked here, and by what.
 */

static const struct { const char *name; const char *(*lacks)(void); } needs[] = {
	{ "irqchip", lacks_irqchip }, { "vcpus", lacks_vcpus }, { "userfaultfd", lacks_userfaultfd },
	{ "compat", lacks_compat }, { "task_syscall", lacks_task_syscall },
	{ "force_emulation_prefix", lacks_force_emulation_prefix }, { "one_reg", lacks_one_reg },
	{ "memory_cgroup", lacks_memory_cgroup },
	{ "disable_exits_mwait", lacks_disable_exits_mwait },
	{ "disable_exits_hlt", lacks_disable_exits_hlt },
	{ "disable_exits_pause", lacks_disable_exits_pause },
	{ "disable_exits_cstate", lacks_disable_exits_cstate },
	{ "disable_exits_aperfmperf", lacks_disable_exits_aperfmperf },
	{ "shstk", lacks_shstk }, { "mediated_pmu", lacks_mediated_pmu }, { "pt", lacks_pt },
	{ "spec_ctrl", lacks_spec_ctrl }, { "xfd", lacks_xfd }, { "lbr", lacks_lbr },
	{ "nested", lacks_nested }, { "nested_svm", lacks_nested_svm },
	{ "nested_vmx", lacks_nested_vmx }, { "nested_state", lacks_nested_state },
	{ "clean_bitmap", lacks_clean_bitmap },
	{ "smm", lacks_smm }, { "wrmsrns", lacks_wrmsrns }, { "msr_imm", lacks_msr_imm },
	{ "put_off_debug", lacks_put_off_debug }, { "guest_tsc", lacks_guest_tsc },
	{ "xen_hvm", lacks_xen_hvm }, { "xen_intercept", lacks_xen_intercept },
	{ "rdtscp", lacks_rdtscp }, { "rdpid", lacks_rdpid }, { "pmu", lacks_pmu },
	{ "fsgsbase", lacks_fsgsbase }, { "xsaves", lacks_xsaves }, { "sep", lacks_sep },
};

static const char *lacks(const char *name)
{
	for (size_t i = 0; i < sizeof(needs) / sizeof(needs[0]); i++)
		if (!strcmp(needs[i].name, name))
			return needs[i].lacks();
	return "this player has no such word";
}
