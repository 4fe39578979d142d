/*
 * Words for what a guest is given beside MSRs, and for what else the host does to a vCPU.
 */

/*
 * What KVM_SET_CPUID2 takes: the vCPU's CPUID as it is now; the caller frees it. An older kernel
 * (6.1) does not say how many entries it wrote: those that it left are of a leaf that no CPU has.
 */
static struct kvm_cpuid2 *cpuid_of(int id)
{
	struct kvm_cpuid2 *cpuid = supported_cpuid();
	__u32 nent = 0;

	cpuid->nent = 512;
	memset(cpuid->entries, 0xff, 512 * sizeof(cpuid->entries[0]));
	if (ioctl(vm.vcpus[id].fd, KVM_GET_CPUID2, cpuid) < 0)
		die("KVM_GET_CPUID2");
	while (nent < cpuid->nent && cpuid->entries[nent].function != 0xffffffff)
		nent++;
	cpuid->nent = nent;
	return cpuid;
}

static __u32 *cpuid_register(struct kvm_cpuid_entry2 *entry, int reg)
{
	__u32 *regs[] = { &entry->eax, &entry->ebx, &entry->ecx, &entry->edx };

	return regs[reg];
}

/* The entry of a leaf, a new one if there is none. */
static struct kvm_cpuid_entry2 *find_leaf(struct kvm_cpuid2 *cpuid, __u32 leaf, __u32 index)
{
	struct kvm_cpuid_entry2 *entry = cpuid->entries;

	for (; entry < cpuid->entries + cpuid->nent; entry++)
		if (entry->function == leaf && entry->index == index)
			return entry;
	*entry = (struct kvm_cpuid_entry2){ .function = leaf, .index = index };
	entry->flags = index ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0;
	cpuid->nent++;
	return entry;
}

/* The vCPU's CPUID, but bits of a register as given. */
static void set_cpuid_bits(int id, __u32 leaf, __u32 index, int reg, __u32 bits, int on)
{
	struct kvm_cpuid2 *cpuid = cpuid_of(id);
	__u32 *content = cpuid_register(find_leaf(cpuid, leaf, index), reg);

	*content = on ? *content | bits : *content & ~bits;
	saw_result(ioctl(vm.vcpus[id].fd, KVM_SET_CPUID2, cpuid));
	free(cpuid);
}

/* Leaves that say who made the CPU, which leaves there are, and how wide addresses are. */
static int has_no_features(__u32 leaf)
{
	return leaf == 0 || leaf == 0x40000000 || leaf == 0x80000000 || leaf == 0x80000008;
}

/* All that the host supports, or nothing that long mode can be without: LM, NX, SYSCALL. */
static void set_cpuid_everything(int id, int on)
{
	struct kvm_cpuid2 *cpuid = supported_cpuid();

	for (__u32 i = 0; !on && i < cpuid->nent; i++) {
		struct kvm_cpuid_entry2 *entry = &cpuid->entries[i];
		__u32 kept = entry->function == 0x80000001 ? 1 << 29 | 1 << 20 | 1 << 11 : 0;

		if (has_no_features(entry->function))
			continue;
		entry->eax = entry->ebx = entry->ecx = 0;
		entry->edx &= kept;
	}
	saw_result(ioctl(vm.vcpus[id].fd, KVM_SET_CPUID2, cpuid));
	free(cpuid);
}

/* An INIT by a message; KVM finds the APIC once its state was set, even to what it was. */
static void send_init(int id)
{
	struct kvm_msi init = { .address_lo = 0xfee00000 | id << 12, .data = 5 << 8 };
	struct kvm_lapic_state lapic;

	if (ioctl(vm.vcpus[id].fd, KVM_GET_LAPIC, &lapic) < 0)
		saw_error(errno);
	else if (ioctl(vm.vcpus[id].fd, KVM_SET_LAPIC, &lapic) < 0)
		saw_error(errno);
	else
		saw_result(ioctl(vm.fd, KVM_SIGNAL_MSI, &init));
}

/* A SIPI by a message; KVM has found the APIC by then. */
static void send_sipi(int id)
{
	struct kvm_msi sipi = {
		.address_lo = 0xfee00000 | id << 12, .data = 6 << 8 | SIPI_VECTOR,
	};

	saw_result(ioctl(vm.fd, KVM_SIGNAL_MSI, &sipi));
}

static void set_mp_state(int id, __u32 state)
{
	struct kvm_mp_state request = { .mp_state = state };

	saw_result(ioctl(vm.vcpus[id].fd, KVM_SET_MP_STATE, &request));
}

/* Does what is pending first: an INIT resets the vCPU. */
static void get_mp_state(int id)
{
	struct kvm_mp_state state;

	if (ioctl(vm.vcpus[id].fd, KVM_GET_MP_STATE, &state) < 0)
		saw_error(errno);
	else if (state.mp_state)
		saw("got(%#x)", state.mp_state);
	else
		saw("got(0)");
}

/* KVM_X86_REG_MSR(index), which headers before 6.18 do not have. */
static struct kvm_one_reg one_reg(__u32 index, __u64 *value)
{
	return (struct kvm_one_reg){ 0x2030000200000000 | index, (unsigned long)value };
}

static void get_msr_by_one_reg(int id, __u32 index)
{
	__u64 value = 0;
	struct kvm_one_reg reg = one_reg(index, &value);

	if (ioctl(vm.vcpus[id].fd, KVM_GET_ONE_REG, &reg) == 0)
		saw("got(%#llx)", value);
	else if (errno == EINVAL)
		saw("refused");
	else
		saw_error(errno);
}

static void set_msr_by_one_reg(int id, __u32 index, __u64 value)
{
	struct kvm_one_reg reg = one_reg(index, &value);
	int result = ioctl(vm.vcpus[id].fd, KVM_SET_ONE_REG, &reg);

	if (result < 0 && errno == EINVAL)
		saw("refused");
	else
		saw_result(result);
}

/* Create a vCPU while this process can open no file more: the last step of it fails. */
static void create_vcpu_without_fd(int id)
{
	struct rlimit before, none;
	int free_fd = open("/dev/null", O_RDONLY | O_CLOEXEC), result;

	close(free_fd);
	getrlimit(RLIMIT_NOFILE, &before);
	none = (struct rlimit){ free_fd, before.rlim_max };
	setrlimit(RLIMIT_NOFILE, &none);
	result = ioctl(vm.fd, KVM_CREATE_VCPU, id);
	if (result >= 0)
		close(result);
	setrlimit(RLIMIT_NOFILE, &before);
	if (result < 0 && errno == EMFILE)
		saw("rejected(EMFILE)");	/* the limit is the script's own */
	else
		saw_result(result);
}

/* What the last of these needs, found by doing it. */
static const char *lacks_capability(int cap, int bits, const char *why)
{
	return (ioctl(kvm, KVM_CHECK_EXTENSION, cap) & bits) == bits ? NULL : why;
}

static const char *lacks_one_reg(void)
{
	return lacks_capability(KVM_CAP_ONE_REG, 1, "no KVM_GET_ONE_REG before 6.18");
}

static const char *lacks_disable_exits(int bit)
{
	return lacks_capability(KVM_CAP_X86_DISABLE_EXITS, bit,
				"KVM_CAP_X86_DISABLE_EXITS does not offer it here");
}

static const char *lacks_disable_exits_mwait(void) { return lacks_disable_exits(1); }

static const char *lacks_disable_exits_hlt(void) { return lacks_disable_exits(2); }

static const char *lacks_disable_exits_pause(void) { return lacks_disable_exits(4); }

static const char *lacks_disable_exits_cstate(void) { return lacks_disable_exits(8); }

static const char *lacks_disable_exits_aperfmperf(void) { return lacks_disable_exits(16); }

static const char *lacks_feature(__u32 leaf, __u32 index, int reg, __u32 bit, const char *why)
{
	struct kvm_cpuid2 *cpuid = supported_cpuid();
	int has = (*cpuid_register(find_leaf(cpuid, leaf, index), reg) & bit) != 0;

	free(cpuid);
	return has ? NULL : why;
}

static const char *lacks_shstk(void)
{
	return lacks_feature(7, 0, ECX, 1 << 7, "KVM_GET_SUPPORTED_CPUID has no SHSTK");
}

/* Whether a guest's write of the value counts: it is read again. */
static const char *lacks_state(__u32 index, __u64 value, const char *why)
{
	char want[64];

	open_vm();
	need_vcpu(0);
	do_access(0, (struct access){ .rip = WRMSR, .rcx = index, .rax = value });
	seen[0] = 0;
	do_access(0, (struct access){ .rip = RDMSR, .rcx = index });
	snprintf(want, sizeof(want), "returned(%#llx)", value);
	if (!strcmp(seen, want))
		why = NULL;
	seen[0] = 0;
	drop_vm();
	return why;
}

static const char *lacks_spec_ctrl(void)
{
	return lacks_state(0x48, 1, "SPEC_CTRL.IBRS cannot be turned on");
}

static const char *lacks_xfd(void)
{
	return lacks_state(0x1c4, 1 << 18, "XFD for AMX cannot be turned on");
}

static const char *lacks_lbr(void)
{
	return lacks_state(0x1d9, 1, "DEBUGCTL.LBR cannot be turned on");
}

static const char *lacks_pt(void)
{
	return lacks_state(0x570, 1, "RTIT_CTL.TraceEn cannot be turned on");
}

/* Whether a guest's counters can be the hardware's own: from 7.0 on. */
static const char *lacks_mediated_pmu(void)
{
	static const char * const modules[] = { "kvm_intel", "kvm_amd" };
	char path[96], value = 'N';

	for (int i = 0; i < 2 && value == 'N'; i++) {
		int fd;

		snprintf(path, sizeof(path), "/sys/module/%s/parameters/enable_mediated_pmu",
			 modules[i]);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd >= 0 && read(fd, &value, 1) != 1)
			value = 'N';
		close(fd);
	}
	return value == 'Y' || value == '1' ? NULL :
	       "no kvm_intel or kvm_amd here has enable_mediated_pmu=1";
}
