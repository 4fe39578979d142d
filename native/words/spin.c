/*
 * The words for a vCPU whose guest goes round an access, and for the end of a race.
 */

/* A vCPU whose guest goes round an access in a thread that answers every exit. */
struct spinner {
	struct task *task;
	struct vcpu *vcpu;
	volatile __u64 *rounds;
	int id, stop;
	__u64 exits;
	__u32 exit_reason;
	struct kvm_run last;	/* its msr, as of the last exit */
};

static struct spinner spinners[16];

/* The IDT of a vCPU that goes round, and its handler of #GP. */
enum { LOOP_IDT = 0xa000, LOOP_GP = 0xa400 };

static void use_idt(int id, __u64 base)
{
	struct kvm_sregs sregs = read_sregs(id);

	sregs.idt.base = base;
	write_sregs(id, &sregs);
}

/*
 * A #GP ends its round without an exit, but in L2, whose IDT is L1's: what KVM keeps of an access
 * that nobody is told of is still there when the vCPU is kicked.
 */
static void handle_gp_in_guest(int id)
{
	/* add $8, %rsp: the error code; addq $2, (%rsp): the instruction; iretq */
	static const __u8 code[] = { 0x48, 0x83, 0xc4, 8, 0x48, 0x83, 4, 0x24, 2, 0x48, 0xcf };
	__u16 gate[] = { LOOP_GP, 8, 0x8e00, 0, 0, 0, 0, 0 };

	if (vm.vcpus[id].left)
		return;
	memcpy(vm.memory + LOOP_IDT, vm.memory + IDT, 16 * VECTORS);
	memcpy(vm.memory + LOOP_IDT + 16 * 13, gate, sizeof(gate));
	memcpy(vm.memory + LOOP_GP, code, sizeof(code));
	use_idt(id, LOOP_IDT);
}

/* A #GP in the loop ends its round: go on behind the instruction. */
static void skip_instruction(struct spinner *spinner)
{
	struct kvm_regs regs = read_regs(spinner->id);

	regs.rip = spinner->vcpu->access.rip + 2;
	regs.rsp = STACKS + PAGE * (spinner->id + 1);
	write_regs(spinner->id, &regs);
}

static int answer_spinning(struct spinner *spinner)
{
	struct kvm_run *run = spinner->vcpu->run;

	if (run->exit_reason == KVM_EXIT_IO && run->io.port == VECTOR_PORT + 13) {
		skip_instruction(spinner);
		return 1;
	}
	if (!is_msr_exit(run))
		return 0;
	spinner->last.msr = run->msr;
	spinner->exit_reason = run->exit_reason;
	__atomic_add_fetch(&spinner->exits, 1, __ATOMIC_SEQ_CST);
	answer(spinner->id, spinner->vcpu->access.reply);
	return 1;
}

static void run_spinning(const void *argument)
{
	struct spinner *spinner = (struct spinner *)argument;

	for (;;) {
		if (ioctl(spinner->vcpu->fd, KVM_RUN, 0) < 0) {
			if (errno != EINTR) {
				saw("Lost('the spinning vCPU ended with %d')", -errno);
				return;
			}
			if (__atomic_load_n(&spinner->stop, __ATOMIC_SEQ_CST)) {
				saw("stopped");
				return;
			}
		} else if (!answer_spinning(spinner)) {
			saw("Lost('the spinning vCPU ended with %u')",
			    spinner->vcpu->run->exit_reason);
			return;
		}
	}
}

static void kicked(int signal)
{
	(void)signal;
}

/* A kick takes a thread out of KVM_RUN; those to come let it through, whatever is blocked here. */
static void allow_kicks(void)
{
	struct sigaction action = { .sa_handler = kicked };
	sigset_t usr1;

	sigaction(SIGUSR1, &action, NULL);
	sigemptyset(&usr1);
	sigaddset(&usr1, SIGUSR1);
	sigprocmask(SIG_UNBLOCK, &usr1, NULL);
}

/* Let the vCPU go round the access, and wait until it did. */
static void spin(int id, struct access access)
{
	struct patience patience = patience_of(DEADLINE);
	struct spinner *spinner = &spinners[id];

	access.rip |= LOOP;
	access.rflags |= IF;	/* some emulators take a CPU out of its guest only then */
	set_up(id, access);
	handle_gp_in_guest(id);
	*spinner = (struct spinner){ .id = id, .vcpu = &vm.vcpus[id] };
	spinner->rounds = (__u64 *)(vm.memory + COUNTERS + 8 * id);
	*spinner->rounds = 0;
	allow_kicks();
	spinner->task = start_task("", run_spinning, spinner);
	while (!*spinner->rounds && !has_ended(spinner->task, GLANCE) && is_left(&patience))
		;
	saw(*spinner->rounds ? "spinning" : "never");
}

static __u64 exits_of(struct spinner *spinner)
{
	return __atomic_load_n(&spinner->exits, __ATOMIC_SEQ_CST);
}

/* Wait for an exit that is newer than this call: the first may have left the guest before it. */
static void until_exits(int id)
{
	struct patience patience = patience_of(OBEYS_WITHIN * (patient ? LONGER : 1));
	struct spinner *spinner = &spinners[id];
	__u64 enough = exits_of(spinner) + 2;

	while (exits_of(spinner) < enough && !has_ended(spinner->task, GLANCE)) {
		if (!is_left(&patience)) {
			saw("never");
			return;
		}
	}
	saw_msr(spinner->exit_reason, &spinner->last);
}

/* Wait until the loop goes round several times without an exit: those are read outside of it. */
static void until_runs(int id)
{
	struct patience patience = patience_of(OBEYS_WITHIN * (patient ? LONGER : 1));
	struct spinner *spinner = &spinners[id];
	__u64 exits = exits_of(spinner), rounds = *spinner->rounds;

	while (is_left(&patience) && !has_ended(spinner->task, GLANCE)) {
		__u64 now = *spinner->rounds;

		if (exits_of(spinner) != exits) {
			exits = exits_of(spinner);
			rounds = *spinner->rounds;
		} else if (now >= rounds + 4) {
			saw("ran");
			return;
		}
	}
	saw("never");
}

/* End the loop: kick the vCPU until its thread is back. */
static int stop_spinner(struct spinner *spinner)
{
	struct patience patience = patience_of(DEADLINE);

	__atomic_store_n(&spinner->stop, 1, __ATOMIC_SEQ_CST);
	while (!has_ended(spinner->task, GLANCE) && is_left(&patience)) {
		spinner->vcpu->run->immediate_exit = 1;
		pthread_kill(spinner->task->thread, SIGUSR1);
	}
	spinner->vcpu->run->immediate_exit = 0;
	return has_ended(spinner->task, 0);
}

/* The #GP of the last round may have been on its way, and is not the next access's. */
static void drop_exception(int id)
{
	struct kvm_vcpu_events events = read_events(id);

	events.exception.injected = 0;
	events.exception.pending = 0;
	write_events(id, &events);
}

static void stop_spin(int id)
{
	if (!stop_spinner(&spinners[id])) {
		errno = ETIMEDOUT;
		die("a vCPU does not come back from KVM_RUN when kicked");
	}
	spinners[id].vcpu = NULL;
	if (!vm.vcpus[id].left) {
		use_idt(id, IDT);
		drop_exception(id);
	}
	saw("stopped");
}

static void stop_spinners(void)
{
	for (int id = 0; id < 16; id++)
		if (spinners[id].vcpu)
			stop_spinner(&spinners[id]);
	memset(spinners, 0, sizeof(spinners));
}

/* Release whoever still waits and wait for every thread; a page that is taken away is zeroes. */
static void end_race(void)
{
	if (uffd)
		close(uffd);
	for (int i = 0; i < n_tasks; i++) {
		if (!has_ended(&tasks[i], DEADLINE)) {
			errno = ETIMEDOUT;
			die("a thread does not come back from the kernel");
		}
		pthread_join(tasks[i].thread, NULL);
		close(tasks[i].ended);
	}
	n_tasks = 0;
}
