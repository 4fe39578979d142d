/*
 * What an instruction is that uses MSRs without being RDMSR or WRMSR: the host puts a value into
 * what it works with, the guest executes it, and what it did shows the value.
 */

/* Where the instruction and what it leads to are; a page of memory for each vCPU to work on. */
enum {
	EFFECT = 0x10400,
	LANDED = 0x10440, LANDED_PORT = 0xd3,	/* where SYSCALL and its like jump to */
	AREAS = 0x40000,	/* an XSAVES area ... */
	CONTROL = 0xf00,	/* ... and behind it the FPU's control word */
	MOST_EXITS = 16,	/* after which an instruction comes back for ever */
};

/* All that the host sets for an instruction, and all that is there when it has ended. */
struct setting {
	int id;
	__u64 value;
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct { __u32 index; __u64 old; } msrs[3];
	int n_msrs, is_refused;
};

/* An instruction, how the host gives it a value, and how it finds the value again. */
struct effect {
	__u8 code[8];
	int size;
	int before;	/* bytes of the code in front of the instruction itself */
	int port;	/* where its way ends */
	const struct mode *mode;
	void (*gives)(struct setting *setting);
	__u64 (*shows)(const struct setting *setting);
};

static void give_msr(struct setting *setting, __u32 index, __u64 data)
{
	int number = setting->n_msrs++;

	setting->msrs[number].index = index;
	setting->msrs[number].old = msr_of(setting->id, index);
	if (write_msr(setting->id, index, data) != 1)
		setting->is_refused = 1;
}

static __u64 show_rax(const struct setting *setting)
{
	return setting->regs.rax;
}

/* The selector that the instruction has loaded; that of a return to user code is so much more. */
static __u64 show_cs(const struct setting *setting)
{
	return setting->sregs.cs.selector & 0xfffc;
}

static __u64 show_user_cs(const struct setting *setting)
{
	return show_cs(setting) - 16;
}
