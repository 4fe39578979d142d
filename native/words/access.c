/*
 * The words for an access: its beginning, what the host does between its exit and its end, its end.
 */

/* Write userspace's answer to an MSR exit; the next KVM_RUN delivers it. */
static void answer(int id, struct reply reply)
{
	struct kvm_run *run = vm.vcpus[id].run;

	run->msr.data = reply.data;
	run->msr.error = reply.error;
	if (reply.scribble) {	/* the exit becomes one of the other access, too */
		run->exit_reason ^= KVM_EXIT_X86_RDMSR ^ KVM_EXIT_X86_WRMSR;
		memset(run->msr.pad, 0xa5, sizeof(run->msr.pad));
		run->msr.reason = run->msr.index = 0xa5a5a5a5;
	}
}

static void set_up(int id, struct access access)
{
	struct kvm_regs regs = {
		.rip = access.rip - (access.rip & PREFIXED ? sizeof(prefix) : 0) - access.before,
		.rbx = COUNTERS + 8 * id, .rcx = access.rcx, .rax = access.rax, .rdx = access.rdx,
		.rsp = STACKS + PAGE * (id + 1), .rflags = access.rflags | FLAGS | 2,
		.rsi = 0x51515151, .rdi = 0x47474747, .rbp = 0x42424242,
	};

	vm.vcpus[id].access = access;
	write_regs(id, &regs);
}

/* Run the vCPU into the access, up to its exit or, if it has none, its end. */
static int begin(int id, struct access access)
{
	set_up(id, access);
	return saw_run(id, enter_guest(id));
}

/* Answer every exit of an access that was begun with its reply. */
static void answer_exits(int id, int more)
{
	const struct access *access = &vm.vcpus[id].access;
	int exits = 0;

	while (more) {
		struct kvm_regs regs = vm.vcpus[id].at_exit;

		if (regs.rip != access->rip || regs.rcx != access->rcx ||
		    regs.rax != access->rax || regs.rdx != access->rdx)
			saw_regs(id, &regs);
		if (++exits > 16) {
			saw("Lost('more exits than accesses')");
			return;
		}
		answer(id, access->reply);
		more = saw_run(id, enter_guest(id));
	}
}

/* The whole access. */
static void do_access(int id, struct access access)
{
	answer_exits(id, begin(id, access));
}

static void get_regs(int id)
{
	struct kvm_regs regs = read_regs(id);

	saw_regs(id, &regs);
}

static void set_regs(int id, struct kvm_regs regs)
{
	write_regs(id, &regs);
	saw("done");
}

/* The same by what KVM_RUN takes from kvm_run at its start. */
static void sync_regs(int id, struct kvm_regs regs)
{
	vm.vcpus[id].run->s.regs.regs = regs;
	vm.vcpus[id].run->kvm_dirty_regs = KVM_SYNC_X86_REGS;
	saw("done");
}

/* One KVM_RUN that has been seen to to end with EINTR. */
static void run_interrupted(int id)
{
	int result = ioctl(vm.vcpus[id].fd, KVM_RUN, 0);

	if (result < 0 && errno == EINTR)
		saw("interrupted");
	else
		saw_run(id, result);
}

/* Re-enter only to complete the access. */
static void complete_by_immediate_exit(int id)
{
	vm.vcpus[id].run->immediate_exit = 1;
	run_interrupted(id);
	vm.vcpus[id].run->immediate_exit = 0;
}

/* The same with a pending signal that only KVM_RUN does not block. */
static void complete_by_signal(int id)
{
	struct kvm_signal_mask *none = calloc(1, sizeof(*none) + 8);
	struct timespec now = { 0 };
	sigset_t usr2;

	if (!none)
		die("calloc");
	none->len = 8;
	sigemptyset(&usr2);
	sigaddset(&usr2, SIGUSR2);
	sigprocmask(SIG_BLOCK, &usr2, NULL);
	if (ioctl(vm.vcpus[id].fd, KVM_SET_SIGNAL_MASK, none) < 0)
		die("KVM_SET_SIGNAL_MASK");
	raise(SIGUSR2);
	run_interrupted(id);
	sigtimedwait(&usr2, NULL, &now);
	if (ioctl(vm.vcpus[id].fd, KVM_SET_SIGNAL_MASK, NULL) < 0)
		die("KVM_SET_SIGNAL_MASK");
	sigprocmask(SIG_UNBLOCK, &usr2, NULL);
	free(none);
}

/* The same by a debugger that has the guest single-step: the access is over, and so is KVM_RUN. */
static void complete_by_debugger(int id)
{
	struct kvm_guest_debug debug = { .control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP };
	const struct kvm_run *run = vm.vcpus[id].run;
	int result;

	if (ioctl(vm.vcpus[id].fd, KVM_SET_GUEST_DEBUG, &debug) < 0)
		die("KVM_SET_GUEST_DEBUG");
	result = ioctl(vm.vcpus[id].fd, KVM_RUN, 0);
	if (result == 0 && run->exit_reason == KVM_EXIT_DEBUG && run->debug.arch.exception == 1)
		saw("interrupted");
	else
		saw_run(id, result);
	debug.control = 0;
	if (ioctl(vm.vcpus[id].fd, KVM_SET_GUEST_DEBUG, &debug) < 0)
		die("KVM_SET_GUEST_DEBUG");
}

/* Run the vCPU on to the end of its access. */
static void finish(int id)
{
	saw_run(id, enter_guest(id));
}
