/*
 * The player as the first process of a lab's guest: mounts what it reads, loads KVM, plays
 * /suite.tape, and tells how that went on the second serial port, which carries nothing else.
 */
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <termios.h>

static void power_off(void)
{
	fflush(stdout);
	tcdrain(1);
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}

static double uptime(void)
{
	return number_in("/proc/uptime", 0);
}

static void open_port(const char *path)
{
	struct termios raw;
	int port = open(path, O_RDWR | O_NOCTTY);

	if (port < 0)
		return;
	tcgetattr(port, &raw);
	cfmakeraw(&raw);
	cfsetspeed(&raw, B115200);
	tcsetattr(port, TCSANOW, &raw);
	dup2(port, 1);
	close(port);
}

/* The arguments of a module, one a line, as one line. */
static void read_arguments(const char *module, char *into, size_t room)
{
	char path[300];
	ssize_t size;
	int fd;

	snprintf(path, sizeof(path), "%.*s.args", (int)strlen(module) - 3, module);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	size = fd < 0 ? 0 : read(fd, into, room - 1);
	close(fd);
	into[size < 0 ? 0 : size] = 0;
	for (char *each = into; *each; each++)
		if (*each == '\n')
			*each = ' ';
}

static void load_module(const char *name)
{
	char path[280], arguments[4096];
	int fd;

	snprintf(path, sizeof(path), "/modules/%s", name);
	read_arguments(path, arguments, sizeof(arguments));
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || syscall(SYS_finit_module, fd, arguments, 0) < 0)
		printf("refused %s %s\n", name, strerror(errno));
	close(fd);
}

static int is_module(const struct dirent *each)
{
	size_t size = strlen(each->d_name);

	return size > 3 && !strcmp(each->d_name + size - 3, ".ko");
}

static void load_modules(void)
{
	struct dirent **modules;
	int count = scandir("/modules", &modules, is_module, alphasort);

	for (int i = 0; i < count; i++)
		load_module(modules[i]->d_name);
}

static int jobs_of_guest(void)
{
	double jobs = number_in("/jobs", 1);

	return jobs < 1 ? 1 : jobs > MAX_WORKERS ? MAX_WORKERS : (int)jobs;
}

static int write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	int is_written = fd >= 0 && write(fd, text, strlen(text)) > 0;

	close(fd);
	return is_written;
}

/* A memory cgroup for all that follows, where there are some: the root's memory nobody counts. */
static void enter_cgroup(void)
{
	if (mount("cgroup", "/sys/fs/cgroup", "cgroup2", 0, NULL) < 0 ||
	    !write_text("/sys/fs/cgroup/cgroup.subtree_control", "+memory") ||
	    mkdir("/sys/fs/cgroup/payload", 0755) < 0 ||
	    !write_text("/sys/fs/cgroup/payload/cgroup.procs", "1"))
		fprintf(stderr, "no memory cgroup: %s\n", strerror(errno));
}

static void be_init(void)
{
	int status;

	mount("dev", "/dev", "devtmpfs", 0, NULL);
	mount("proc", "/proc", "proc", 0, NULL);
	sethostname("lab", 3);
	open_port("/dev/ttyS1");
	printf("start %.2f\n", uptime());
	mount("sys", "/sys", "sysfs", 0, NULL);
	enter_cgroup();
	load_modules();
	if (access("/dev/kvm", F_OK) < 0) {
		printf("nokvm\n");
		power_off();
	}
	printf("kvm %.2f\n", uptime());
	fflush(stdout);
	is_framed = 1;
	status = play_tape("/suite.tape", jobs_of_guest(), 1);
	printf("end %d %lu %.2f\n", status, n_lines, uptime());
	power_off();
}
