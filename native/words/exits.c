/*
 * Run the guest, and say how that ended: with an MSR exit, with an outcome, or with neither.
 */

/* Whether an access has changed what is none of its own: another register, or a flag. */
static int has_changed(struct kvm_regs before, struct kvm_regs now)
{
	if (!before.rflags)
		return 0;
	now.rax = before.rax;
	now.rcx = before.rcx;
	now.rdx = before.rdx;
	now.rip = before.rip;
	before.rflags |= RF;
	now.rflags |= RF;
	return memcmp(&before, &now, sizeof(now)) != 0;
}

static void saw_regs(int id, const struct kvm_regs *regs)
{
	saw("regs(%d, rax=%#llx, rcx=%#llx, rdx=%#llx%s)",
	    (int)(regs->rip - vm.vcpus[id].access.rip), regs->rax, regs->rcx, regs->rdx,
	    has_changed(vm.vcpus[id].at_exit, *regs) ? ", changed=True" : "");
}

/* Say what stands in kvm_run.msr. */
static void saw_msr(__u32 exit_reason, const struct kvm_run *run)
{
	static const char * const names[] = {
		"0", "INVAL", "UNKNOWN", "INVAL|UNKNOWN",
		"FILTER", "INVAL|FILTER", "UNKNOWN|FILTER", "INVAL|UNKNOWN|FILTER",
	};
	int is_write = exit_reason == KVM_EXIT_X86_WRMSR;
	char odd[96] = "", reason[32], data[32] = "";
	__u64 pad = 0;

	memcpy(&pad, run->msr.pad, sizeof(run->msr.pad));
	if (run->msr.reason < 8)
		snprintf(reason, sizeof(reason), "%s", names[run->msr.reason]);
	else
		snprintf(reason, sizeof(reason), "%#x", run->msr.reason);
	if (is_write)
		snprintf(data, sizeof(data), ", %#llx", run->msr.data);
	else if (run->msr.data)
		snprintf(data, sizeof(data), ", data=%#llx", run->msr.data);
	if (run->msr.error)
		snprintf(odd, sizeof(odd), ", error=%#x", run->msr.error);
	if (pad)
		snprintf(odd + strlen(odd), sizeof(odd) - strlen(odd), ", pad=%#llx", pad);
	saw("%s(%#x, %s%s%s)", is_write ? "WrmsrExit" : "RdmsrExit", run->msr.index, reason,
	    data, odd);
}

static int has_error_code(int vector)
{
	return vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 ||
	       vector == 29 || vector == 30;
}

/* The exception's frame is on the stack, an error code below it for some. */
static void saw_fault(struct vcpu *vcpu, const struct kvm_regs *regs, int vector)
{
	__u64 *frame = (__u64 *)(vm.memory + regs->rsp);
	__u64 code = has_error_code(vector) ? *frame++ : 0;
	int skew = *frame - vcpu->access.rip;
	char text[160];
	size_t used = snprintf(text, sizeof(text), "%#x", vector);

	if (code)
		used += snprintf(text + used, sizeof(text) - used, ", error_code=%#llx", code);
	if (skew)
		used += snprintf(text + used, sizeof(text) - used, ", skew=%d", skew);
	if (regs->rax != vcpu->access.rax || regs->rdx != vcpu->access.rdx)
		snprintf(text + used, sizeof(text) - used, ", registers=(%#llx, %#llx)",
			 regs->rax, regs->rdx);
	if (strcmp(text, "0xd"))
		saw("Fault(%s)", text);
	else
		saw("gp");
}

static void saw_outcome(int id, int port)
{
	struct vcpu *vcpu = &vm.vcpus[id];
	struct kvm_regs regs = read_regs(id);
	__u64 high = (regs.rdx & ~0xffffffffull) | regs.rax >> 32;
	__u64 value = regs.rdx << 32 | (regs.rax & 0xffffffff);
	int is_read = !(vcpu->access.rip & (RDMSR ^ WRMSR));

	if (vcpu->access.rip == RDMSR_IMM) {	/* all of it is in RAX, and RDX is as it was */
		high = regs.rdx == vcpu->access.rdx ? 0 : ~0ull;
		value = regs.rax;
	}
	if (port != DONE_PORT)
		saw_fault(vcpu, &regs, port - VECTOR_PORT);
	else if (is_read && high)
		saw("returned(%#llx, high=%#llx)", value, high);
	else if (is_read)
		saw("returned(%#llx)", value);
	else if (regs.rax != vcpu->access.rax || regs.rdx != vcpu->access.rdx)
		saw("Wrote((%#llx, %#llx))", regs.rax, regs.rdx);
	else
		saw("wrote");
}

static int is_msr_exit(const struct kvm_run *run)
{
	return run->exit_reason == KVM_EXIT_X86_RDMSR || run->exit_reason == KVM_EXIT_X86_WRMSR;
}

/* KVM_RUN, again after a signal that nobody asked for: negative if it failed, with errno. */
static int enter_guest(int id)
{
	int result;

	vm.vcpus[id].at_exit.rflags = 0;
	do
		result = ioctl(vm.vcpus[id].fd, KVM_RUN, 0);
	while (result < 0 && errno == EINTR);
	if (result < 0 && is_exhausted(errno))
		die("KVM_RUN");
	return result;
}

/* Whether the guest never finished what it was to do. */
static int is_end(const char *text)
{
	return strstr(text, "Lost(") || strstr(text, "internal_error(") ||
	       strstr(text, "other_exit(");
}

/* An exit that is no end of an access. */
static void saw_foreign(const struct kvm_run *run)
{
	switch (run->exit_reason) {
	case KVM_EXIT_INTERNAL_ERROR:
		saw("internal_error(%#x)", run->internal.suberror);
		break;
	case KVM_EXIT_HLT: case KVM_EXIT_MMIO: case KVM_EXIT_DEBUG: case KVM_EXIT_SHUTDOWN:
	case KVM_EXIT_FAIL_ENTRY:
		saw("Lost('exit reason %u')", run->exit_reason);
		break;
	default:
		saw("other_exit(%#x)", run->exit_reason);
	}
}

/* Say how the guest's run ended; returns whether it was with an MSR exit. */
static int saw_run(int id, int result)
{
	struct kvm_run *run = vm.vcpus[id].run;

	if (result < 0) {
		/* kvm_run is stale now */
		saw("Lost('KVM_RUN: %s')", strerror(errno));
		return 0;
	}
	if (is_msr_exit(run)) {
		saw_msr(run->exit_reason, run);
		vm.vcpus[id].at_exit = read_regs(id);
		return 1;
	}
	vm.vcpus[id].at_exit.rflags = 0;
	if (vm.vcpus[id].left && vm.vcpus[id].left(id))
		return 0;
	if (run->exit_reason == KVM_EXIT_IO)
		saw_outcome(id, run->io.port);
	else
		saw_foreign(run);
	return 0;
}
