/*
 * A case: its VM, its steps, and what it has to leave as it was.
 */

/* As it was created: no mask, no filter, every vCPU at its start. */
static void reset_vm(void)
{
	static const struct kvm_msr_filter off;
	struct kvm_enable_cap none = { .cap = KVM_CAP_X86_USER_SPACE_MSR };

	if (ioctl(vm.fd, KVM_X86_SET_MSR_FILTER, &off) < 0 ||
	    ioctl(vm.fd, KVM_ENABLE_CAP, &none) < 0)
		die("the reset of a VM");
	for (int id = 0; id < 16; id++) {
		if (!vm.vcpus[id].run)
			continue;
		if (ioctl(vm.vcpus[id].fd, KVM_SET_SREGS, &pooled->sregs[id]) < 0 ||
		    ioctl(vm.vcpus[id].fd, KVM_SET_VCPU_EVENTS, &pooled->events[id]) < 0)
			die("the reset of a vCPU");
	}
}

/* Get a VM from the pool, or a new one, and the first vCPU. */
static void take_vm(int flags)
{
	memset(&vm, 0, sizeof(vm));
	makes_vcpus = flags & MAKES_VCPUS;
	pooled = NULL;
	if (flags & KEEPS)
		pooled = &pool[n_pooled < POOLED ? n_pooled : next_pooled++ % POOLED];
	if (pooled && n_pooled == POOLED) {
		vm = pooled->vm;
		reset_vm();
		return;
	}
	n_pooled += pooled != NULL;
	open_vm();
	if (!makes_vcpus)
		use_vcpu(0);
}

/* The MSRs that the case writes, to undo it: 1 if this could not be done. */
static int restore_msrs(const __u8 *vcpus, const __u32 *indices, const __u64 *old, int count)
{
	for (int i = 0; i < count; i++)
		if (write_msr(vcpus[i], indices[i], old[i]) != 1)
			return 1;
	return 0;
}

/* Do the case and print every step; the head of its record has been read but for what it writes. */
static void play_case(int number, struct cursor tape, int flags)
{
	__u8 vcpus[64], count = below(&tape, 64);
	__u32 indices[64];
	__u64 old[64];
	int is_lost = 0, n = 0, steps;

	take_vm(flags);
	for (int i = 0; i < count; i++) {
		int id = used_vcpu(&tape);
		struct kvm_msrs *msrs = one_msr(u32(&tape), 0);

		if (ioctl(vm.vcpus[id].fd, KVM_GET_MSRS, msrs) == 1) {
			vcpus[n] = id;
			indices[n] = msrs->entries[0].index;
			old[n++] = msrs->entries[0].data;
		}
		free(msrs);
	}
	steps = u16(&tape);
	for (int step = 1; step <= steps && !is_lost; step++) {
		struct cursor one = part(&tape, u16(&tape));

		patient = u8(&one);
		do_action(&one);
		if (one.at != one.end)
			damaged("a step is longer than its action");
		printf("step %d %d %s\n", number, step, seen);
		is_lost = is_end(seen);
		seen[0] = 0;
	}
	stop_spinners();
	wake_sleepers();
	end_race();
	if (pooled && (is_lost || restore_msrs(vcpus, indices, old, n)))
		is_spent = 1;	/* this worker's VMs go with it */
	else if (pooled)
		pooled->vm = vm;
	else
		drop_vm();
	n_parked = n_stalls = n_faults = uffd = 0;
	forget_snapshots();
	unmap_low();
	last_placed = NULL;
	has_threads = 0;
}
