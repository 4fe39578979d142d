/*
 * A vCPU: its CPUID, its special and its general registers, and how it is added to the VM.
 */

static struct kvm_segment segment(int selector, int type, int l)
{
	return (struct kvm_segment){
		.limit = 0xffffffff, .selector = selector, .type = type, .dpl = selector & 3,
		.present = 1, .s = 1, .l = l, .db = !l, .g = 1,
	};
}

static struct kvm_sregs read_sregs(int id)
{
	struct kvm_sregs sregs;

	if (ioctl(vm.vcpus[id].fd, KVM_GET_SREGS, &sregs) < 0)
		die("KVM_GET_SREGS");
	return sregs;
}

static void write_sregs(int id, const struct kvm_sregs *sregs)
{
	if (ioctl(vm.vcpus[id].fd, KVM_SET_SREGS, sregs) < 0)
		die("KVM_SET_SREGS");
}

static struct kvm_vcpu_events read_events(int id)
{
	struct kvm_vcpu_events events;

	if (ioctl(vm.vcpus[id].fd, KVM_GET_VCPU_EVENTS, &events) < 0)
		die("KVM_GET_VCPU_EVENTS");
	return events;
}

static void write_events(int id, const struct kvm_vcpu_events *events)
{
	if (ioctl(vm.vcpus[id].fd, KVM_SET_VCPU_EVENTS, events) < 0)
		die("KVM_SET_VCPU_EVENTS");
}

/* 64-bit mode, CPL0, flat, with the tables of open_vm(). */
static void be_long(struct kvm_sregs *sregs)
{
	sregs->cs = segment(0x08, 11, 1);
	sregs->ds = sregs->es = sregs->fs = sregs->gs = sregs->ss = segment(0x10, 3, 0);
	sregs->gdt.base = GDT;
	sregs->gdt.limit = 0x17;
	sregs->idt.base = IDT;
	sregs->idt.limit = 16 * VECTORS - 1;
	sregs->cr3 = PML4;
	sregs->cr4 = 0x220;		/* PAE, OSFXSR */
	sregs->cr0 = 0x80010033;	/* PG, WP, NE, ET, MP, PE */
	sregs->efer = 0xd01;		/* NX, LMA, LME, SCE */
}

/* All that the host supports; the caller frees it. */
static struct kvm_cpuid2 *supported_cpuid(void)
{
	enum { ENTRIES = 512 };
	struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + ENTRIES * sizeof(cpuid->entries[0]));

	if (!cpuid)
		die("calloc");
	cpuid->nent = ENTRIES;
	if (ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid) < 0)
		die("KVM_GET_SUPPORTED_CPUID");
	return cpuid;
}

/* Create a vCPU in 64-bit mode, CPL0; negative (and errno) if the kernel refuses. */
static int add_vcpu(int id)
{
	struct kvm_mp_state runnable = { .mp_state = KVM_MP_STATE_RUNNABLE };
	int fd = ioctl(vm.fd, KVM_CREATE_VCPU, id);
	int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	struct kvm_cpuid2 *cpuid;
	struct kvm_sregs sregs;

	if (fd < 0)
		return -1;
	vm.vcpus[id].fd = fd;
	vm.vcpus[id].run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (vm.vcpus[id].run == MAP_FAILED)
		die("mmap of kvm_run");
	cpuid = supported_cpuid();
	if (ioctl(fd, KVM_SET_CPUID2, cpuid) < 0)
		die("KVM_SET_CPUID2");
	free(cpuid);
	sregs = read_sregs(id);
	be_long(&sregs);
	write_sregs(id, &sregs);
	/* Behind an in-kernel APIC all but the first would wait for a SIPI. */
	if (ioctl(fd, KVM_SET_MP_STATE, &runnable) < 0)
		die("KVM_SET_MP_STATE");
	return 0;
}

static void need_vcpu(int id)
{
	if (add_vcpu(id) < 0)
		die("KVM_CREATE_VCPU");
}

static struct kvm_regs read_regs(int id)
{
	struct kvm_regs regs;

	if (ioctl(vm.vcpus[id].fd, KVM_GET_REGS, &regs) < 0)
		die("KVM_GET_REGS");
	return regs;
}

static void write_regs(int id, const struct kvm_regs *regs)
{
	if (ioctl(vm.vcpus[id].fd, KVM_SET_REGS, regs) < 0)
		die("KVM_SET_REGS");
}
