/*
 * Wait for a thread of a race until it is back, stalled or blocked.
 */

/* An install of another VM: it takes a grace period of its own. */
static void control_install(void)
{
	static struct kvm_msr_filter off;
	static int control;

	if (!control)
		control = create_vm();
	if (ioctl(control, KVM_X86_SET_MSR_FILTER, &off) < 0)
		die("an install of another VM");
}

/* Whether the thread sleeps on while other VMs' installs come and go. */
static int sleeps_through(struct task *task)
{
	int times = patient ? LONGER_CONTROLLED : 1, start = ms_of_clock();

	for (int i = 0; i < CONTROLS * times || ms_of_clock() - start < CONTROLLED * times; i++) {
		if (has_ended(task, 0))
			return 0;
		control_install();
	}
	return !has_ended(task, 0) && is_asleep_in_an_ioctl(task);
}

/*
 * Wait until the thread is back, waits for the page (if it wants one), or is seen to be blocked.
 * Who sleeps for a page has said so before, so a look after the sleep was seen cannot miss it.
 */
static void settle(struct task *task, const void *page)
{
	struct patience patience = patience_of(DEADLINE);

	do {
		if (has_ended(task, GLANCE)) {
			saw_task(task);
			return;
		}
		if (is_asleep_in_an_ioctl(task)) {
			if (page && is_awaited(page, 0, task)) {
				saw("stalled");
				return;
			}
			if (sleeps_through(task)) {
				saw(page && is_awaited(page, 0, task) ? "stalled" : "blocked");
				return;
			}
		}
	} while (is_left(&patience));
	saw("never");
}

static int n_parked;

/* Wait for a thread that nothing else in flight can be in the way of, or settle it. */
static void await(struct task *task)
{
	int others = n_parked;

	for (int i = 0; i < n_tasks; i++)
		others += &tasks[i] != task && !has_ended(&tasks[i], 0);
	if (others)
		settle(task, NULL);
	else if (has_ended(task, RETURNS_WITHIN * (patient ? LONGER : 1)))
		saw_task(task);
	else
		saw("blocked");
}
