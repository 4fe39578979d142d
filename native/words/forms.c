/*
 * The other forms of an access: WRMSRNS, and RDMSR and WRMSRNS with the MSR as a part of the
 * instruction, which a host tells by KVM_EXIT_X86_RDMSR and _WRMSR as it does RDMSR and WRMSR.
 */

static void write_form(__u64 at, const __u8 *instruction, size_t size)
{
	static const __u8 end[] = { 0xe6, DONE_PORT, 0xeb, -4 };

	memcpy(vm.memory + at, instruction, size);
	memcpy(vm.memory + at + size, end, sizeof(end));
}

static struct access by_wrmsrns(struct access access)
{
	static const __u8 wrmsrns[] = { 0x0f, 0x01, 0xc6 };

	access.rip = WRMSRNS;
	write_form(access.rip, wrmsrns, sizeof(wrmsrns));
	return access;
}

/* The plain instruction with a prefix that makes it a byte longer, and nothing else. */
static struct access by_rex(struct access access)
{
	int is_write = access.rip & (RDMSR ^ WRMSR);
	const __u8 code[] = { 0x48, 0x0f, is_write ? 0x30 : 0x32 };

	access.rip = (is_write ? REX_WRMSR : REX_RDMSR) | (access.rip & PREFIXED);
	memcpy(vm.memory + access.rip - sizeof(prefix), prefix, sizeof(prefix));
	write_form(access.rip, code, sizeof(code));
	return access;
}

/* RDMSR $msr, %rax or WRMSRNS $msr, %rax; RCX has every bit of the MSR's number wrong. */
static struct access by_immediate(struct access access)
{
	int is_write = access.rip & (RDMSR ^ WRMSR);
	__u8 code[] = { 0xc4, 0xe7, is_write ? 0x7a : 0x7b, 0xf6, 0xc0, 0, 0, 0, 0 };
	__u32 msr = ~access.rcx;

	memcpy(code + 5, &msr, sizeof(msr));
	access.rip = is_write ? WRMSRNS_IMM : RDMSR_IMM;
	write_form(access.rip, code, sizeof(code));
	return access;
}

/* What every KVM refuses as no MSR is executed; an undefined opcode is not. */
static const char *lacks_form(struct access (*form)(struct access), __u64 rip, __u64 rcx,
			      const char *name)
{
	static char why[sizeof(seen) + 100];
	int is_there;

	open_vm();
	need_vcpu(0);
	do_access(0, form((struct access){ .rip = rip, .rcx = rcx }));
	is_there = !strcmp(seen, "gp") || strstr(seen, "returned(") || strstr(seen, "rote");
	snprintf(why, sizeof(why), "%s: this CPU, or its KVM, does not execute it: %s", name, seen);
	seen[0] = 0;
	drop_vm();
	return is_there ? NULL : why;
}

static const char *lacks_wrmsrns(void)
{
	return lacks_form(by_wrmsrns, WRMSR, 0x474f4f00, "WRMSRNS");
}

static const char *lacks_msr_imm(void)
{
	return lacks_form(by_immediate, RDMSR, 0x474f4f00 ^ 0xffffffff, "RDMSR with an immediate");
}
