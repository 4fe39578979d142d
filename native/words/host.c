/*
 * The words by which the host reads and sets MSRs, makes vCPUs and interrupt chips, and sets CPUID.
 */

static struct kvm_msrs *one_msr(__u32 index, __u64 data)
{
	struct kvm_msrs *msrs = calloc(1, sizeof(*msrs) + sizeof(msrs->entries[0]));

	if (!msrs)
		die("calloc");
	msrs->nmsrs = 1;
	msrs->entries[0].index = index;
	msrs->entries[0].data = data;
	return msrs;
}

static void get_msr(int id, __u32 index)
{
	struct kvm_msrs *msrs = one_msr(index, 0);
	int count = ioctl(vm.vcpus[id].fd, KVM_GET_MSRS, msrs);

	if (count < 0)
		saw_error(errno);
	else if (count)
		saw("got(%#llx)", msrs->entries[0].data);
	else
		saw("refused");
	free(msrs);
}

/* Set one MSR: 1, 0 if the vCPU refuses it, or negative (and errno). */
static int write_msr(int id, __u32 index, __u64 data)
{
	struct kvm_msrs *msrs = one_msr(index, data);
	int count = ioctl(vm.vcpus[id].fd, KVM_SET_MSRS, msrs), error = errno;

	free(msrs);
	errno = error;
	return count;
}

static void set_msr(int id, __u32 index, __u64 data)
{
	int count = write_msr(id, index, data);

	if (count)
		saw_result(count);
	else
		saw("refused");
}

/* Without CONFIG_KVM_IOAPIC there are only the local APICs, which KVM_CAP_SPLIT_IRQCHIP makes. */
static int make_irqchip(void)
{
	struct kvm_enable_cap split = { .cap = KVM_CAP_SPLIT_IRQCHIP, .args = { 24 } };
	int result = ioctl(vm.fd, KVM_CREATE_IRQCHIP, 0);

	if (result < 0 && errno == ENOTTY)
		result = ioctl(vm.fd, KVM_ENABLE_CAP, &split);
	return result;
}

static void create_irqchip(void)
{
	saw_result(make_irqchip());
}

static void create_vcpu(int id)
{
	saw_result(add_vcpu(id));
}

enum { EAX, EBX, ECX, EDX };

/* The vCPU's CPUID: all that the host supports, but one bit of a leaf as given. */
static void set_cpuid(int id, __u32 leaf, int reg, int bit, int on)
{
	struct kvm_cpuid2 *cpuid = supported_cpuid();

	for (__u32 i = 0; i < cpuid->nent; i++) {
		struct kvm_cpuid_entry2 *entry = &cpuid->entries[i];
		__u32 *regs[] = { &entry->eax, &entry->ebx, &entry->ecx, &entry->edx };

		if (entry->function == leaf)
			*regs[reg] = (*regs[reg] & ~(1u << bit)) | (__u32)on << bit;
	}
	saw_result(ioctl(vm.vcpus[id].fd, KVM_SET_CPUID2, cpuid));
	free(cpuid);
}
