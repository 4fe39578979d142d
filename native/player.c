/*
 * msrward-player: does what a tape says, and writes down what it sees.
 *
 * It needs no shared library and nothing but /dev, /proc and /sys. A supervisor reads the tape and
 * forks workers that do the cases; what takes too long it kills, and what a case does to its worker
 * is that case's alone. It decides nothing and expects nothing: what it writes is read where the
 * contract is (msrward judge; vmm/conformance/judge/trace.py says what each line means).
 */
#include "tape.c"

#include <ctype.h>
#include <dirent.h>
#include <sys/prctl.h>

enum { MAX_WORKERS = 16, MAX_NEEDS = 64, MAX_TEXTS = 1 << 14, MAX_LINE = 1 << 17, LEAVES_WITHIN = 5000 };

/* --- what is written ---------------------------------------------------------------------- */

/* Number the lines, and say how long each is: on a serial line a byte can be lost. */
static int is_framed;
static unsigned long n_lines;

/* A line in which nothing is a control byte, whoever it comes from. */
static void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void say(const char *format, ...)
{
	static char plain[MAX_LINE], line[4 * MAX_LINE];
	char *to = line;
	va_list args;

	va_start(args, format);
	vsnprintf(plain, sizeof(plain), format, args);
	va_end(args);
	for (const char *from = plain; *from; from++)
		if (*from == '\\' || !isprint((unsigned char)*from))
			to += sprintf(to, "\\x%02x", (unsigned char)*from);
		else
			*to++ = *from;
	*to = 0;
	if (is_framed)
		printf("%lu %zu 0 ", ++n_lines, (size_t)(to - line));
	fputs(line, stdout);
	putchar('\n');
}

/* A trace that is not written is worth nothing: end, and the workers with it. */
static void flush(void)
{
	if (!fflush(stdout) && !ferror(stdout))
		return;
	fprintf(stderr, "msrward-player: the trace cannot be written: %s\n", strerror(errno));
	_exit(TROUBLE);
}

/* What steps left is written once, and then called by its number: a serial line is slow. */
static char *texts[MAX_TEXTS];
static unsigned int n_texts, text_at[2 * MAX_TEXTS];

static unsigned int number_of(const char *text)
{
	unsigned int at = crc32((const __u8 *)text, strlen(text)) % (2 * MAX_TEXTS);

	while (text_at[at] && strcmp(texts[text_at[at] - 1], text))
		at = (at + 1) % (2 * MAX_TEXTS);
	if (text_at[at])
		return text_at[at];
	errno = E2BIG;
	if (n_texts == MAX_TEXTS)
		die("the texts of a trace");
	texts[n_texts] = strdup(text);
	if (!texts[n_texts])
		die("strdup");
	say("text %u %s", n_texts + 1, text);
	return text_at[at] = ++n_texts;
}

/* --- the tape ----------------------------------------------------------------------------- */

struct record {
	__u8 kind, flags;
	__u32 deadline;		/* ms */
	char id[256];
	char needs[8][40];
	int n_needs;
	struct cursor rest;
};

static struct record *records;
static __u32 n_records;
static char lacking[MAX_NEEDS][40];
static int n_lacking;

static void read_record(struct cursor tape, struct record *record)
{
	record->kind = u8(&tape);
	text(&tape, record->id, sizeof(record->id));
	if (record->kind == CASE) {
		record->flags = u8(&tape);
		record->deadline = u32(&tape);
		record->n_needs = below(&tape, 9);
		for (int i = 0; i < record->n_needs; i++)
			text(&tape, record->needs[i], sizeof(record->needs[i]));
	} else if (record->kind != NEED && record->kind != PARAMETER) {
		damaged("a record of no known kind");
	}
	record->rest = tape;
}

/* The tape as a whole, or stdin for "-". */
static struct cursor load(const char *path)
{
	size_t room = 1 << 20, size = 0;
	int fd = strcmp(path, "-") ? open(path, O_RDONLY | O_CLOEXEC) : 0;
	__u8 *all = malloc(room);
	ssize_t got;

	if (fd < 0)
		die(path);
	while (all && (got = read(fd, all + size, room - size)) != 0) {
		if (got < 0)
			die(path);
		size += got;
		if (size > 64 << 20)
			damaged("it is longer than 64 MiB");
		if (size == room)
			all = realloc(all, room *= 2);
	}
	if (!all)
		die("the tape");
	return (struct cursor){ all, all + size };
}

static void read_tape(const char *path)
{
	struct cursor tape = load(path);
	__u32 version, size, crc;

	if (tape.end - tape.at < HEADER || memcmp(take(&tape, 8), "MSRWTAPE", 8))
		damaged("it does not begin as one");
	version = u32(&tape);
	if (version != VERSION) {
		fprintf(stderr, "msrward-player: the tape is of version %08x, and this player of %08x: "
				"take both from one msrward\n", version, VERSION);
		exit(TROUBLE);
	}
	n_records = u32(&tape);
	size = u32(&tape);
	crc = u32(&tape);
	if (size != tape.end - tape.at || crc != crc32(tape.at, size))
		damaged("its length or its checksum is wrong");
	if (n_records > 1 << 20)
		damaged("so many records");
	records = calloc(n_records + 1, sizeof(*records));
	if (!records)
		die("the tape");
	for (__u32 i = 0; i < n_records; i++)
		read_record(part(&tape, u32(&tape)), &records[i]);
	say("msrward-player %08x %08x %u", VERSION, crc, n_records);
}

/* A worker: a process, the pipe that it writes to, and the record that it is at. */
struct worker {
	pid_t pid;
	int fd, commands;
	int record;		/* -1: none */
	int is_killed, is_spent, used, began;
	struct patience patience;
	char partial[MAX_LINE];
	/* What its case left so far: " 1 4*3", the last of it from last_at on. */
	char steps[MAX_LINE / 2];
	size_t noted, last_at;
	unsigned int last_text;
	int times;
};

static struct worker workers[MAX_WORKERS];

static int needs_what_lacks(const struct record *record)
{
	for (int i = 0; i < record->n_needs; i++)
		for (int j = 0; j < n_lacking; j++)
			if (!strcmp(record->needs[i], lacking[j]))
				return i + 1;
	return 0;
}

static void play(int number)
{
	const struct record *record = &records[number];

	if (record->kind == NEED) {
		const char *why = lacks(record->id);

		if (why)
			printf("lacks %d %s %s\n", number, record->id, why);
		return;
	}
	play_case(number, record->rest, record->flags);
}

static void serve(int commands)
{
	__u32 number;

	while (read(commands, &number, sizeof(number)) == sizeof(number)) {
		play(number);
		printf("%s %u\n", is_spent ? "spent" : "end", number);
		fflush(stdout);
		if (is_spent)
			break;
	}
	exit(0);
}

static void hire(struct worker *worker)
{
	int lines[2], commands[2];

	if (pipe2(lines, O_CLOEXEC) < 0 || pipe2(commands, O_CLOEXEC) < 0)
		die("msrward-player: pipes for a worker (-j asks for fewer, ulimit -n allows more)");
	flush();
	worker->pid = fork();
	if (worker->pid < 0)
		die("msrward-player: a worker (-j asks for fewer, ulimit -u allows more)");
	if (worker->pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		dup2(lines[1], 1);
		dup2(lines[1], 2);
		for (struct worker *each = workers; each < workers + MAX_WORKERS; each++)
			if (each->pid && each != worker)
				close(each->commands);
		close(commands[1]);
		open_kvm();
		serve(commands[0]);
	}
	close(lines[1]);
	close(commands[0]);
	fcntl(lines[0], F_SETFL, O_NONBLOCK);
	worker->fd = lines[0];
	worker->commands = commands[1];
	worker->record = -1;
	worker->is_killed = worker->is_spent = worker->used = 0;
}

static int kmsg = -1;
static long taint;

static long read_taint(void)
{
	FILE *file = fopen("/proc/sys/kernel/tainted", "r");
	long value = 0;

	if (file && fscanf(file, "%ld", &value) != 1)
		value = 0;
	if (file)
		fclose(file);
	return value;
}

/* What the kernel said since the last look: raw records of /dev/kmsg. */
static void look_at_the_log(void)
{
	char line[8193];
	ssize_t size;
	long now = read_taint();

	while (kmsg >= 0 && ((size = read(kmsg, line, sizeof(line) - 1)) > 0 || errno == EPIPE)) {
		if (size < 0) {
			say("lost");
			continue;
		}
		line[size] = 0;
		say("log %s", line);
	}
	if (now != taint)
		say("taint %ld", taint = now);
}

static void finish_record(struct worker *worker, const char *how)
{
	look_at_the_log();
	say("done %d %d %s%s", worker->record, ms_of_clock() - worker->began, how, worker->steps);
	flush();
	worker->record = -1;
}

/* A step is the number of its text; the same again and again is counted. */
static void note_step(struct worker *worker, unsigned int text)
{
	size_t room = sizeof(worker->steps) - worker->noted;

	if (text == worker->last_text)
		worker->times++;
	else
		worker->times = 1, worker->last_at = worker->noted;
	worker->last_text = text;
	worker->noted = worker->last_at;
	room = sizeof(worker->steps) - worker->noted;
	if (worker->times == 1)
		worker->noted += snprintf(worker->steps + worker->noted, room, " %u", text);
	else
		worker->noted += snprintf(worker->steps + worker->noted, room, " %u*%d", text,
					  worker->times);
	if (worker->noted >= sizeof(worker->steps))
		die("the steps of a case");
}

/* A whole line of a worker: what it may say about the record that it is at, or anything else. */
static void forward(struct worker *worker, const char *line)
{
	char step[32], lack[32], end[32], spent[32];
	int size = 0, nothing;

	snprintf(step, sizeof(step), "step %d ", worker->record);
	snprintf(lack, sizeof(lack), "lacks %d ", worker->record);
	snprintf(end, sizeof(end), "end %d", worker->record);
	snprintf(spent, sizeof(spent), "spent %d", worker->record);
	if (!strncmp(line, step, strlen(step)) &&
	    sscanf(line, "step %*d %d %n", &nothing, &size) == 1) {
		note_step(worker, number_of(line + size));
	} else if (!strncmp(line, lack, strlen(lack))) {
		say("%s", line);
		if (n_lacking < MAX_NEEDS &&
		    sscanf(line, "lacks %*d %39s%n", lacking[n_lacking], &size) == 1)
			n_lacking++;
	} else if (!strcmp(line, end)) {
		finish_record(worker, "ok");
	} else if (!strcmp(line, spent)) {
		finish_record(worker, "ok");
		worker->is_spent = 1;	/* it ends by itself */
	} else {
		say("said %d %s", worker->record, line);
	}
}

static int read_worker(struct worker *worker)
{
	ssize_t got = read(worker->fd, worker->partial + worker->used,
			   sizeof(worker->partial) - 1 - worker->used);
	char *line = worker->partial, *end;

	if (got <= 0)
		return 0;
	worker->used += got;
	worker->partial[worker->used] = 0;
	while ((end = strchr(line, '\n'))) {
		*end = 0;
		forward(worker, line);
		line = end + 1;
	}
	worker->used -= line - worker->partial;
	memmove(worker->partial, line, worker->used);
	if (worker->used == sizeof(worker->partial) - 1)
		worker->used = 0;	/* no line is that long */
	return 1;
}

static void bury(struct worker *worker)
{
	char how[64];
	int status;

	if (waitpid(worker->pid, &status, WNOHANG) != worker->pid)
		return;
	while (read_worker(worker))
		;
	if (worker->is_killed)
		snprintf(how, sizeof(how), "timeout");
	else if (WIFSIGNALED(status))
		snprintf(how, sizeof(how), "died-%d", WTERMSIG(status));
	else
		snprintf(how, sizeof(how), "exited-%d", WEXITSTATUS(status));
	if (worker->record >= 0)
		finish_record(worker, how);
	close(worker->fd);
	close(worker->commands);
	worker->pid = 0;
}

static void assign(struct worker *worker, __u32 number)
{
	if (!worker->pid)
		hire(worker);
	worker->record = number;
	worker->began = ms_of_clock();
	worker->patience = patience_of(records[number].kind == CASE ? records[number].deadline : DEADLINE);
	worker->noted = worker->last_text = worker->times = 0;
	worker->steps[0] = 0;
	say("begin %u", number);
	flush();
	if (write(worker->commands, &number, sizeof(number)) != sizeof(number))
		return;	/* it is dead: bury() says so */
}

/* A killed worker that does not die is held by the kernel: leave it behind. */
static void overdue(struct worker *worker)
{
	if (worker->is_killed) {
		finish_record(worker, "stuck");
		close(worker->fd);
		close(worker->commands);
		worker->pid = 0;
		return;
	}
	worker->is_killed = 1;
	worker->patience = patience_of(1000);
	kill(worker->pid, SIGKILL);
}

static int wait_for_workers(int jobs)
{
	struct pollfd fds[MAX_WORKERS];
	int busy = 0, beat = ms_of_clock();
	static int last_beat;

	for (int i = 0; i < jobs; i++) {
		fds[i] = (struct pollfd){ .fd = workers[i].pid ? workers[i].fd : -1, .events = POLLIN };
		busy += workers[i].pid && (workers[i].record >= 0 || workers[i].is_spent);
	}
	if (!busy)
		return 0;
	poll(fds, jobs, SLICE);
	for (int i = 0; i < jobs; i++) {
		if (!workers[i].pid)
			continue;
		if (fds[i].revents & POLLIN)
			read_worker(&workers[i]);
		if (fds[i].revents & POLLHUP)
			bury(&workers[i]);
		if (workers[i].pid && workers[i].record >= 0 && !is_left(&workers[i].patience))
			overdue(&workers[i]);
	}
	if (beat - last_beat > 1000) {
		say("beat");
		flush();
		last_beat = beat;
	}
	return 1;
}

/* Let the workers end, who have nothing to do; one that does not (it may be stopped) is killed. */
static void dismiss(int jobs)
{
	for (int i = 0; i < jobs; i++) {
		struct pollfd ended = { .fd = workers[i].fd };

		if (!workers[i].pid)
			continue;
		close(workers[i].commands);
		if (poll(&ended, 1, LEAVES_WITHIN) <= 0)
			kill(workers[i].pid, SIGKILL);
		waitpid(workers[i].pid, NULL, 0);
		close(workers[i].fd);
		workers[i].pid = 0;
	}
}

static void set_parameter(const char *name, struct cursor tape, int is_own)
{
	char path[300], value[64];
	int fd;

	snprintf(path, sizeof(path), "/sys/module/kvm/parameters/%s", name);
	text(&tape, value, sizeof(value));
	fd = is_own && !strchr(name, '/') ? open(path, O_WRONLY | O_CLOEXEC) : -1;
	if (fd >= 0 && write(fd, value, strlen(value)) > 0)
		say("parameter %s %s", name, value);
	else
		say("parameter %s is left as it is", name);
	close(fd);
}

static void play_all(int jobs, int is_own)
{
	__u32 next = 0;

	for (;;) {
		struct record *record = &records[next];
		int at_once = next < n_records && record->kind == CASE ? jobs : 1, idle = -1;

		for (int i = 0; i < at_once && idle < 0; i++)
			if (!workers[i].pid || (workers[i].record < 0 && !workers[i].is_killed && !workers[i].is_spent))
				idle = i;
		if (next == n_records || idle < 0 || record->kind == PARAMETER) {
			if (wait_for_workers(jobs))
				continue;
			if (next == n_records)
				break;
		}
		if (record->kind == PARAMETER) {
			set_parameter(record->id, record->rest, is_own);
			next++;
		} else if (record->kind == CASE && needs_what_lacks(record)) {
			say("without %u %s", next, record->needs[needs_what_lacks(record) - 1]);
			next++;
		} else if (record->kind == CASE || !wait_for_workers(jobs)) {
			assign(&workers[idle], next++);
		}
	}
	dismiss(jobs);
}

/* --- facts -------------------------------------------------------------------------------- */

/* The start of a small file, as it is. */
static void tell_file(const char *path)
{
	char content[4097];
	int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	ssize_t size = fd < 0 ? -1 : read(fd, content, sizeof(content) - 1);

	if (fd >= 0)
		close(fd);
	if (size <= 0)
		return;
	content[size] = 0;
	say("fact %s %s", path, content);
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
		"/proc/sys/kernel/osrelease", "/proc/sys/kernel/version", "/proc/sys/kernel/arch",
		"/proc/sys/kernel/random/boot_id", "/proc/sys/kernel/hostname", "/proc/cmdline",
		"/proc/cpuinfo", "/proc/modules", "/proc/meminfo", "/proc/sys/kernel/tainted",
		"/sys/devices/system/cpu/online", "/sys/hypervisor/type",
		"/sys/devices/system/clocksource/clocksource0/current_clocksource",
		"/sys/class/dmi/id/sys_vendor", "/sys/class/dmi/id/product_name",
	};

	for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++)
		tell_file(files[i]);
	tell_modules();
	say("capability KVM_CAP_X86_USER_SPACE_MSR %d",
	    ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_X86_USER_SPACE_MSR));
	say("capability KVM_CAP_X86_MSR_FILTER %d",
	    ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_X86_MSR_FILTER));
}

/* Play the tape to its end; the exit status. */
static int play_tape(const char *path, int jobs, int is_own)
{
	signal(SIGPIPE, SIG_IGN);
	read_tape(path);
	open_kvm();
	tell_facts();
	kmsg = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (kmsg < 0 || lseek(kmsg, 0, SEEK_END) < 0)
		say("unwatched %s", strerror(errno));
	taint = read_taint();
	play_all(jobs, is_own);
	look_at_the_log();
	say("over %u", n_records);
	flush();
	return PASS;
}

#include "guest.c"

static int usage(FILE *to)
{
	fprintf(to, "usage: msrward-player [-jN] [--own] TAPE\n"
			"Play a tape that `msrward tape` wrote (- for stdin); `msrward judge` reads what it says.\n"
			"  -jN    so many workers at once, 1 to %d (1)\n"
			"  --own  the kernel is the tape's: set module parameters as it says\n",
		MAX_WORKERS);
	return TROUBLE;
}

int main(int argc, char **argv)
{
	int jobs = 1, is_own = 0, i;
	char more;

	if (getpid() == 1)
		be_init();
	if (fcntl(1, F_GETFD) < 0)
		die("msrward-player: the trace cannot be written");
	for (i = 1; i < argc && argv[i][0] == '-' && argv[i][1]; i++) {
		if (!strcmp(argv[i], "--own"))
			is_own = 1;
		else if (!strcmp(argv[i], "-h") || !strcmp(argv[i], "--help"))
			return usage(stdout), PASS;
		else if (sscanf(argv[i], "-j%d%c", &jobs, &more) != 1 || jobs < 1 || jobs > MAX_WORKERS)
			return usage(stderr);
	}
	return i == argc - 1 ? play_tape(argv[i], jobs, is_own) : usage(stderr);
}
