/*
 * The word for very many accesses at once.
 */

/*
 * Sweeps: very many accesses in one go, and how each ended, by the number that it has in the sweep.
 * The last two are patterns, which only an expectation has.
 */
enum { PASSED = 0, INVAL = 1, UNKNOWN = 2, FILTER = 4, GP = 8, STRANGE = 16, UNFILTERED, WHATEVER };

struct sweep {
	__u64 rip;	/* SWEEP_RDMSR or SWEEP_WRMSR */
	__u32 first, count, stride;
	__u64 value, reply;
};

static struct sweep sweep_done;
static __u8 *sweep_ended;

/* Which access the MSR belongs to, from the one that is due; that one, if it cannot be. */
static __u32 number_in_sweep(__u32 index, __u32 due)
{
	__u32 number = (index - sweep_done.first) / sweep_done.stride;

	if (sweep_done.first + number * sweep_done.stride == index && number >= due &&
	    number < sweep_done.count)
		return number;
	sweep_ended[due] = STRANGE;
	return due;
}

static __u32 swept_exit(const struct kvm_run *run, __u32 due)
{
	int is_write = sweep_done.rip == SWEEP_WRMSR;
	__u32 number = number_in_sweep(run->msr.index, due);
	__u64 head;

	memcpy(&head, &run->msr.error, sizeof(head));
	if (run->exit_reason != (__u32)(is_write ? KVM_EXIT_X86_WRMSR : KVM_EXIT_X86_RDMSR) ||
	    head || run->msr.data != (is_write ? sweep_done.value : 0) || sweep_ended[number] ||
	    (run->msr.reason != INVAL && run->msr.reason != UNKNOWN && run->msr.reason != FILTER))
		sweep_ended[number] = STRANGE;
	else
		sweep_ended[number] = run->msr.reason;
	return number;
}

/*
 * #GP(0) at the instruction, without an exit before it: anything else is strange. Go on behind it.
 */
static __u32 swept_fault(int id, int vector, __u32 due)
{
	struct kvm_regs regs = read_regs(id);
	__u64 *frame = (__u64 *)(vm.memory + regs.rsp);
	__u32 number = number_in_sweep(regs.rcx, due);
	int is_gp = vector == 13 && frame[0] == 0 && frame[1] == sweep_done.rip;

	sweep_ended[number] = is_gp && !sweep_ended[number] ? GP : STRANGE;
	regs.rip = sweep_done.rip + 2;
	regs.rsp = STACKS + PAGE * (id + 1);
	write_regs(id, &regs);
	return number;
}

/*
 * Run the guest to the end of its loop; NULL, or what ended it instead: "" if that is said already.
 */
static const char *run_sweep(int id)
{
	struct kvm_run *run = vm.vcpus[id].run;
	__u32 due = 0;

	for (__u64 exits = 0; exits <= 2ull * sweep_done.count; exits++) {
		if (enter_guest(id) < 0)
			return "KVM_RUN failed";
		if (vm.vcpus[id].left && !is_msr_exit(run) && vm.vcpus[id].left(id))
			return "";
		if (run->exit_reason == KVM_EXIT_IO && run->io.port == DONE_PORT)
			return NULL;
		if (run->exit_reason == KVM_EXIT_IO) {
			due = swept_fault(id, run->io.port - VECTOR_PORT, due);
		} else if (is_msr_exit(run)) {
			due = swept_exit(run, due);
			answer(id, (struct reply){ .data = sweep_done.reply });
		} else {
			return "an exit that is none of an MSR";
		}
	}
	return "more exits than accesses";
}

static const char *name_of(int ended)
{
	switch (ended) {
	case PASSED: return "PASSED";
	case INVAL: return "INVAL";
	case UNKNOWN: return "UNKNOWN";
	case FILTER: return "FILTER";
	case GP: return "GP";
	default: return "STRANGE";
	}
}

/* Say how they ended, as runs of accesses that ended alike: first MSR, count, how. */
static void saw_swept(void)
{
	char *text = calloc(sweep_done.count, 48);
	__u32 first = 0, used = 0;

	if (!text)
		die("calloc");
	for (__u32 i = 1; i <= sweep_done.count; i++) {
		if (i < sweep_done.count && sweep_ended[i] == sweep_ended[first])
			continue;
		used += sprintf(text + used, "%srun(%#x, %#x, %s)", used ? ", " : "",
				sweep_done.first + first * sweep_done.stride, i - first,
				name_of(sweep_ended[first]));
		first = i;
	}
	saw("swept((%s))", text);
	free(text);
}

/* The guest executes the access of count MSRs: first, first + stride, and so on. */
static void sweep(int id, struct sweep what)
{
	struct kvm_regs regs = {
		.rip = what.rip, .rcx = what.first, .rax = (__u32)what.value,
		.rdx = what.value >> 32, .rbp = what.count, .rsi = what.stride,
		.rsp = STACKS + PAGE * (id + 1), .rflags = 2,
	};
	const char *why;

	free(sweep_ended);
	sweep_ended = calloc(what.count, 1);
	if (!sweep_ended)
		die("calloc");
	sweep_done = what;
	vm.vcpus[id].access = (struct access){ .rip = what.rip };
	write_regs(id, &regs);
	why = run_sweep(id);
	if (!why)
		saw_swept();
	else if (*why)
		saw("Lost('%s')", why);
}
