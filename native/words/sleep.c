/*
 * The words for a vCPU that waits in KVM_RUN for what has it run: an INIT, a SIPI, or a signal.
 */

static struct task *asleep[16];

static void run_asleep(const void *argument)
{
	const struct vcpu *vcpu = argument;
	int result;

	/* EAGAIN: the vCPU had its first INIT, and waits for a SIPI from the next entry on. */
	do
		result = ioctl(vcpu->fd, KVM_RUN, 0);
	while (result < 0 && errno == EAGAIN);
	if (result < 0 && errno == EINTR)
		saw("interrupted");
	else if (result < 0)
		saw("Lost('KVM_RUN ended with %d')", -errno);
	else if (vcpu->run->exit_reason == KVM_EXIT_IO && vcpu->run->io.port == DONE_PORT)
		saw("started");
	else
		saw("Lost('exit reason %u')", vcpu->run->exit_reason);
}

/* Enter a vCPU that waits, in a thread, and see that it sleeps. */
static void sleep_in_kvm(int id)
{
	static const __u8 out[] = { 0xe6, DONE_PORT };	/* in code of every width */
	struct sigaction action = { .sa_handler = kicked };

	sigaction(SIGUSR1, &action, NULL);
	memcpy(vm.memory + SIPI_VECTOR * PAGE, out, sizeof(out));
	asleep[id] = start_task("", run_asleep, &vm.vcpus[id]);
	settle(asleep[id], NULL);
}

static int kick_sleeper(int id)
{
	struct patience patience = patience_of(DEADLINE);

	while (!has_ended(asleep[id], GLANCE) && is_left(&patience)) {
		vm.vcpus[id].run->immediate_exit = 1;
		pthread_kill(asleep[id]->thread, SIGUSR1);
	}
	vm.vcpus[id].run->immediate_exit = 0;
	return has_ended(asleep[id], 0);
}

/* Take a sleeper out of KVM_RUN. */
static void wake(int id)
{
	if (!kick_sleeper(id)) {
		errno = ETIMEDOUT;
		die("a vCPU does not come back from KVM_RUN when kicked");
	}
	saw_task(asleep[id]);
	asleep[id] = NULL;
}

/* Wait for what ends the sleep; one that does not end goes on. */
static void await_sipi(int id)
{
	if (has_ended(asleep[id], OBEYS_WITHIN * (patient ? LONGER : 1)))
		saw_task(asleep[id]);
	else
		saw("never");
}

static void wake_sleepers(void)
{
	for (int id = 0; id < 16; id++)
		if (asleep[id])
			kick_sleeper(id);
	memset(asleep, 0, sizeof(asleep));
}
