/*
 * The words for a vCPU that waits inside the kernel for a page of guest memory.
 */

/* The page that a parked vCPU waits for, and its thread. */
static struct {
	__u8 *page;
	struct task *task;
} parked[16];

static void run_parked(const void *argument)
{
	int id = *(const int *)argument;

	if (ioctl(vm.vcpus[id].fd, KVM_RUN, 0) < 0 && errno == EINTR)
		die("a signal took a parked vCPU out of the kernel, run it again: KVM_RUN");
	if (vm.vcpus[id].run->exit_reason == KVM_EXIT_IO && vm.vcpus[id].run->io.port == DONE_PORT)
		saw("released");
	else
		saw("Lost('exit reason %u')", vm.vcpus[id].run->exit_reason);
}

/* Run a vCPU in a thread until it waits, inside the kernel, for a page of guest memory. */
static void park(int id)
{
	static const int ids[16] = { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15 };
	struct patience patience = patience_of(DEADLINE);
	int page = PAGE * (vm.n_park_pages++ % (PARK_SIZE / PAGE));
	struct task *task;

	if (!vm.park_area) {
		vm.park_area = add_memory(1, PARK_AREA, PARK_SIZE);
		watch(vm.park_area, PARK_SIZE);
	}
	set_up(id, (struct access){ .rip = TOUCH, .rcx = PARK_AREA + page });
	task = parked[id].task = start_task("", run_parked, &ids[id]);
	parked[id].page = vm.park_area + page;
	n_parked++;
	while (!has_ended(task, 0) && is_left(&patience)) {
		if (is_awaited(parked[id].page, SLICE, task)) {
			saw("parked");
			return;
		}
	}
	saw("%s", has_ended(task, 0) ? task->seen : "never");
}

/* Give a parked vCPU its page and wait until its guest went on. */
static void release(int id)
{
	static const __u8 zeroes[4096];

	give(parked[id].page, zeroes);
	if (!has_ended(parked[id].task, DEADLINE)) {
		errno = ETIMEDOUT;
		die("a vCPU has its page and does not come back from KVM_RUN");
	}
	n_parked--;
	saw_task(parked[id].task);
}
