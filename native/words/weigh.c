/*
 * The word for what a filter's bitmaps weigh in the memory cgroup of who installs it: the counter
 * of that cgroup before and after many VMs got a filter, and after they lost it again.
 */

enum {
	WEIGHED_VMS = 32, TRIED_VMS = 16,
	WEIGHED_SIZE = 0x600,		/* the largest bitmap that a range can have */
	WEIGHED_ALL = WEIGHED_VMS * KVM_MSR_FILTER_MAX_RANGES * WEIGHED_SIZE,
	VM_WEIGHS = 8 << 10,	/* what a VM takes at the least: all kernels charge for it */
	/* others of the cgroup come in between: so many must agree */
	WEIGHINGS = 9, SAME = 3,
};

/* Where a hierarchy of cgroups is mounted: the one of "memory" alone, or the one of all (v2). */
static int find_cgroups(int is_v2, char *at, size_t size)
{
	char line[4096], place[1024], type[64], options[1024];
	FILE *mounts = fopen("/proc/self/mounts", "r");
	int found = 0;

	while (mounts && !found && fgets(line, sizeof(line), mounts)) {
		if (sscanf(line, "%*s %1023s %63s %1023s", place, type, options) != 3)
			continue;
		found = is_v2 ? !strcmp(type, "cgroup2") :
			!strcmp(type, "cgroup") && strstr(options, "memory");
	}
	if (mounts)
		fclose(mounts);
	if (found)
		snprintf(at, size, "%s", place);
	return found;
}

/* This process's cgroup, below where its hierarchy is mounted. */
static int find_own_cgroup(int *is_v2, char *path, size_t size)
{
	char line[4096], *controllers, *own;
	FILE *file = fopen("/proc/self/cgroup", "r");
	int found = 0;

	while (file && fgets(line, sizeof(line), file)) {
		line[strcspn(line, "\n")] = 0;
		controllers = strchr(line, ':');
		own = controllers ? strchr(controllers + 1, ':') : NULL;
		if (!own)
			continue;
		*own++ = 0;
		if (strcmp(controllers, ":memory") && (found || controllers[1]))
			continue;
		*is_v2 = !controllers[1];
		snprintf(path, size, "%s", own);
		found = 1;
		if (!*is_v2)
			break;
	}
	if (file)
		fclose(file);
	return found;
}

/* The bytes that this process's memory cgroup is charged for, or -1: it has no counter. */
static long long weigh_cgroup(void)
{
	static const char *const counters[] = {
		"memory.kmem.usage_in_bytes", "memory.usage_in_bytes",
	};
	char at[1024], path[2048], name[4096];
	long long bytes = -1;
	int is_v2;

	if (!find_own_cgroup(&is_v2, path, sizeof(path)) || !find_cgroups(is_v2, at, sizeof(at)))
		return -1;
	for (int i = 0; i < (is_v2 ? 1 : 2) && bytes < 0; i++) {
		FILE *file;

		snprintf(name, sizeof(name), "%s%s/%s", at, path,
			 is_v2 ? "memory.current" : counters[i]);
		file = fopen(name, "r");
		if (file && fscanf(file, "%lld", &bytes) != 1)
			bytes = -1;
		if (file)
			fclose(file);
	}
	return bytes;
}

static void make_weighed(int *fds, int count)
{
	for (int i = 0; i < count; i++)
		fds[i] = create_vm();
}

static void close_weighed(const int *fds, int count)
{
	for (int i = 0; i < count; i++)
		close(fds[i]);
}

static void filter_weighed(const int *fds, const struct kvm_msr_filter *filter)
{
	for (int i = 0; i < WEIGHED_VMS; i++)
		if (ioctl(fds[i], KVM_X86_SET_MSR_FILTER, filter) < 0)
			die("KVM_X86_SET_MSR_FILTER");
}

/* What the cgroup is charged for bitmaps: what rises or falls for another reason goes into both. */
static long long weigh_once(const int *fds, const struct kvm_msr_filter *full)
{
	static const struct kvm_msr_filter none;
	long long before = weigh_cgroup(), with, without;

	filter_weighed(fds, full);
	with = weigh_cgroup();
	filter_weighed(fds, &none);
	without = weigh_cgroup();
	return with - (before + without) / 2;
}

/* The same filter, of as large bitmaps as there can be, in many VMs. */
static void weigh_bitmaps(void)
{
	static __u8 bitmap[WEIGHED_SIZE];
	struct kvm_msr_filter full = { 0 };
	int fds[WEIGHED_VMS], charged = 0, free_of_charge = 0;

	for (int i = 0; i < KVM_MSR_FILTER_MAX_RANGES; i++)
		full.ranges[i] = (struct kvm_msr_filter_range){
			.flags = KVM_MSR_FILTER_READ, .base = 0x474f4f00,
			.nmsrs = 8 * WEIGHED_SIZE, .bitmap = bitmap,
		};
	make_weighed(fds, WEIGHED_VMS);
	for (int i = 0; i < WEIGHINGS && charged < SAME && free_of_charge < SAME; i++) {
		long long charge = weigh_once(fds, &full);

		charged += charge > WEIGHED_ALL / 2;
		free_of_charge += llabs(charge) < WEIGHED_ALL / 4;
	}
	close_weighed(fds, WEIGHED_VMS);
	if (charged == SAME)
		saw("got(0x1)");
	else if (free_of_charge == SAME)
		saw("got(0)");
	else
		saw("Lost('the memory cgroup is not at rest')");
}

/* What VMs add to the charge, and what others take away meanwhile. */
static long long weigh_vms(void)
{
	int fds[TRIED_VMS];
	long long before = weigh_cgroup(), with;

	make_weighed(fds, TRIED_VMS);
	with = weigh_cgroup();
	close_weighed(fds, TRIED_VMS);
	return with - before;
}

static const char *lacks_memory_cgroup(void)
{
	if (weigh_cgroup() < 0)
		return for_sure("no counter of a memory cgroup can be read here: run in a cgroup that has one");
	for (int i = 0; i < WEIGHINGS; i++)
		if (weigh_vms() > TRIED_VMS * VM_WEIGHS)
			return NULL;
	return "the memory cgroup is not charged for what the kernel has: no VM counts";
}
