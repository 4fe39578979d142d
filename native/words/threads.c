/*
 * Threads that each do a step of a race, and how long to wait for one.
 */

/*
 * Races. An install is stalled when userfaultfd says that the kernel wants its bitmap, a vCPU is
 * parked when userfaultfd says that it wants its page. A thread is blocked when the kernel shows
 * it asleep in its ioctl while whole installs of another VM, each with a grace period of its own,
 * come and go: what slows one down slows the others too.
 */
enum {
	DEADLINE = 10000,	/* ms after which an event is not waited for any more */
	SLICE = 100,		/* ms of one wait, after which the clock is looked at */
	GLANCE = 1,		/* ms between two looks at what has no descriptor to wait on */
	OBEYS_WITHIN = 3000, RETURNS_WITHIN = 2000,
	CONTROLS = 5, CONTROLLED = 60,	/* installs, and the ms they must last */
	LONGER = 3, LONGER_CONTROLLED = 20,
};

/*
 * Whether "blocked" or "never" would be wrong in this step, so that it takes a longer wait to say
 * it.
 */
static int patient;

static int ms_of_clock(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* So many ms, of which those do not count in which this process was stopped. */
struct patience {
	int left, last;
};

static struct patience patience_of(int ms)
{
	return (struct patience){ ms, ms_of_clock() };
}

static int is_left(struct patience *patience)
{
	int now = ms_of_clock(), passed = now - patience->last;

	patience->left -= passed < 5 * SLICE ? passed : 5 * SLICE;
	patience->last = now;
	return patience->left > 0;
}

/* A thread that does one thing, and what that left. */
struct task {
	char name[20];
	void (*work)(const void *);
	const void *argument;
	pthread_t thread;
	int tid;
	int ended;		/* an eventfd */
	char seen[sizeof(seen)];
};

static struct task tasks[64];
static int n_tasks;

static void *do_task(void *argument)
{
	struct task *task = argument;
	__u64 one = 1;

	__atomic_store_n(&task->tid, (int)syscall(SYS_gettid), __ATOMIC_SEQ_CST);
	task->work(task->argument);
	memcpy(task->seen, seen, sizeof(seen));
	if (write(task->ended, &one, sizeof(one)) < 0)
		die("eventfd");
	return NULL;
}

static struct task *start_task(const char *name, void (*work)(const void *), const void *argument)
{
	struct task *task = &tasks[n_tasks];

	if (n_tasks++ == sizeof(tasks) / sizeof(tasks[0])) {
		errno = E2BIG;
		die("threads");
	}
	*task = (struct task){ .work = work, .argument = argument };
	snprintf(task->name, sizeof(task->name), "%s", name);
	task->ended = eventfd(0, EFD_CLOEXEC);
	if (task->ended < 0)
		die("eventfd");
	errno = pthread_create(&task->thread, NULL, do_task, task);
	if (errno)
		die("pthread_create");
	return task;
}

/* The last thread of that name. */
static struct task *find_task(const char *name)
{
	for (int i = n_tasks - 1; i >= 0; i--)
		if (!strcmp(tasks[i].name, name))
			return &tasks[i];
	errno = ESRCH;
	die(name);
	return NULL;
}

/* Whether the thread has ended, after at most so many ms. */
static int has_ended(struct task *task, int ms)
{
	struct pollfd ended = { .fd = task->ended, .events = POLLIN };
	struct patience patience = patience_of(ms);
	int result;

	do
		result = poll(&ended, 1, ms < SLICE ? ms : SLICE);
	while (result <= 0 && is_left(&patience));
	return result > 0;
}

/* Whether the kernel shows the thread asleep inside an ioctl, native (16) or ia32 (54). */
static int is_asleep_in_an_ioctl(struct task *task)
{
	char path[64], text[64] = "";
	int tid = __atomic_load_n(&task->tid, __ATOMIC_SEQ_CST), fd;
	ssize_t size;

	snprintf(path, sizeof(path), "/proc/self/task/%d/syscall", tid);
	fd = tid ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	if (fd < 0 && errno != ENOENT && tid)
		die(path);
	if (fd < 0)
		return 0;
	size = read(fd, text, sizeof(text) - 1);
	close(fd);
	return size > 3 && (!strncmp(text, "16 ", 3) || !strncmp(text, "54 ", 3));
}

/* What the thread left becomes what this step left. */
static void saw_task(struct task *task)
{
	saw("%s", task->seen);
}
