/*
 * The pages that the kernel waits for, as userfaultfd tells.
 */

static int uffd;

/* A userfaultfd that also sees the faults of the kernel itself. */
static int try_userfaultfd(void)
{
	int flags = O_CLOEXEC | O_NONBLOCK, fd = syscall(SYS_userfaultfd, flags), device;

	if (fd >= 0)
		return fd;
	device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (device >= 0) {
		fd = ioctl(device, _IO(0xaa, 0), flags);	/* USERFAULTFD_IOC_NEW */
		close(device);
	}
	if (fd < 0 && is_exhausted(errno))
		die("userfaultfd");
	return fd;
}

static void open_userfaultfd(void)
{
	struct uffdio_api api = { .api = UFFD_API };

	uffd = try_userfaultfd();
	if (uffd < 0)
		skip("userfaultfd for the kernel's own faults: run as root");
	if (ioctl(uffd, UFFDIO_API, &api) < 0)
		die("UFFDIO_API");
}

/* Have the first access to each of the pages wait. */
static void watch(void *pages, size_t size)
{
	struct uffdio_register missing = {
		.range = { (unsigned long)pages, size }, .mode = UFFDIO_REGISTER_MODE_MISSING,
	};

	if (!uffd)
		open_userfaultfd();
	if (ioctl(uffd, UFFDIO_REGISTER, &missing) < 0)
		die("UFFDIO_REGISTER");
}

static void give(const void *page, const void *content)
{
	struct uffdio_copy copy = {
		.dst = (unsigned long)page, .src = (unsigned long)content, .len = PAGE,
	};

	if (ioctl(uffd, UFFDIO_COPY, &copy) < 0)
		die("UFFDIO_COPY");
}

/* The pages that somebody waits for, as far as they have been read. */
static __u64 faults[64];
static int n_faults;

/* Whether somebody waits for the page, after at most so many ms, or as soon as the thread ended. */
static int is_awaited(const void *page, int ms, struct task *task)
{
	struct pollfd fds[] = {
		{ .fd = uffd, .events = POLLIN }, { .fd = task->ended, .events = POLLIN },
	};
	struct uffd_msg message;

	poll(fds, 2, ms);
	while (n_faults < 64 && read(uffd, &message, sizeof(message)) == sizeof(message))
		faults[n_faults++] = message.arg.pagefault.address / PAGE * PAGE;
	for (int i = 0; i < n_faults; i++)
		if (faults[i] == (unsigned long)page)
			return 1;
	return 0;
}
