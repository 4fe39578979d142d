/*
 * How a program ends that cannot go on, and how a step says what it left.
 */

/* What the current step has left so far, as text; a thread has its own. */
static __thread char seen[1 << 16];

static void die(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(TROUBLE);
}

static void skip(const char *what)
{
	fprintf(stderr, "skipped: %s\n", what);
	exit(SKIP);
}

static void saw(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void saw(const char *format, ...)
{
	size_t used = strlen(seen);
	va_list args;

	if (used)
		used += snprintf(seen + used, sizeof(seen) - used, ", ");
	va_start(args, format);
	if (used < sizeof(seen))
		used += vsnprintf(seen + used, sizeof(seen) - used, format, args);
	va_end(args);
	errno = E2BIG;
	if (used >= sizeof(seen))
		die("what a step left");
}

/* The host has no more of something, which says nothing of its kernel. */
static int is_exhausted(int error)
{
	return error == EAGAIN || error == ENOMEM || error == EMFILE || error == ENFILE ||
	       error == ENOSPC || error == EDQUOT;
}

static void saw_error(int error)
{
	static const struct { int number; const char *name; } names[] = {
		{ EPERM, "EPERM" }, { ENOENT, "ENOENT" }, { EINTR, "EINTR" }, { EIO, "EIO" },
		{ E2BIG, "E2BIG" }, { EBADF, "EBADF" }, { EFAULT, "EFAULT" }, { EBUSY, "EBUSY" },
		{ EEXIST, "EEXIST" }, { EINVAL, "EINVAL" }, { ENOTTY, "ENOTTY" },
		{ ENOSYS, "ENOSYS" }, { EOPNOTSUPP, "EOPNOTSUPP" }, { ENXIO, "ENXIO" },
	};

	errno = error;
	if (is_exhausted(error))
		die("an ioctl");
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		if (names[i].number == error) {
			saw("rejected(%s)", names[i].name);
			return;
		}
	}
	saw("rejected(%d)", error);
}

static void saw_result(int result)
{
	if (result < 0)
		saw_error(errno);
	else
		saw("done");
}
