/*
 * The words for levels: L1 enters L2, and L2 leaves; and what they need.
 */

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
	levels[id].has_evmcs = !is_svm && offers_evmcs(id);
	if (levels[id].has_evmcs)
		start_evmcs(id);
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

/* Write what L1 is to enter, and return where its stub for that starts. */
static __u64 prepare_l2(int id, const struct l2 *l2)
{
	int has_lists = l2->entry_load.count || l2->exit_store.count || l2->exit_load.count;

	if (is_svm) {
		write_vmcb(id, l2);
		return L1_SVM;
	}
	if (levels[id].has_evmcs && !has_lists)	/* which such a structure has not */
		return write_evmcs(id, l2);
	write_vmcs(id, l2);
	return levels[id].has_evmcs ? L1_EVMCS_OFF : L1_VMX;
}

/* L1 enters L2; from L2 that is an exit that L1 gets. */
static void enter_l2(int id, struct l2 l2)
{
	__u64 start;

	become_l1(id);
	start = is_svm ? L1_SVM : L1_VMX;
	if (!levels[id].is_in_l2) {
		levels[id].is_in_l2 = 1;
		levels[id].n_stored = l2.exit_store.count;
		start = prepare_l2(id, &l2);
	}
	run_level(id, start);
}

/* L2 calls L1, which ends it; in L1 it is a call that KVM answers. */
static void leave_l2(int id)
{
	become_l1(id);
	run_level(id, is_svm ? L2_VMMCALL : L2_VMCALL);
}

static const char *lacks_nested(void)
{
	return extensions() ? NULL :
	       "guests have neither SVM nor VMX: load kvm_amd or kvm_intel with nested=1";
}

static const char *lacks_nested_svm(void)
{
	return extensions() == 's' ? NULL : "guests have no SVM here";
}

/* Whether L2 reaches KERNEL_GS_BASE, which L1 let pass at the entry before: -1 without an L2. */
static int keeps_what_passed(int clean)
{
	enter_l2(0, (struct l2){ .passes_all = 1 });
	leave_l2(0);
	seen[0] = 0;
	enter_l2(0, (struct l2){ .clean = clean });
	if (strcmp(seen, "entered"))
		return -1;
	seen[0] = 0;
	do_access(0, (struct access){ .rip = RDMSR, .rcx = 0xc0000102 });
	return !strncmp(seen, "returned(", 9);
}

/* KVM takes L1's word for it that its bitmap is as it was: here L1 lies, after it has not. */
static const char *what_clean_means(void)
{
	int honest = keeps_what_passed(0), lying = honest ? honest : keeps_what_passed(1);

	if (lying < 0)
		return "a guest of Hyper-V cannot enter an L2 here";
	if (honest)
		return "an L2 keeps what its L1 no longer lets pass here, clean or not";
	return lying ? NULL : "KVM does not ask a Hyper-V guest which bitmap of MSRs is clean";
}

static const char *lacks_clean_bitmap(void)
{
	const char *why = lacks_nested();

	if (why)
		return why;
	if (extensions() == 'v' &&
	    ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_HYPERV_ENLIGHTENED_VMCS) < 1)
		return "KVM has no enlightened VMCS";
	open_vm();
	need_vcpu(0);
	set_cpuid_bits(0, 0x40000001, 0, EAX, 0xffffffff, 0);
	set_cpuid_bits(0, 0x40000001, 0, EAX, 0x31237648, 1);			/* "Hv#1" */
	set_cpuid_bits(0, 0x4000000a, 0, EAX, 0x80101, 1);			/* for an L1 */
	/* GUEST_OS_ID */
	do_access(0, (struct access){ .rip = WRMSR, .rcx = 0x40000000, .rax = 1 });
	why = what_clean_means();
	seen[0] = 0;
	drop_vm();
	return why;
}

static const char *lacks_nested_vmx(void)
{
	return extensions() == 'v' ? NULL : "guests have no VMX here";
}
