/*
 * What L1 gets of an L2, by either vendor's names.
 */

/* The same of both vendors; on SVM it is in the VMCB. */
static struct got got_by_l1(int id)
{
	struct got got = *(struct got *)l1_memory(id, GOT);

	if (is_svm) {
		got.reason = vmcb_field(id, 0x070);
		got.info = vmcb_field(id, 0x078);
		got.rip = vmcb_field(id, 0x578);
		got.rax = vmcb_field(id, 0x5f8);
	}
	return got;
}

static const char *name_of_svm_exit(const struct got *got)
{
	switch (got->reason) {
	case 0x7c: return got->info & 1 ? "wrmsr" : "rdmsr";
	case 0x7f: return "shutdown";
	case 0x80: return "entry";	/* VMRUN */
	case 0x81: return "hypercall";
	default: return "other";
	}
}

static const char *name_of_vmx_exit(const struct got *got)
{
	switch (got->reason) {
	case 2: return "shutdown";
	case 18: return "hypercall";
	case 19 ... 27: return "entry";	/* VMCLEAR to VMXON */
	case 31: return "rdmsr";
	case 32: return "wrmsr";
	default: return "other";
	}
}

/* Of an access its registers, and how far from its instruction L2 stopped. */
static int msr_text(int id, const struct got *got, const char *name, char *text, size_t size)
{
	__u64 value = got->rdx << 32 | (got->rax & 0xffffffff);
	int skew = got->rip - vm.vcpus[id].access.rip, used = 0;

	if ((__u32)got->rcx)
		used += snprintf(text + used, size - used, ", index=%#x", (__u32)got->rcx);
	if (!strcmp(name, "wrmsr") && value)
		used += snprintf(text + used, size - used, ", value=%#llx", value);
	if (skew)
		used += snprintf(text + used, size - used, ", skew=%d", skew);
	return used;
}

static void saw_l1_exit(int id, const struct got *got)
{
	const char *name = is_svm ? name_of_svm_exit(got) : name_of_vmx_exit(got);
	const struct listed *stored = l1_memory(id, STORE);
	char text[1024] = "";
	int used = 0, count = levels[id].n_stored;

	if (!strcmp(name, "rdmsr") || !strcmp(name, "wrmsr"))
		used = msr_text(id, got, name, text, sizeof(text));
	for (int i = 0; i < count; i++)
		used += snprintf(text + used, sizeof(text) - used, "%s%#llx%s", i ? ", " :
				 ", stored=(", stored[i].value, i < count - 1 ? "" : ")");
	if (!strcmp(name, "other") && got->reason)
		snprintf(text + used, sizeof(text) - used, ", number=%#llx", got->reason);
	saw("l1_exit(%s%s)", name, text);
}

/* SVM has one number for an entry that fails, VMX marks its reasons. */
static int saw_failed_entry(const struct got *got)
{
	if (is_svm ? got->reason != ~0ull : !(got->reason >> 31 & 1))
		return 0;
	if (!is_svm && (__u16)got->reason == 34 && (__u32)got->info)
		saw("entry_failed(msr_load, entry=%#x)", (__u32)got->info);
	else
		saw("entry_failed(%s)", !is_svm && (__u16)got->reason == 34 ? "msr_load" : "state");
	return 1;
}

/* Say what L1 got, if that is how the guest's run ended. */
static int saw_left(int id)
{
	const struct kvm_run *run = vm.vcpus[id].run;
	int port = run->exit_reason == KVM_EXIT_IO ? run->io.port : 0;
	struct got got = got_by_l1(id);

	if (port == L1_FAILED_PORT && (__u32)got.reason)
		saw("entry_failed(instruction, entry=%#x)", (__u32)got.reason);
	else if (port == L1_FAILED_PORT)
		saw("entry_failed(instruction)");
	else if (run->exit_reason == KVM_EXIT_SHUTDOWN && levels[id].is_in_l2)
		saw("shutdown");
	else if (port != L1_PORT)
		return 0;
	else if (!saw_failed_entry(&got))
		saw_l1_exit(id, &got);
	levels[id].is_in_l2 = 0;
	return 1;
}
