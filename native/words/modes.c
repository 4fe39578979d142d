/*
 * The words for accesses in other modes than 64-bit CPL0.
 * The bytes of an access, of its end and of the stubs mean the same in 16-, 32- and 64-bit code, so
 * all modes have those of vm.c: the host sets what makes a mode, and takes the vCPU back to
 * 64-bit code when the access has ended, which every other word finds there.
 */

/* Where what other modes need is: an IDT of 32-bit gates, task segments, and what SMM runs. */
enum {
	REAL_VECTORS = 0, GATES32 = 0x7000, TASKS = 0x8000, TASK_SIZE = 0x100,
	REAL_CODE = RDMSR,	/* where a real-mode code segment starts */
	AGAIN = 4,		/* from an access to the jump that ends it again */
	RSM = 0x100c0, SMM_ENTRY = 0x38000, SMM_PORT = 0xd2,
	INTERRUPT = VECTORS, GATES,	/* the vector behind the CPU's own */
	TASK = 0x18, CODE32 = 0x20, USER_DATA = 0x2b, USER_CODE64 = 0x33,	/* selectors */
	IOPL3 = 3 << 12,
};

/* A mode, as what it has other than 64-bit CPL0. */
struct mode {
	void (*change)(struct kvm_sregs *sregs, int id);
	int word;	/* bytes of each word that an exception pushes */
	__u64 code;	/* what to subtract from an address for RIP: the base of the code segment */
	__u64 rflags;
};

static const struct mode *mode_of[16];

static void be_compat(struct kvm_sregs *sregs, int id)
{
	(void)id;
	sregs->cs = segment(CODE32, 11, 0);
}

/* User code may write to ports too (IOPL), or it could not tell that it is done. */
static void be_user(struct kvm_sregs *sregs, int id)
{
	(void)id;
	sregs->cs = segment(USER_CODE64, 11, 1);
	sregs->ds = sregs->es = sregs->ss = segment(USER_DATA, 3, 0);
}

static void be_protected(struct kvm_sregs *sregs, int id)
{
	be_compat(sregs, id);
	sregs->cr0 = 0x31;	/* NE, ET, PE */
	sregs->cr3 = sregs->cr4 = sregs->efer = 0;
	sregs->idt.base = GATES32;
	sregs->idt.limit = 8 * GATES - 1;
}

static struct kvm_segment real_segment(__u64 base, int type)
{
	struct kvm_segment real = segment(base >> 4, type, 0);

	real.base = base;
	real.limit = 0xffff;
	real.db = real.g = 0;
	return real;
}

/* FS and GS keep their bases here too, which are MSRs. */
static void be_real(struct kvm_sregs *sregs, int id)
{
	__u64 fs = sregs->fs.base, gs = sregs->gs.base;

	be_protected(sregs, id);
	sregs->cr0 = 0x30;	/* NE, ET */
	sregs->cs = real_segment(REAL_CODE, 11);
	sregs->ss = real_segment(STACKS + PAGE * id, 3);
	sregs->ds = sregs->es = sregs->fs = sregs->gs = real_segment(0, 3);
	sregs->fs.base = fs;
	sregs->gs.base = gs;
	sregs->idt.base = REAL_VECTORS;
	sregs->idt.limit = 4 * GATES - 1;
}

static const struct mode long_mode = { .word = 8 };

static const struct mode compat_mode = { .change = be_compat, .word = 8 };

static const struct mode user_mode = { .change = be_user, .word = 8, .rflags = IOPL3 };

static const struct mode protected_mode = { .change = be_protected, .word = 4 };

static const struct mode real_mode = { .change = be_real, .word = 2, .code = REAL_CODE };

static const struct mode higher_half_mode = { .word = 8, .code = -HIGHER_HALF };

/* Whether code, stack and handlers are in segments of 16-bit code. */
static int is_real(const struct mode *mode)
{
	return mode->word == 2;
}

/* What leads to the stubs in the modes for which the IDT of 64-bit code does not. */
static void write_vectors(void)
{
	write_stub(INTERRUPT);
	for (unsigned int vector = 0; vector < GATES; vector++) {
		__u32 stub = STUBS + 16 * vector;
		__u16 gate[] = { stub & 0xffff, CODE32, 0x8e00, stub >> 16 };
		__u16 real[] = { stub - REAL_CODE, REAL_CODE >> 4 };

		memcpy(vm.memory + GATES32 + sizeof(gate) * vector, gate, sizeof(gate));
		memcpy(vm.memory + REAL_VECTORS + sizeof(real) * vector, real, sizeof(real));
	}
}

/* The selectors behind those of 64-bit code, and the stack that an exception takes CPL3 to. */
static void write_tasks(int id)
{
	static const __u64 gdt[] = {
		0,			/* TASK: the host loads TR */
		0x00cf9b000000ffff,	/* CODE32 */
		0x00cff3000000ffff,	/* USER_DATA */
		0x00affb000000ffff,	/* USER_CODE64 */
	};
	__u64 stack = STACKS + PAGE * (id + 1);

	memcpy(vm.memory + GDT + TASK, gdt, sizeof(gdt));
	memcpy(vm.memory + TASKS + TASK_SIZE * id + 4, &stack, sizeof(stack));
}

static void enter_mode(int id, const struct mode *mode)
{
	struct kvm_sregs sregs = read_sregs(id);
	__u64 fs = sregs.fs.base, gs = sregs.gs.base;

	be_long(&sregs);
	sregs.fs.base = fs;
	sregs.gs.base = gs;
	sregs.cr8 = 0;
	sregs.gdt.limit = 0x37;
	sregs.idt.limit = 16 * GATES - 1;
	sregs.tr = (struct kvm_segment){
		.base = TASKS + TASK_SIZE * id, .limit = 0x67, .selector = TASK, .type = 11,
		.present = 1,
	};
	if (mode->change)
		mode->change(&sregs, id);
	write_sregs(id, &sregs);
}

/* A fault may have left the shadow that it came in, and in one STI begins none. */
static void leave_shadow(int id)
{
	struct kvm_vcpu_events events = read_events(id);

	events.interrupt.shadow = 0;
	write_events(id, &events);
}

/* As set_up(), and what counts the rounds of a loop has what MOV SS may load anew. */
static void set_up_in(const struct mode *mode, int id, struct access access)
{
	struct kvm_regs regs;

	write_vectors();
	write_tasks(id);
	set_up(id, access);
	enter_mode(id, mode);
	if (access.before)
		leave_shadow(id);
	regs = read_regs(id);
	regs.rbx = read_sregs(id).ss.selector;
	regs.rflags |= mode->rflags;
	regs.rip -= mode->code;
	regs.rsp = is_real(mode) ? PAGE : regs.rsp;
	write_regs(id, &regs);
	vm.vcpus[id].access.rip -= mode->code;
	mode_of[id] = mode;
}

/*
 * The port that says how the access has ended, a stub's or the one of its own end; 0 if it has not.
 */
static int port_of_end(int id)
{
	const struct kvm_run *run = vm.vcpus[id].run;
	int port = run->exit_reason == KVM_EXIT_IO ? run->io.port : 0;

	return port == DONE_PORT || (port >= VECTOR_PORT && port < VECTOR_PORT + GATES) ? port : 0;
}

/* What an exception or an interrupt has pushed. */
struct frame {
	__u64 code, rip, rflags;
};

static struct frame frame_of(int id, __u64 rsp, int vector)
{
	const struct mode *mode = mode_of[id];
	const __u8 *at = vm.memory + rsp + (is_real(mode) ? STACKS + PAGE * id : 0);
	struct frame frame = { 0 };

	if (has_error_code(vector) && !is_real(mode)) {	/* real mode has none */
		memcpy(&frame.code, at, mode->word);
		at += mode->word;
	}
	memcpy(&frame.rip, at, mode->word);
	memcpy(&frame.rflags, at + 2 * mode->word, mode->word);
	return frame;
}

/* Push what an exception has pushed in its mode as it pushes it in 64-bit code. */
static void push_again(int id, struct kvm_regs *regs, int vector)
{
	struct frame frame = frame_of(id, regs->rsp, vector);
	__u64 *stack = (__u64 *)(vm.memory + STACKS + PAGE * (id + 1));

	*--stack = frame.rip + mode_of[id]->code;
	if (has_error_code(vector))
		*--stack = frame.code;
	regs->rsp = (__u8 *)stack - vm.memory;
}

/*
 * The registers as they would be had 64-bit code done the access, where it jumps back to the port
 * write. At the write itself KVM would take it for the one that exited, and skip it to where that
 * one's code segment went on.
 */
static struct kvm_regs regs_in_64_bit(int id, int port)
{
	__u64 *at = &vm.vcpus[id].access.rip;
	struct kvm_regs regs = read_regs(id);
	int vector = port - VECTOR_PORT;

	*at += mode_of[id]->code;
	regs.rflags = 2;
	if (port == DONE_PORT) {
		regs.rip = *at + AGAIN;
		regs.rsp = STACKS + PAGE * (id + 1);
	} else {
		push_again(id, &regs, vector);
		regs.rip = STUBS + 16 * vector + 2;
	}
	return regs;
}

/* Back to 64-bit code, where running on ends the access once more, in the same way. */
static void saw_end(int id, const struct kvm_regs *regs, int port)
{
	enter_mode(id, &long_mode);
	write_regs(id, regs);
	vm.vcpus[id].left = NULL;
	saw_outcome(id, port);
}

static int leave_mode(int id)
{
	int port = port_of_end(id);
	struct kvm_regs regs;

	if (!port)
		return 0;
	regs = regs_in_64_bit(id, port);
	saw_end(id, &regs, port);
	return 1;
}

/* As begin() and do_access(), in a mode. */
static int begin_in(const struct mode *mode, int id, struct access access)
{
	set_up_in(mode, id, access);
	vm.vcpus[id].left = leave_mode;
	return saw_run(id, enter_guest(id));
}

static void do_access_in(const struct mode *mode, int id, struct access access)
{
	answer_exits(id, begin_in(mode, id, access));
}
