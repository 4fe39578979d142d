/*
 * A tape: how its bytes are read, and how one of its cases is done with the words of words.c.
 * vmm/conformance/c/tape.py writes them, and says what they mean.
 */
#include "words.c"

/* What the layout of every action comes to: a test computes it, so that no tape is misread. */
static const __u32 VERSION = 0x127a7301;

enum { HEADER = 24, POOLED = 2 };

/* What a record of a tape is. */
enum { NEED = 1, PARAMETER, CASE };

/* What a case is: "keeps" says that its VM serves others after it. */
enum { KEEPS = 1, MAKES_VCPUS = 2 };

/* The actions, as a tape numbers them. */
enum {
	ACCESS = 1, BEGIN, SPIN, COMPLETE, FINISH, SET_REGS, GET_REGS, ENABLE_CAP, INSTALL, SCRIBBLE,
	CHECK_EXTENSION, GET_MSR, SET_MSR, CREATE_IRQCHIP, CREATE_VCPU, SET_CPUID, BEGIN_INSTALL,
	MEANWHILE, RESUME_INSTALL, AWAIT, PARK, RELEASE, UNTIL_EXITS, UNTIL_RUNS, STOP_SPIN, CLOSE_VM,
	CLOSE_VCPU, SWEEP, SET_CPUID_BITS, SEND_INIT, GET_MP_STATE, ENTER_L2, LEAVE_L2,
	EXECUTE, GET_VCPU_EVENTS, REWRITE, INJECT, GET_TAKEN,
	SAVE_NESTED, RESTORE_NESTED, LEAVE_NESTED, FRESH_VM,
	WEIGH_BITMAPS,
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
static int n_pooled, next_pooled, is_spent, makes_vcpus;

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

static struct access access_of(struct cursor *tape, __u16 flags)
{
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
	__u64 rax = u64(tape), rdx = u64(tape), rcx = u64(tape);

	regs.rax = flags & 1 ? rax : regs.rax;
	regs.rdx = flags & 2 ? rdx : regs.rdx;
	regs.rcx = flags & 8 ? rcx : regs.rcx;
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

/* A leaf of 0xffffffff stands for all features at once. */
static void set_cpuid_of(struct cursor *tape)
{
	int id = used_vcpu(tape);
	__u32 leaf = u32(tape);
	__u8 reg = below(tape, 4), bit = below(tape, 32), on = u8(tape);

	if (leaf == ~0u)
		set_cpuid_everything(id, on);
	else
		set_cpuid(id, leaf, reg, bit, on);
}

static void set_cpuid_bits_of(struct cursor *tape)
{
	int id = used_vcpu(tape);
	__u32 leaf = u32(tape), index = u32(tape);
	__u8 reg = below(tape, 4);
	__u32 bits = u32(tape);

	set_cpuid_bits(id, leaf, index, reg, bits, u8(tape));
}

/* An MSR by name: of many at once, or one by itself. */
static void get_msr_of(struct cursor *tape)
{
	int id = used_vcpu(tape);
	__u32 index = u32(tape);

	if (u8(tape))
		get_msr_by_one_reg(id, index);
	else
		get_msr(id, index);
}

static void set_msr_of(struct cursor *tape)
{
	int id = used_vcpu(tape);
	__u32 index = u32(tape);
	__u64 value = u64(tape);

	if (u8(tape))
		set_msr_by_one_reg(id, index, value);
	else
		set_msr(id, index, value);
}

static void create_vcpu_of(struct cursor *tape)
{
	int id = vcpu_of(tape);

	if (u8(tape))
		create_vcpu_without_fd(id);
	else
		create_vcpu(id);
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

static struct msr_list msr_list_of(struct cursor *tape)
{
	int count = below(tape, MAX_LIST + 1);
	struct listed *msrs = map_low(MAX_LIST * sizeof(*msrs));

	for (int i = 0; i < count; i++) {
		msrs[i].index = u32(tape);
		msrs[i].value = u64(tape);
	}
	return (struct msr_list){ count, msrs };
}

static void enter_l2_of(struct cursor *tape)
{
	int id = used_vcpu(tape), flags = u8(tape), count = u16(tape);
	struct through *through = map_low((count + 1) * sizeof(*through));
	struct l2 l2 = {
		.passes_all = flags & 1, .no_bitmap = flags & 2, .fields = (flags & 4) != 0,
		.clean = (flags & 8) != 0,
		.n_through = count, .through = through,
	};

	for (int i = 0; i < count; i++) {
		through[i].index = u32(tape);
		through[i].how = u8(tape);
	}
	l2.entry_load = msr_list_of(tape);
	l2.exit_store = msr_list_of(tape);
	l2.exit_load = msr_list_of(tape);
	enter_l2(id, l2);
}

static void execute_of(struct cursor *tape)
{
	/* in the order of the language; RSM, which takes more than to be executed, is the last */
	static const struct effect *const effects[] = {
		&rdtsc_effect, &rdtscp_effect, &rdpid_effect, &rdpmc_effect, &cpuid_effect,
		&syscall_effect, &sysretq_effect, &sysenter_effect, &sysexit_effect, &swapgs_effect,
		&rdfsbase_effect, &rdgsbase_effect, &wrfsbase_effect, &wrgsbase_effect,
		&xsaves_effect, &xrstors_effect,
	};
	enum { RSM_OF_ALL = sizeof(effects) / sizeof(effects[0]) };
	int id = used_vcpu(tape), number = below(tape, RSM_OF_ALL + 1), is_emulated = u8(tape);
	__u64 value = u64(tape);

	if (number == RSM_OF_ALL)
		execute_rsm(id, value);
	else if (is_emulated)
		execute_emulated(id, effects[number], value);
	else
		execute(id, effects[number], value);
}

static void rewrite_of(struct cursor *tape)
{
	static const unsigned long states[][2] = {
		{ KVM_GET_SREGS, KVM_SET_SREGS }, { KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS },
		{ KVM_GET_MP_STATE, KVM_SET_MP_STATE }, { KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS },
		{ KVM_GET_XCRS, KVM_SET_XCRS },
	};
	int id = used_vcpu(tape), state = below(tape, sizeof(states) / sizeof(states[0]));

	rewrite(id, states[state][0], states[state][1]);
}

static void inject_of(struct cursor *tape)
{
	int id = used_vcpu(tape);

	if (below(tape, 2))
		inject_interrupt(id);
	else
		inject_nmi(id);
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

static void restore_of(struct cursor *tape)
{
	int id = used_vcpu(tape);

	if (!snapshots[id])
		damaged("what is restored was not saved");
	restore_nested(id);
}

/* The first vCPU is there at once, unless the script makes it. */
static void fresh_vm_of_case(void)
{
	if (pooled)
		damaged("a VM that serves others has a successor");
	fresh_vm();
	if (!makes_vcpus)
		use_vcpu(0);
}

static void access_in(__u8 mode, __u8 action, int id, struct access access)
{
	static const struct mode *const modes[] = {
		&long_mode, &compat_mode, &user_mode, &protected_mode, &real_mode,
	};
	enum { SMM = sizeof(modes) / sizeof(modes[0]) };

	if (mode > SMM || action == SPIN)
		damaged("an access in no mode that it can have");
	if (mode == SMM && action == ACCESS)
		do_access_in_smm(id, access);
	else if (mode == SMM)
		begin_in_smm(id, access);
	else if (action == ACCESS)
		do_access_in(modes[mode], id, access);
	else
		begin_in(modes[mode], id, access);
}

static void access_on(struct cursor *tape, __u8 action)
{
	int id = used_vcpu(tape);
	__u16 flags = u16(tape), what = flags >> 3 & 3, mode = flags >> 5 & 7, form = flags >> 8;
	struct access access = access_of(tape, flags);

	if (form > 2 || (form && action == SPIN))
		damaged("an access of no form that it can have");
	if (form)
		access = form == 1 ? by_wrmsrns(access) : by_immediate(access);
	if (what || mode)
		access_in(mode, action, id, what ? behind(what, access) : access);
	else if (action == ACCESS)
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
	case GET_MSR: get_msr_of(tape); break;
	case SET_MSR: set_msr_of(tape); break;
	case CREATE_IRQCHIP: create_irqchip(); break;
	case CREATE_VCPU: create_vcpu_of(tape); break;
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
	case SET_CPUID_BITS: set_cpuid_bits_of(tape); break;
	case SEND_INIT: send_init(used_vcpu(tape)); break;
	case GET_MP_STATE: get_mp_state(used_vcpu(tape)); break;
	case ENTER_L2: enter_l2_of(tape); break;
	case LEAVE_L2: leave_l2(used_vcpu(tape)); break;
	case EXECUTE: execute_of(tape); break;
	case GET_VCPU_EVENTS: get_vcpu_events(used_vcpu(tape)); break;
	case REWRITE: rewrite_of(tape); break;
	case INJECT: inject_of(tape); break;
	case GET_TAKEN: get_taken(used_vcpu(tape)); break;
	case SAVE_NESTED: save_nested(used_vcpu(tape)); break;
	case RESTORE_NESTED: restore_of(tape); break;
	case LEAVE_NESTED: leave_nested(used_vcpu(tape)); break;
	case FRESH_VM: fresh_vm_of_case(); break;
	case WEIGH_BITMAPS: weigh_bitmaps(); break;
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
	makes_vcpus = flags & MAKES_VCPUS;
	pooled = flags & KEEPS ? &pool[n_pooled < POOLED ? n_pooled : next_pooled++ % POOLED] : NULL;
	if (pooled && n_pooled == POOLED) {
		vm = pooled->vm;
		reset_vm();
		return;
	}
	n_pooled += pooled != NULL;
	open_vm();
	if (!makes_vcpus)
		use_vcpu(0);
}

/* The MSRs that the case writes, to undo it: 1 if this could not be done. */
static int restore_msrs(const __u8 *vcpus, const __u32 *indices, const __u64 *old, int count)
{
	for (int i = 0; i < count; i++)
		if (write_msr(vcpus[i], indices[i], old[i]) != 1)
			return 1;
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
		if (one.at != one.end)
			damaged("a step is longer than its action");
		printf("step %d %d %s\n", number, step, seen);
		is_lost = is_end(seen);
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
	forget_snapshots();
	unmap_low();
	last_placed = NULL;
}

/* --- needs -------------------------------------------------------------------------------- */

static const struct { const char *name; const char *(*lacks)(void); } needs[] = {
	{ "irqchip", lacks_irqchip }, { "vcpus", lacks_vcpus }, { "userfaultfd", lacks_userfaultfd },
	{ "compat", lacks_compat }, { "task_syscall", lacks_task_syscall },
	{ "force_emulation_prefix", lacks_force_emulation_prefix }, { "one_reg", lacks_one_reg },
	{ "memory_cgroup", lacks_memory_cgroup },
	{ "disable_exits_mwait", lacks_disable_exits_mwait },
	{ "disable_exits_hlt", lacks_disable_exits_hlt },
	{ "disable_exits_pause", lacks_disable_exits_pause },
	{ "disable_exits_cstate", lacks_disable_exits_cstate },
	{ "disable_exits_aperfmperf", lacks_disable_exits_aperfmperf },
	{ "shstk", lacks_shstk }, { "mediated_pmu", lacks_mediated_pmu }, { "pt", lacks_pt },
	{ "spec_ctrl", lacks_spec_ctrl }, { "xfd", lacks_xfd }, { "lbr", lacks_lbr },
	{ "nested", lacks_nested }, { "nested_svm", lacks_nested_svm },
	{ "nested_vmx", lacks_nested_vmx }, { "nested_state", lacks_nested_state },
	{ "clean_bitmap", lacks_clean_bitmap },
	{ "smm", lacks_smm }, { "wrmsrns", lacks_wrmsrns }, { "msr_imm", lacks_msr_imm },
	{ "put_off_debug", lacks_put_off_debug }, { "guest_tsc", lacks_guest_tsc },
	{ "rdtscp", lacks_rdtscp }, { "rdpid", lacks_rdpid }, { "pmu", lacks_pmu },
	{ "fsgsbase", lacks_fsgsbase }, { "xsaves", lacks_xsaves }, { "sep", lacks_sep },
};

static const char *lacks(const char *name)
{
	for (size_t i = 0; i < sizeof(needs) / sizeof(needs[0]); i++)
		if (!strcmp(needs[i].name, name))
			return needs[i].lacks();
	return "this player has no such word";
}
