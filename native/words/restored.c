/*
 * The words for a host that saves a vCPU with its L2, and restores it: on the same vCPU, or in
 * another VM (api.rst 4.114, KVM_GET_NESTED_STATE, and 4.115).
 */

enum {
	NESTED_HEAD = 128, NESTED_MOST = NESTED_HEAD + 0x2000,
	IN_L2 = 1, INTERRUPTS_ON = 0x100,	/* KVM_STATE_NESTED_GUEST_MODE, _GIF_SET */
	CR4_PGE = 1 << 7,
};

/* What is saved of a vCPU, and of the memory that is its L1's; where its host stands goes along. */
struct snapshot {
	__u64 nested[NESTED_MOST / 8];
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	__u8 area[L1_SIZE];
	struct access access;
	int is_in_l2, n_stored;
};

static struct snapshot *snapshots[16];

/* 0 and what the step saw, if the kernel refuses. */
static int get_nested_state(int id, __u64 *nested)
{
	struct kvm_nested_state *state = (void *)nested;

	memset(nested, 0, NESTED_MOST);
	state->size = NESTED_MOST;
	if (ioctl(vm.vcpus[id].fd, KVM_GET_NESTED_STATE, state) == 0)
		return 1;
	saw_error(errno);
	return 0;
}

static void save_nested(int id)
{
	struct snapshot *to;

	become_l1(id);	/* else it could enter no L2 after it was restored */
	if (!snapshots[id] && !(snapshots[id] = malloc(sizeof(*to))))
		die("malloc");
	to = snapshots[id];
	memcpy(to->area, l1_memory(id, 0), L1_SIZE);
	if (!get_nested_state(id, to->nested))
		return;
	to->regs = read_regs(id);
	to->sregs = read_sregs(id);
	to->access = vm.vcpus[id].access;
	to->is_in_l2 = levels[id].is_in_l2;
	to->n_stored = levels[id].n_stored;
	if (((struct kvm_nested_state *)to->nested)->flags & IN_L2)
		saw("got(0x1)");
	else
		saw("got(0)");
}

/*
 * Have KVM build anew how the vCPU's memory is mapped: a change of CR4, and back again. A host that
 * takes a vCPU out of L2 sets its registers besides. Without that, SVM of 5.10 and 6.1 goes on
 * under L1's old root and maps in L2's: what L1 had not touched faults without end.
 */
static void rebuild_mmu(int id)
{
	struct kvm_sregs sregs = read_sregs(id);

	for (int i = 0; i < 2; i++) {
		sregs.cr4 ^= CR4_PGE;
		write_sregs(id, &sregs);
	}
}

/* All of it, the nested state last: registers are L2's by then. */
static void restore_nested(int id)
{
	const struct snapshot *from = snapshots[id];
	int result;

	become_l1(id);
	memcpy(l1_memory(id, 0), from->area, L1_SIZE);
	write_sregs(id, &from->sregs);
	write_regs(id, &from->regs);
	vm.vcpus[id].access = from->access;
	levels[id].is_in_l2 = from->is_in_l2;
	levels[id].n_stored = from->n_stored;
	result = ioctl(vm.vcpus[id].fd, KVM_SET_NESTED_STATE, from->nested);
	saw_result(result);
	if (!result && !from->is_in_l2)
		rebuild_mmu(id);
}

/* The host takes the vCPU out of L2: SVM and VMX are on as they were, and L1 gets no exit. */
static void leave_nested(int id)
{
	static const __u64 nowhere = ~0ull;
	__u64 nested[NESTED_MOST / 8];
	struct kvm_nested_state *state = (void *)nested;
	int result;

	if (!get_nested_state(id, nested))
		return;
	state->flags &= INTERRUPTS_ON;
	state->size = NESTED_HEAD;
	if (state->format == KVM_STATE_NESTED_FORMAT_SVM)
		nested[1] = nowhere;	/* hdr.svm.vmcb_pa; VMX's first, vmxon_pa, stays */
	memset(&nested[2], 0, NESTED_HEAD - 16);
	nested[2] = nowhere;		/* hdr.vmx.vmcs12_pa */
	levels[id].is_in_l2 = 0;
	if (levels[id].has_evmcs)
		*(__u8 *)l1_memory(id, ASSIST + ENLIGHTEN) = 0;	/* L1's next entry is a first one */
	result = ioctl(vm.vcpus[id].fd, KVM_SET_NESTED_STATE, nested);
	saw_result(result);
	if (!result)
		rebuild_mmu(id);
}

/* Give back what was saved. */
static void forget_snapshots(void)
{
	for (int id = 0; id < 16; id++)
		free(snapshots[id]);
	memset(snapshots, 0, sizeof(snapshots));
}

/* Another VM with the same memory and no vCPU; the old one is gone. */
static void fresh_vm(void)
{
	__u8 *memory = malloc(MEMORY);

	if (!memory)
		die("malloc");
	memcpy(memory, vm.memory, MEMORY);
	drop_vm();
	open_vm();
	memcpy(vm.memory, memory, MEMORY);
	free(memory);
	saw("done");
}

static const char *lacks_nested_state(void)
{
	const char *why = lacks_nested();

	if (why)
		return why;
	return ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_NESTED_STATE) > 0 ? NULL :
	       "no KVM_GET_NESTED_STATE";
}
