/*
 * What the host is: small files as they are, for the judge to read.
 */
#include <sys/utsname.h>

/* The start of a small file, as it is; 0 if there is none. */
static int tell_file(const char *path)
{
	char content[4097];
	int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	ssize_t size = fd < 0 ? -1 : read(fd, content, sizeof(content) - 1);

	if (fd >= 0)
		close(fd);
	if (size <= 0)
		return 0;
	content[size] = 0;
	say("fact %s %s", path, content);
	return 1;
}

/* What uname says as well, for a machine without /proc/sys. */
static void tell_kernel(void)
{
	struct utsname name;

	uname(&name);
	if (!tell_file("/proc/sys/kernel/osrelease"))
		say("fact /proc/sys/kernel/osrelease %s", name.release);
	if (!tell_file("/proc/sys/kernel/version"))
		say("fact /proc/sys/kernel/version %s", name.version);
	if (!tell_file("/proc/sys/kernel/arch"))
		say("fact /proc/sys/kernel/arch %s", name.machine);
}

static void tell_folder(const char *path)
{
	DIR *folder = opendir(path);
	struct dirent *each;
	char inner[1024];

	while (folder && (each = readdir(folder))) {
		if (each->d_name[0] == '.')
			continue;
		snprintf(inner, sizeof(inner), "%s/%s", path, each->d_name);
		tell_file(inner);
	}
	if (folder)
		closedir(folder);
}

/* Which modules hold or are KVM, each with its parameters. */
static void tell_modules(void)
{
	DIR *modules = opendir("/sys/module");
	struct dirent *each;
	char path[512];

	while (modules && (each = readdir(modules))) {
		if (strncmp(each->d_name, "kvm", 3))
			continue;
		say("module %s", each->d_name);
		snprintf(path, sizeof(path), "/sys/module/%s/parameters", each->d_name);
		tell_folder(path);
	}
	if (modules)
		closedir(modules);
}

static void tell_facts(void)
{
	static const char * const files[] = {
		"/proc/sys/kernel/random/boot_id", "/proc/sys/kernel/hostname", "/proc/cmdline",
		"/proc/cpuinfo", "/proc/modules", "/proc/meminfo", "/proc/sys/kernel/tainted",
		"/sys/devices/system/cpu/online", "/sys/hypervisor/type",
		"/sys/devices/system/clocksource/clocksource0/current_clocksource",
		"/sys/class/dmi/id/sys_vendor", "/sys/class/dmi/id/product_name",
	};

	tell_kernel();
	for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++)
		tell_file(files[i]);
	tell_modules();
	say("capability KVM_CAP_X86_USER_SPACE_MSR %d",
	    ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_X86_USER_SPACE_MSR));
	say("capability KVM_CAP_X86_MSR_FILTER %d",
	    ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_X86_MSR_FILTER));
}
