/*
 * What a host may lack that the words above need.
 */

/* Why there is no such thing, unless the host had no more of something to find that out with. */
static const char *for_sure(const char *why)
{
	if (is_exhausted(errno))
		die(why);
	return why;
}

/*
 * What a script may need beside KVM itself, found by doing it: NULL where it is there, else why
 * not. What makes a VM does so before the script's own.
 */
static const char *lacks_userfaultfd(void)
{
	int fd = try_userfaultfd();

	if (fd < 0)
		return "userfaultfd for the kernel's own faults: run as root";
	close(fd);
	return NULL;
}

/* Only /proc/self/task/TID/syscall tells that a thread is blocked. */
static const char *lacks_task_syscall(void)
{
	int fd = open("/proc/self/syscall", O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return for_sure("/proc/self/task/*/syscall cannot be read");
	close(fd);
	return NULL;
}

/* Bochs 3.0 refuses the VM entry where KVM has APICv, so that a guest is to run, too. */
static const char *lacks_irqchip(void)
{
	const char *why = NULL;

	open_vm();
	if (make_irqchip() < 0) {
		why = for_sure("no in-kernel irqchip");
	} else {
		need_vcpu(0);
		do_access(0, (struct access){ .rip = RDMSR, .rcx = 0x10 });	/* the TSC */
		if (strncmp(seen, "returned(", 9))
			why = "no vCPU with an in-kernel APIC runs, without a filter either";
		seen[0] = 0;
	}
	drop_vm();
	return why;
}

static const char *lacks_vcpus(void)
{
	const char *why = NULL;

	open_vm();
	if (add_vcpu(0) < 0 || add_vcpu(1) < 0)
		why = for_sure("a second vCPU cannot be made");
	drop_vm();
	return why;
}

/* Without the parameter the prefix is an undefined instruction. */
static const char *lacks_force_emulation_prefix(void)
{
	const char *why = NULL;

	open_vm();
	need_vcpu(0);
	do_access(0, (struct access){ .rip = RDMSR | PREFIXED, .rcx = 0x10 });	/* the TSC */
	if (strncmp(seen, "returned(", 9))
		why = "kvm.force_emulation_prefix is 0: load kvm with force_emulation_prefix=1";
	seen[0] = 0;
	drop_vm();
	return why;
}
