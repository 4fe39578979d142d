/*
 * The words for accesses in SMM, to which the host sends the vCPU and from which RSM leads back.
 */

/* Run the vCPU to a port write; 0, and said, if it comes to none. */
static int runs_to(int id, int port, const char *what)
{
	const struct kvm_run *run = vm.vcpus[id].run;
	int result = enter_guest(id);

	if (result >= 0 && run->exit_reason == KVM_EXIT_IO && run->io.port == port)
		return 1;
	saw("Lost('%s ended with %d')", what, result < 0 ? -errno : (int)run->exit_reason);
	return 0;
}

/* SMM has an address space of its own, to which the same memory is given; again changes nothing. */
static int map_in_smm(void)
{
	/* out %al, $port; rsm */
	static const __u8 entry[] = { 0xe6, SMM_PORT, 0x0f, 0xaa };
	static const __u8 resume[] = { 0x0f, 0xaa };		/* rsm */
	struct kvm_userspace_memory_region region = {
		.slot = 1 << 16, .memory_size = MEMORY, .userspace_addr = (unsigned long)vm.memory,
	};

	memcpy(vm.memory + SMM_ENTRY, entry, sizeof(entry));
	memcpy(vm.memory + RSM, resume, sizeof(resume));
	return ioctl(vm.fd, KVM_SET_USER_MEMORY_REGION, &region);
}

static int request_smm(int id)
{
	return map_in_smm() < 0 ? -1 : ioctl(vm.vcpus[id].fd, KVM_SMI, 0);
}

/* Have the vCPU stop in SMM; RSM leads to the end of an access in 64-bit code. */
static int enters_smm(int id)
{
	struct kvm_regs regs = {
		.rip = RDMSR + AGAIN, .rsp = STACKS + PAGE * (id + 1), .rflags = 2,
	};

	write_regs(id, &regs);
	if (request_smm(id) < 0) {
		saw("Lost('KVM_SMI: %s')", strerror(errno));
		return 0;
	}
	return runs_to(id, SMM_PORT, "SMI");
}

static int leave_smm(int id)
{
	struct kvm_regs resume = { .rip = RSM - REAL_CODE, .rsp = PAGE, .rflags = 2 }, regs;
	int port = port_of_end(id);

	if (!port)
		return 0;
	regs = regs_in_64_bit(id, port);
	write_regs(id, &resume);
	if (runs_to(id, DONE_PORT, "RSM"))
		saw_end(id, &regs, port);
	return 1;
}

/* SMM starts as real mode does, but for segments that reach further. */
static int begin_in_smm(int id, struct access access)
{
	if (!enters_smm(id))
		return 0;
	set_up_in(&real_mode, id, access);
	vm.vcpus[id].left = leave_smm;
	return saw_run(id, enter_guest(id));
}

static void do_access_in_smm(int id, struct access access)
{
	answer_exits(id, begin_in_smm(id, access));
}
