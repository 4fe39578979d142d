/*
 * The words for what comes between an exit and the end of its access: the host looks at the vCPU
 * and sets what it has found, and sends interrupts, which the guest has to take behind the access.
 */

enum {
	NMI = 2, SMI = 0xff,	/* which has no vector */
	IRETQ = 0x10480,	/* how the handler of an interrupt ends in 64-bit code */
	SAVED_RIP = 0x3ff78,	/* by an SMI, with SMBASE at 0x30000 */
	ROUNDS = 4,	/* of the guest at its end, for an interrupt that is still to come */
};

/* Whether interrupts are held off, and the exception that is queued. */
static void get_vcpu_events(int id)
{
	struct kvm_vcpu_events events;
	const char *shadow;

	if (ioctl(vm.vcpus[id].fd, KVM_GET_VCPU_EVENTS, &events) < 0) {
		saw_error(errno);
		return;
	}
	shadow = events.interrupt.shadow ? "True" : "False";
	if (events.exception.injected || events.exception.pending)
		saw("vcpu_events(%s, exception=%#x)", shadow, events.exception.nr);
	else
		saw("vcpu_events(%s)", shadow);
}

/* Read a state of the vCPU and set the very same: KVM_GET_*, KVM_SET_*. */
static void rewrite(int id, unsigned long get, unsigned long set)
{
	__u64 state[512];	/* struct kvm_xsave is the largest */

	if (ioctl(vm.vcpus[id].fd, get, state) < 0)
		saw_error(errno);
	else
		saw_result(ioctl(vm.vcpus[id].fd, set, state));
}

/* KVM takes an NMI for handled when the guest executes IRET, which it may not here. */
static void unmask_nmi(int id)
{
	struct kvm_vcpu_events events = read_events(id);

	events.nmi.masked = 0;
	write_events(id, &events);
}

/* Leave the handler of an interrupt; KVM's emulator has no IRET in protected mode. */
static void return_to(int id, struct frame frame)
{
	static const __u8 iretq[] = { 0x48, 0xcf };
	struct kvm_regs regs = read_regs(id);

	if (mode_of[id]->word == 8) {
		memcpy(vm.memory + IRETQ, iretq, sizeof(iretq));
		regs.rip = IRETQ;
	} else {
		regs.rip = frame.rip;
		regs.rflags = frame.rflags;
		regs.rsp += 3 * mode_of[id]->word;
		unmask_nmi(id);
	}
	write_regs(id, &regs);
}

/* Note which interrupt the guest is in, and where it came; 0 if it is in none. */
static int takes_interrupt(int id)
{
	struct access *access = &vm.vcpus[id].access;
	int vector = port_of_end(id) - VECTOR_PORT;
	struct frame frame;

	if (vector != NMI && vector != INTERRUPT)
		return 0;
	frame = frame_of(id, read_regs(id).rsp, vector);
	access->due--;
	access->taken = vector;
	access->skew = frame.rip - access->rip;
	return_to(id, frame);
	return 1;
}

/* The same of an SMI, whose handler goes back by itself. */
static int takes_smi(int id)
{
	const struct kvm_run *run = vm.vcpus[id].run;
	struct access *access = &vm.vcpus[id].access;
	__u64 rip;

	if (access->due < 1 || run->exit_reason != KVM_EXIT_IO || run->io.port != SMM_PORT)
		return 0;
	memcpy(&rip, vm.memory + SAVED_RIP, sizeof(rip));
	access->due--;
	access->taken = SMI;
	access->skew = rip - access->rip;
	return 1;
}

/* Take the guest past its interrupts to what ends its access, and that to its end. */
static int leave_past_interrupts(int id)
{
	const struct access *access = &vm.vcpus[id].access;
	int rounds = 0;

	for (;;) {
		int took = takes_smi(id) || (port_of_end(id) && takes_interrupt(id));

		if (!took && (!port_of_end(id) || access->due < 1 || ++rounds == ROUNDS))
			break;
		if (enter_guest(id) < 0) {
			saw_error(errno);
			return 1;
		}
	}
	if (is_msr_exit(vm.vcpus[id].run)) {
		saw("Lost('an access comes back after its end')");
		return 1;
	}
	return leave_mode(id);
}

/* Nothing is there to take what comes when the access has ended without an exit. */
static void inject(int id, unsigned long number, const void *argument)
{
	struct vcpu *vcpu = &vm.vcpus[id];

	if (!vcpu->left) {
		saw("done");
		return;
	}
	if (ioctl(vcpu->fd, number, argument) < 0) {
		saw_error(errno);
		return;
	}
	vcpu->access.due++;
	vcpu->left = leave_past_interrupts;
	saw("done");
}

static void inject_nmi(int id)
{
	inject(id, KVM_NMI, NULL);
}

static void inject_smi(int id)
{
	if (vm.vcpus[id].left && map_in_smm() < 0)
		saw_error(errno);
	else
		inject(id, KVM_SMI, NULL);
}

/* One that must find interrupts enabled (RFLAGS.IF). */
static void inject_interrupt(int id)
{
	struct kvm_interrupt interrupt = { .irq = INTERRUPT };

	inject(id, KVM_INTERRUPT, &interrupt);
}

/* Which interrupt the guest has taken since its access began, and where. */
static void get_taken(int id)
{
	const struct access *access = &vm.vcpus[id].access;

	if (!access->taken)
		saw("taken(None)");
	else if (access->skew)
		saw("taken(%#x, skew=%d)", access->taken, access->skew);
	else
		saw("taken(%#x)", access->taken);
}
