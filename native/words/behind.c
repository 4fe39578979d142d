/*
 * The words for accesses right behind another instruction.
 */

/* What an access follows at once: each has a place of its own, so far behind the plain one. */
enum { STI = 1, MOV_SS, STI_NOP, BEHIND = 0x100 };

static struct access behind(int what, struct access access)
{
	static const struct { int size; __u8 code[2]; } before[] = {
		[STI] = { 1, { 0xfb } },
		[MOV_SS] = { 2, { 0x8e, 0xd3 } },	/* mov %ebx, %ss */
		[STI_NOP] = { 2, { 0xfb, 0x90 } },
	};
	__u64 at;

	access.rip += BEHIND * what;
	access.before = before[what].size;
	at = access.rip - access.before - (access.rip & PREFIXED ? sizeof(prefix) : 0);
	write_code(access.rip & ~(__u64)PREFIXED, access.rip & (RDMSR ^ WRMSR) ? 0x30 : 0x32);
	memcpy(vm.memory + at, before[what].code, access.before);
	return access;
}

static const char *lacks_smm(void)
{
	return lacks_capability(KVM_CAP_X86_SMM, 1, "no SMM: this kernel is built without "
				"CONFIG_KVM_SMM, or its KVM module has none");
}

/* KVM's emulator, which executes all of a guest on some hosts, raises #DB behind MOV SS itself. */
static const char *lacks_put_off_debug(void)
{
	const char *why = "MOV SS puts no #DB off here, without a filter too";

	open_vm();
	need_vcpu(0);
	do_access_in(&long_mode, 0, behind(MOV_SS, (struct access){
		.rip = RDMSR, .rcx = 0xc0000081, .rflags = TF,	/* STAR */
	}));
	if (!strcmp(seen, "Fault(0x1, skew=2)"))
		why = NULL;
	seen[0] = 0;
	drop_vm();
	return why;
}
