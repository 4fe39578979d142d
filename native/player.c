/*
 * msrward-player: does what a tape says, with the words of words.c, and writes down what it sees.
 *
 * It needs no shared library and nothing but /dev, /proc and /sys. A supervisor reads the tape and
 * forks workers that do the cases; what takes too long it kills, and what a case does to its worker
 * is that case's alone. It decides nothing and expects nothing: what it writes is read where the
 * contract is (msrward judge).
 */
#include "words.c"

#include <ctype.h>
#include <dirent.h>
#include <sys/prctl.h>
#include <sys/stat.h>

enum { VERSION = 1, HEADER = 24, MAX_WORKERS = 16, MAX_NEEDS = 64, POOLED = 2 };

/* What a record of a tape is. */
enum { NEED = 1, PARAMETER, CASE };

/* What a case is: "keeps" says that its VM serves others after it. */
enum { KEEPS = 1, MAKES_VCPUS = 2 };

/* The actions, as a tape numbers them. */
enum {
	ACCESS = 1, BEGIN, SPIN, COMPLETE, FINISH, SET_REGS, GET_REGS, ENABLE_CAP, INSTALL, SCRIBBLE,
	CHECK_EXTENSION, GET_MSR, SET_MSR, CREATE_IRQCHIP, CREATE_VCPU, SET_CPUID, BEGIN_INSTALL,
	MEANWHILE, RESUME_INSTALL, AWAIT, PARK, RELEASE, UNTIL_EXITS, UNTIL_RUNS, STOP_SPIN, CLOSE_VM,
	CLOSE_VCPU, SWEEP,
};

struct cursor {
	const __u8 *at, *end;
};

static void damaged(const char *why)
{
	fprintf(stderr, "msrward-player: the tape is damaged: %s\n", why);
	exit(TROUBLE);
}

static const __u8 *take(struct cursor *tape, size_t size)
{
	const __u8 *at = tape->at;

	if (size > (size_t)(tape->end - at))
		damaged("it ends in the middle of a word");
	tape->at += size;
	return at;
}

static __u64 number(struct cursor *tape, size_t size)
{
	__u64 value = 0;

	memcpy(&value, take(tape, size), size);	/* little-endian, as the machine is */
	return value;
}

static __u8 u8(struct cursor *tape) { return number(tape, 1); }
static __u16 u16(struct cursor *tape) { return number(tape, 2); }
static __u32 u32(struct cursor *tape) { return number(tape, 4); }
static __u64 u64(struct cursor *tape) { return number(tape, 8); }

/* One of so many. */
static __u8 below(struct cursor *tape, unsigned int count)
{
	__u8 value = u8(tape);

	if (value >= count)
		damaged("a number is too large for what it counts");
	return value;
}

/* A text with its length before it, ended by a 0 in place. */
static const char *text(struct cursor *tape, char *into, size_t room)
{
	__u8 size = u8(tape);

	if (size >= room)
		damaged("a text is too long");
	memcpy(into, take(tape, size), size);
	into[size] = 0;
	return into;
}

static struct cursor part(struct cursor *tape, size_t size)
{
	const __u8 *at = take(tape, size);

	return (struct cursor){ at, at + size };
}

static __u32 crc32(const __u8 *at, size_t size)
{
	__u32 crc = ~0u;

	while (size--) {
		crc ^= *at++;
		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? 0xedb88320 : 0);
	}
	return ~crc;
}

/* --- actions ------------------------------------------------------------------------------ */

static void do_action(struct cursor *tape);

static int vcpu_of(struct cursor *tape)
{
	return below(tape, sizeof(vm.vcpus) / sizeof(vm.vcpus[0]));
}

/* A VM that serves many cases, and the state that its vCPUs were created in. */
struct pooled {
	struct vm vm;
	struct kvm_sregs sregs[16];
	struct kvm_vcpu_events events[16];
};

static struct pooled pool[POOLED], *pooled;	/* the one in use; NULL: the VM is the case's own */
static int n_pooled, next_pooled, is_spent;

/* A vCPU that no script creates exists from its first use. */
static void use_vcpu(int id)
{
	if (vm.vcpus[id].run)
		return;
	need_vcpu(id);
	if (pooled && (ioctl(vm.vcpus[id].fd, KVM_GET_SREGS, &pooled->sregs[id]) < 0 ||
		       ioctl(vm.vcpus[id].fd, KVM_GET_VCPU_EVENTS, &pooled->events[id]) < 0))
		die("the state of a vCPU");
}

static int used_vcpu(struct cursor *tape)
{
	int id = vcpu_of(tape);

	use_vcpu(id);
	return id;
}

static struct reply reply_of(struct cursor *tape)
{
	__u64 data = u64(tape);
	__u8 error = u8(tape);

	return (struct reply){ data, error, u8(tape) };
}

static struct access access_of(struct cursor *tape)
{
	__u8 flags = u8(tape);
	struct access access = {
		.rip = (flags & 1 ? WRMSR : RDMSR) | (flags & 2 ? PREFIXED : 0),
		.rflags = flags & 4 ? TF : 0,
	};

	access.rcx = u64(tape);
	access.rax = u64(tape);
	access.rdx = u64(tape);
	access.reply = reply_of(tape);
	return access;
}

static int fd_of(struct cursor *tape)
{
	switch (below(tape, 3)) {
	case 0: return vm.fd;
	case 1: return kvm;
	default: use_vcpu(0); return vm.vcpus[0].fd;
	}
}

static void *const KERNEL_ADDRESS = (void *)0xffff800000000000;

/* What an install sends, kept until the case has ended. */
struct placed {
	struct kvm_msr_filter filter;
	__u8 *bits[KVM_MSR_FILTER_MAX_RANGES];
	__u16 sizes[KVM_MSR_FILTER_MAX_RANGES];
	int fd, caller, is_compat;
	unsigned long number;
	const void *argp;
};

static struct placed *last_placed;

/* A bitmap as the tape says: bytes, a pointer to nowhere, or bytes before the edge of a page. */
static void read_bitmap(struct cursor *tape, struct placed *placed, int slot)
{
	__u8 **bitmap = &placed->filter.ranges[slot].bitmap;
	__u8 kind = below(tape, 5);
	__u16 size = u16(tape);
	const __u8 *bits = take(tape, size);

	if (size > PAGE)
		damaged("a bitmap is longer than a page");
	if (kind == 0) {
		*bitmap = placed->bits[slot] = map_low(size + 1);
		placed->sizes[slot] = size;
		memcpy(*bitmap, bits, size);
	} else if (kind == 4) {
		*bitmap = at_edge(bits, size);
	} else {
		*bitmap = kind == 1 ? NULL : kind == 2 ? unmapped() : KERNEL_ADDRESS;
	}
}

static struct placed *read_install(struct cursor *tape)
{
	struct placed *placed = map_low(sizeof(*placed));
	int pointer, ranges;

	placed->fd = fd_of(tape);
	placed->caller = below(tape, 3);
	placed->number = u32(tape);
	placed->is_compat = placed->number == KVM_X86_SET_MSR_FILTER_COMPAT;
	pointer = below(tape, 4);
	placed->filter.flags = u32(tape);
	ranges = below(tape, KVM_MSR_FILTER_MAX_RANGES + 1);
	for (int slot = 0; slot < ranges; slot++) {
		placed->filter.ranges[slot].flags = u32(tape);
		placed->filter.ranges[slot].base = u32(tape);
		placed->filter.ranges[slot].nmsrs = u32(tape);
		read_bitmap(tape, placed, slot);
	}
	placed->argp = pointer == 0 ? &placed->filter : pointer == 1 ? NULL :
		       pointer == 2 ? unmapped() : KERNEL_ADDRESS;
	last_placed = placed;
	return placed;
}

static void send(const void *argument)
{
	const struct placed *placed = argument;
	const void *argp = placed->argp;

	if (argp == &placed->filter && placed->is_compat)
		argp = low_compat(argp);
	else if (argp == &placed->filter && placed->caller == 1)
		argp = low(argp);
	if (placed->caller == 0)
		install(placed->fd, placed->number, argp);
	else if (placed->caller == 1)
		install_compat(placed->fd, placed->number, argp);
	else
		install_in_child(placed->fd, placed->number, argp);
}

/* What the kernel was given: the bitmaps below 4 GiB are those, no copies are made of them. */
static void scribble_last(void)
{
	for (int slot = 0; last_placed && slot < KVM_MSR_FILTER_MAX_RANGES; slot++)
		if (last_placed->bits[slot])
			scribble_bitmap(last_placed->bits[slot], last_placed->sizes[slot]);
	saw("done");
}

static void begin_install_of(struct cursor *tape)
{
	char name[20];
	struct placed *placed;
	int slot;

	text(tape, name, sizeof(name));
	slot = u8(tape);
	placed = read_install(tape);
	if (slot < KVM_MSR_FILTER_MAX_RANGES)
		placed->filter.ranges[slot].bitmap =
			not_there(name, placed->bits[slot], placed->sizes[slot]);
	begin_install(name, send, placed);
}

static void do_inner(const void *argument)
{
	struct cursor tape = *(const struct cursor *)argument;

	do_action(&tape);
}

static void meanwhile_of(struct cursor *tape)
{
	struct cursor *inner = map_low(sizeof(*inner));
	char name[20];

	text(tape, name, sizeof(name));
	*inner = part(tape, u16(tape));
	meanwhile(name, do_inner, inner);
}

static void complete_of(struct cursor *tape)
{
	int id = used_vcpu(tape), has_reply = u8(tape);
	struct reply reply = reply_of(tape);

	if (has_reply)
		answer(id, reply);
	switch (below(tape, 3)) {
	case 0: complete_by_immediate_exit(id); break;
	case 1: complete_by_signal(id); break;
	default: finish(id);
	}
}

static void set_regs_of(struct cursor *tape)
{
	int id = used_vcpu(tape), flags = u8(tape);
	struct kvm_regs regs = read_regs(id);
	__u64 rax = u64(tape), rdx = u64(tape);

	regs.rax = flags & 1 ? rax : regs.rax;
	regs.rdx = flags & 2 ? rdx : regs.rdx;
	regs.rip += u64(tape);
	if (flags & 4)
		sync_regs(id, regs);
	else
		set_regs(id, regs);
}

static void enable_cap_of(struct cursor *tape)
{
	int fd = fd_of(tape);
	struct kvm_enable_cap cap = { .cap = u32(tape) };

	cap.flags = u32(tape);
	for (int i = 0; i < 4; i++)
		cap.args[i] = u64(tape);
	enable_cap(fd, cap);
}

static void set_cpuid_of(struct cursor *tape)
{
	int id = used_vcpu(tape);
	__u32 leaf = u32(tape);
	__u8 reg = below(tape, 4), bit = below(tape, 32);

	set_cpuid(id, leaf, reg, bit, u8(tape));
}

static void sweep_of(struct cursor *tape)
{
	int id = used_vcpu(tape);
	struct sweep request = { .rip = u8(tape) ? SWEEP_WRMSR : SWEEP_RDMSR };

	request.first = u32(tape);
	request.count = u32(tape);
	request.stride = u32(tape);
	request.value = u64(tape);
	request.reply = u64(tape);
	if (!request.count || request.count > 1 << 24)
		damaged("a sweep of so many MSRs");
	sweep(id, request);
}

static void resume_of(struct cursor *tape)
{
	char name[20];

	text(tape, name, sizeof(name));
	resume_install(name, u8(tape));
}

static void await_of(struct cursor *tape)
{
	char name[20];

	await_task(text(tape, name, sizeof(name)));
}

static void access_on(struct cursor *tape, __u8 action)
{
	int id = used_vcpu(tape);
	struct access access = access_of(tape);

	if (action == ACCESS)
		do_access(id, access);
	else if (action == BEGIN)
		begin(id, access);
	else
		spin(id, access);
}

static void do_action(struct cursor *tape)
{
	__u8 action = u8(tape);
	int id;

	switch (action) {
	case ACCESS: case BEGIN: case SPIN: access_on(tape, action); break;
	case COMPLETE: case FINISH: complete_of(tape); break;
	case SET_REGS: set_regs_of(tape); break;
	case GET_REGS: get_regs(used_vcpu(tape)); break;
	case ENABLE_CAP: enable_cap_of(tape); break;
	case INSTALL: send(read_install(tape)); break;
	case SCRIBBLE: scribble_last(); break;
	case CHECK_EXTENSION: id = fd_of(tape); check_extension(id, u32(tape)); break;
	case GET_MSR: id = used_vcpu(tape); get_msr(id, u32(tape)); break;
	case SET_MSR: {
		__u32 index;

		id = used_vcpu(tape);
		index = u32(tape);
		set_msr(id, index, u64(tape));
		break;
	}
	case CREATE_IRQCHIP: create_irqchip(); break;
	case CREATE_VCPU: create_vcpu(vcpu_of(tape)); break;
	case SET_CPUID: set_cpuid_of(tape); break;
	case BEGIN_INSTALL: begin_install_of(tape); break;
	case MEANWHILE: meanwhile_of(tape); break;
	case RESUME_INSTALL: resume_of(tape); break;
	case AWAIT: await_of(tape); break;
	case PARK: park(used_vcpu(tape)); break;
	case RELEASE: release(vcpu_of(tape)); break;
	case UNTIL_EXITS: until_exits(vcpu_of(tape)); break;
	case UNTIL_RUNS: until_runs(vcpu_of(tape)); break;
	case STOP_SPIN: stop_spin(vcpu_of(tape)); break;
	case CLOSE_VM: close_vm(); break;
	case CLOSE_VCPU: close_vcpu(vcpu_of(tape)); break;
	case SWEEP: sweep_of(tape); break;
	default: damaged("an action that this player does not know");
	}
}

/* --- a case ------------------------------------------------------------------------------- */

/* As it was created: no mask, no filter, every vCPU at its start. */
static void reset_vm(void)
{
	static const struct kvm_msr_filter off;
	struct kvm_enable_cap none = { .cap = KVM_CAP_X86_USER_SPACE_MSR };

	if (ioctl(vm.fd, KVM_X86_SET_MSR_FILTER, &off) < 0 ||
	    ioctl(vm.fd, KVM_ENABLE_CAP, &none) < 0)
		die("the reset of a VM");
	for (int id = 0; id < 16; id++) {
		if (!vm.vcpus[id].run)
			continue;
		if (ioctl(vm.vcpus[id].fd, KVM_SET_SREGS, &pooled->sregs[id]) < 0 ||
		    ioctl(vm.vcpus[id].fd, KVM_SET_VCPU_EVENTS, &pooled->events[id]) < 0)
			die("the reset of a vCPU");
	}
}

/* Get a VM from the pool, or a new one, and the first vCPU. */
static void take_vm(int flags)
{
	memset(&vm, 0, sizeof(vm));
	pooled = flags & KEEPS ? &pool[n_pooled < POOLED ? n_pooled : next_pooled++ % POOLED] : NULL;
	if (pooled && n_pooled == POOLED) {
		vm = pooled->vm;
		reset_vm();
		return;
	}
	n_pooled += pooled != NULL;
	open_vm();
	if (!(flags & MAKES_VCPUS))
		use_vcpu(0);
}

/* The MSRs that the case writes, to undo it: 1 if this could not be done. */
static int restore_msrs(const __u8 *vcpus, const __u32 *indices, const __u64 *old, int count)
{
	for (int i = 0; i < count; i++) {
		struct kvm_msrs *msrs = one_msr(indices[i], old[i]);
		int done = ioctl(vm.vcpus[vcpus[i]].fd, KVM_SET_MSRS, msrs);

		free(msrs);
		if (done != 1)
			return 1;
	}
	return 0;
}

/* Do the case and print every step; the head of its record has been read but for what it writes. */
static void play_case(int number, struct cursor tape, int flags)
{
	__u8 vcpus[64], count = below(&tape, 64);
	__u32 indices[64];
	__u64 old[64];
	int is_lost = 0, n = 0, steps;

	take_vm(flags);
	for (int i = 0; i < count; i++) {
		int id = used_vcpu(&tape);
		struct kvm_msrs *msrs = one_msr(u32(&tape), 0);

		if (ioctl(vm.vcpus[id].fd, KVM_GET_MSRS, msrs) == 1) {
			vcpus[n] = id;
			indices[n] = msrs->entries[0].index;
			old[n++] = msrs->entries[0].data;
		}
		free(msrs);
	}
	steps = u16(&tape);
	for (int step = 1; step <= steps && !is_lost; step++) {
		struct cursor one = part(&tape, u16(&tape));

		patient = u8(&one);
		do_action(&one);
		printf("step %d %d %s\n", number, step, seen);
		is_lost = strstr(seen, "Lost(") != NULL;
		seen[0] = 0;
	}
	stop_spinners();
	end_race();
	if (pooled && (is_lost || restore_msrs(vcpus, indices, old, n)))
		is_spent = 1;	/* this worker's VMs go with it */
	else if (pooled)
		pooled->vm = vm;
	else
		drop_vm();
	n_parked = n_stalls = n_faults = uffd = 0;
	unmap_low();
	last_placed = NULL;
}

/* --- needs -------------------------------------------------------------------------------- */

static const struct { const char *name; const char *(*lacks)(void); } needs[] = {
	{ "irqchip", lacks_irqchip }, { "vcpus", lacks_vcpus }, { "userfaultfd", lacks_userfaultfd },
	{ "compat", lacks_compat }, { "task_syscall", lacks_task_syscall },
	{ "force_emulation_prefix", lacks_force_emulation_prefix },
};

static const char *lacks(const char *name)
{
	for (size_t i = 0; i < sizeof(needs) / sizeof(needs[0]); i++)
		if (!strcmp(needs[i].name, name))
			return needs[i].lacks();
	return "this player has no such word";
}

/* --- the supervisor ----------------------------------------------------------------------- */

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
		fprintf(stderr, "msrward-player: the tape has version %u, and this player reads %d\n",
			version, VERSION);
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
	printf("msrward-player %d %08x %u\n", VERSION, crc, n_records);
}

/* A worker: a process, the pipe that it writes to, and the record that it is at. */
struct worker {
	pid_t pid;
	int fd, commands;
	int record;		/* -1: none */
	int is_killed, is_spent, used, began;
	struct patience patience;
	char partial[1 << 17];
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
		die("pipe");
	fflush(stdout);
	worker->pid = fork();
	if (worker->pid < 0)
		die("fork");
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

/* Print a text of somebody else's on the line: no control bytes, no second line. */
static void escape(const char *text)
{
	for (; *text; text++)
		if (*text == '\\' || !isprint((unsigned char)*text))
			printf("\\x%02x", (unsigned char)*text);
		else
			putchar(*text);
	putchar('\n');
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
			printf("lost\n");
			continue;
		}
		line[size] = 0;
		printf("log ");
		escape(line);
	}
	if (now != taint)
		printf("taint %ld\n", taint = now);
}

static void finish_record(struct worker *worker, const char *how)
{
	look_at_the_log();
	printf("done %d %d %s\n", worker->record, ms_of_clock() - worker->began, how);
	fflush(stdout);
	worker->record = -1;
}

/* A whole line of a worker: what it may say about the record that it is at, or anything else. */
static void forward(struct worker *worker, const char *line)
{
	char step[32], lack[32], end[32], spent[32];
	int size = 0;

	snprintf(step, sizeof(step), "step %d ", worker->record);
	snprintf(lack, sizeof(lack), "lacks %d ", worker->record);
	snprintf(end, sizeof(end), "end %d", worker->record);
	snprintf(spent, sizeof(spent), "spent %d", worker->record);
	if (!strncmp(line, step, strlen(step))) {
		escape(line);
	} else if (!strncmp(line, lack, strlen(lack))) {
		escape(line);
		if (n_lacking < MAX_NEEDS &&
		    sscanf(line, "lacks %*d %39s%n", lacking[n_lacking], &size) == 1)
			n_lacking++;
	} else if (!strcmp(line, end)) {
		finish_record(worker, "ok");
	} else if (!strcmp(line, spent)) {
		finish_record(worker, "ok");
		worker->is_spent = 1;	/* it ends by itself */
	} else {
		printf("said %d ", worker->record);
		escape(line);
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
		snprintf(how, sizeof(how), "died %d", WTERMSIG(status));
	else
		snprintf(how, sizeof(how), "exited %d", WEXITSTATUS(status));
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
	printf("begin %u %s\n", number, records[number].id);
	fflush(stdout);
	if (write(worker->commands, &number, sizeof(number)) != sizeof(number))
		return;	/* it is dead: bury() says so */
}

/* A killed worker that does not die is held by the kernel: leave it behind. */
static void overdue(struct worker *worker)
{
	if (worker->is_killed) {
		finish_record(worker, "stuck");
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
		printf("beat\n");
		fflush(stdout);
		last_beat = beat;
	}
	return 1;
}

static void dismiss(int jobs)
{
	for (int i = 0; i < jobs; i++) {
		if (!workers[i].pid)
			continue;
		close(workers[i].commands);
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
		printf("parameter %s %s\n", name, value);
	else
		printf("parameter %s is left as it is\n", name);
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
			printf("without %s %s\n", record->id,
			       record->needs[needs_what_lacks(record) - 1]);
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
	printf("fact %s ", path);
	escape(content);
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
		printf("module %s\n", each->d_name);
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
	printf("capability KVM_CAP_X86_USER_SPACE_MSR %d\n",
	       ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_X86_USER_SPACE_MSR));
	printf("capability KVM_CAP_X86_MSR_FILTER %d\n",
	       ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_X86_MSR_FILTER));
}

static int usage(void)
{
	fprintf(stderr, "usage: msrward-player [-jN] [--own] TAPE\n"
			"Play a tape that `msrward tape` wrote (- for stdin); `msrward judge` reads what it says.\n"
			"  -jN    so many workers at once, 1 to %d (1)\n"
			"  --own  the kernel is the tape's: set module parameters as it says\n",
		MAX_WORKERS);
	return TROUBLE;
}

int main(int argc, char **argv)
{
	int jobs = 1, is_own = 0, i;

	for (i = 1; i < argc && argv[i][0] == '-' && argv[i][1]; i++) {
		if (!strcmp(argv[i], "--own"))
			is_own = 1;
		else if (sscanf(argv[i], "-j%d", &jobs) != 1 || jobs < 1 || jobs > MAX_WORKERS)
			return usage();
	}
	if (i != argc - 1)
		return usage();
	signal(SIGPIPE, SIG_IGN);
	read_tape(argv[i]);
	open_kvm();
	tell_facts();
	kmsg = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (kmsg < 0 || lseek(kmsg, 0, SEEK_END) < 0)
		printf("unwatched %s\n", strerror(errno));
	taint = read_taint();
	play_all(jobs, is_own);
	look_at_the_log();
	printf("over %u\n", n_records);
	return fflush(stdout) || ferror(stdout) ? TROUBLE : PASS;
}
