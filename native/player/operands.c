/*
 * What several actions read alike.
 */

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
