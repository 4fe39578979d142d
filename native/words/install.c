/*
 * The words for capabilities and for installs of a filter, by 64-bit and by 32-bit callers.
 */

static void enable_cap(int fd, struct kvm_enable_cap cap)
{
	saw_result(ioctl(fd, KVM_ENABLE_CAP, &cap));
}

static void check_extension(int fd, int cap)
{
	int result = ioctl(fd, KVM_CHECK_EXTENSION, cap);

	if (result < 0)
		saw_error(errno);
	else if (result)
		saw("got(%#x)", result);
	else
		saw("got(0)");
}

/* An install that succeeds returns 0, and nothing else that is not negative. */
static void saw_install(int result)
{
	if (result > 0)
		saw("got(%#x)", result);
	else
		saw_result(result);
}

static void install(int fd, unsigned long number, const void *argp)
{
	saw_install(ioctl(fd, number, argp));
}

/* A child leaves a status only where SIGCHLD is not ignored, as who started us may have it. */
static pid_t fork_child(void)
{
	pid_t child;

	signal(SIGCHLD, SIG_DFL);
	child = fork();
	if (child < 0)
		die("fork");
	return child;
}

static int status_of(pid_t child)
{
	int status;

	while (waitpid(child, &status, 0) < 0)
		if (errno != EINTR)
			die("waitpid");
	return status;
}

/* The ioctl by a forked process, whose memory is not the VM's. */
static void install_in_child(int fd, unsigned long number, const void *argp)
{
	pid_t child = fork_child();
	int result, status;

	if (child == 0) {
		result = ioctl(fd, number, argp);
		_exit(result < 0 ? errno : result ? 0xff : 0);	/* 0xff: not 0, and no errno */
	}
	status = status_of(child);
	errno = EINTR;
	if (!WIFEXITED(status))
		die("the child that installs");
	if (status == 0)
		saw("done");
	else
		saw_error(WEXITSTATUS(status));
}

/* The 32-bit entry of a 64-bit kernel; it zeroes r8 to r11. */
static int ioctl_compat(int fd, unsigned long number, const void *argp)
{
	long result = 54;	/* ia32 __NR_ioctl */

	__asm__ volatile("int $0x80"
			 : "+a"(result)
			 : "b"((long)fd), "c"(number), "d"(argp)
			 : "memory", "r8", "r9", "r10", "r11");
	return (int)result;
}

static void install_compat(int fd, unsigned long number, const void *argp)
{
	int result = ioctl_compat(fd, number, argp);

	if (result < 0)
		saw_error(-result);
	else
		saw_install(result);
}

/* Without ia32 emulation the 32-bit entry is a fault, which only a child can take. */
static const char *lacks_compat(void)
{
	pid_t child = fork_child();
	int status;

	if (child == 0)
		_exit(ioctl_compat(kvm, KVM_GET_API_VERSION, NULL) != KVM_API_VERSION);
	status = status_of(child);
	if (WIFSIGNALED(status))
		return "compat syscalls: this kernel has no ia32 emulation";
	return status ? "compat syscalls: int $0x80 is refused here" : NULL;
}

/* The filter as a 32-bit caller lays it out. */
struct compat_filter {
	__u32 flags;
	struct {
		__u32 flags, nmsrs, base, bitmap;
	} ranges[KVM_MSR_FILTER_MAX_RANGES];
};

#define KVM_X86_SET_MSR_FILTER_COMPAT _IOW(KVMIO, 0xc6, struct compat_filter)

/* What the kernel reads as a bitmap, but no more than a page. */
static size_t bitmap_size(__u32 nmsrs)
{
	size_t size = ((__u64)nmsrs + 63) / 64 * 8;

	return size < PAGE ? size : PAGE;
}

/* The copies below 4 GiB of the last filter's bitmaps. */
static __u8 *low_bitmaps;
static size_t low_size;

/* Where a 32-bit caller can point to: a copy, if the bitmap lies above. */
static __u8 *low_bitmap(const struct kvm_msr_filter_range *range)
{
	__u64 at = (unsigned long)range->bitmap;
	size_t size = bitmap_size(range->nmsrs);
	__u8 *copy = low_bitmaps + low_size;

	if (at < 1ull << 32 || at >> 63)
		return range->bitmap;
	memcpy(copy, range->bitmap, size);
	low_size += size;
	return copy;
}

static void make_low_bitmaps(void)
{
	low_bitmaps = map_low(KVM_MSR_FILTER_MAX_RANGES * PAGE);
	low_size = 0;
}

/* The filter with garbage in its padding, which is nobody's to read. */
static struct kvm_msr_filter *holes(struct kvm_msr_filter *filter)
{
	const size_t last = sizeof(filter->ranges->bitmap) + 4;

	memset((char *)filter + sizeof(filter->flags), 0xa5, 4);
	for (int i = 0; i < KVM_MSR_FILTER_MAX_RANGES; i++)
		memset((char *)&filter->ranges[i] + sizeof(filter->ranges[i]) - last, 0xa5, 4);
	return filter;
}

/* The same filter below 4 GiB. */
static void *low(const struct kvm_msr_filter *filter)
{
	struct kvm_msr_filter *copy = map_low(sizeof(*copy));

	make_low_bitmaps();
	*copy = *filter;
	for (int i = 0; i < KVM_MSR_FILTER_MAX_RANGES; i++)
		copy->ranges[i].bitmap = low_bitmap(&filter->ranges[i]);
	return holes(copy);
}

/* The same filter in the 32-bit layout, below 4 GiB. */
static void *low_compat(const struct kvm_msr_filter *filter)
{
	struct compat_filter *copy = map_low(sizeof(*copy));

	make_low_bitmaps();
	copy->flags = filter->flags;
	for (int i = 0; i < KVM_MSR_FILTER_MAX_RANGES; i++) {
		copy->ranges[i].flags = filter->ranges[i].flags;
		copy->ranges[i].nmsrs = filter->ranges[i].nmsrs;
		copy->ranges[i].base = filter->ranges[i].base;
		copy->ranges[i].bitmap = (unsigned long)low_bitmap(&filter->ranges[i]);
	}
	return copy;
}

/*
 * Return a copy of the bitmap whose last byte is the last before an inaccessible page: to be read
 * only.
 */
static __u8 *at_edge(const __u8 *bits, size_t size)
{
	__u8 *pages = map_low(2 * PAGE);

	memcpy(pages + PAGE - size, bits, size);
	if (mprotect(pages, PAGE, PROT_READ) < 0 || mprotect(pages + PAGE, PAGE, PROT_NONE) < 0)
		die("mprotect");
	return pages + PAGE - size;
}

static void *unmapped(void)
{
	void *page = map_low(PAGE);

	if (mprotect(page, PAGE, PROT_NONE) < 0)
		die("mprotect");
	return page;
}

/* Overwrite, in user memory, what the kernel must have copied. */
static void scribble_bitmap(__u8 *bitmap, size_t size)
{
	while (size--)
		bitmap[size] ^= 0xff;
}
