/*
 * The words for an install that stops at its bitmap, and for steps beside it.
 */

/* The bitmap of a stalled install: a page that is not there, and what it is to hold. */
struct stall {
	char name[20];
	__u8 *page;
	__u8 bits[4096];
};

static struct stall stalls[16];
static int n_stalls;

/* A bitmap that the kernel waits for in the install that is begun under this name. */
static __u8 *not_there(const char *name, const __u8 *bits, size_t size)
{
	struct stall *stall = &stalls[n_stalls++ % 16];

	snprintf(stall->name, sizeof(stall->name), "%s", name);
	memset(stall->bits, 0, sizeof(stall->bits));
	memcpy(stall->bits, bits, size < PAGE ? size : PAGE);
	stall->page = map_low(PAGE);
	watch(stall->page, PAGE);
	return stall->page;
}

static struct stall *find_stall(const char *name)
{
	for (int i = n_stalls - 1; i >= 0 && i > n_stalls - 16; i--)
		if (!strcmp(stalls[i % 16].name, name))
			return &stalls[i % 16];
	return NULL;
}

/* Start an install in a thread, and see whether it stalls. */
static void begin_install(const char *name, void (*work)(const void *), const void *argument)
{
	struct stall *stall = find_stall(name);

	settle(start_task(name, work, argument), stall ? stall->page : NULL);
}

/* Give a stalled install its bitmap, or make the bitmap unreadable for good. */
static void resume_install(const char *name, int fails)
{
	struct stall *stall = find_stall(name);
	struct uffdio_range range = { .len = PAGE };

	if (!stall) {
		errno = ESRCH;
		die(name);
	}
	range.start = (unsigned long)stall->page;
	if (!fails)
		give(stall->page, stall->bits);
	else if (mprotect(stall->page, PAGE, PROT_NONE) < 0 || ioctl(uffd, UFFDIO_WAKE, &range) < 0)
		die("UFFDIO_WAKE");
	stall->name[0] = 0;
	await(find_task(name));
}

/* Do a step in a thread: what it leaves, or blocked. */
static void meanwhile(const char *name, void (*work)(const void *), const void *argument)
{
	settle(start_task(name, work, argument), NULL);
}

/* Wait for an install or another step that was blocked. */
static void await_task(const char *name)
{
	await(find_task(name));
}
