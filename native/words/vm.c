/*
 * A VM: its memory, the code and the tables in it, and how it is opened.
 */

static struct {
	void *at;
	size_t size;
} mapped[512];
static size_t n_mapped;

/* Where a 32-bit caller can point, and a pointer that is taken for signed leads astray. */
#define LOW (2ul << 30)
#define LOW_END (4ul << 30)

/* Memory below 4 GiB: in the upper half, or where the kernel finds no room there, in the lower. */
static void *map_low(size_t size)
{
	static unsigned long next = LOW;
	int flags = MAP_PRIVATE | MAP_ANONYMOUS, protection = PROT_READ | PROT_WRITE;
	unsigned long hint = next + size < LOW_END ? next : LOW;
	void *at = mmap((void *)hint, size, protection, flags, -1, 0);

	next = hint + (size + PAGE - 1) / PAGE * PAGE;
	if (at != MAP_FAILED && (unsigned long)at + size > LOW_END) {
		munmap(at, size);
		at = mmap(NULL, size, protection, flags | MAP_32BIT, -1, 0);
	}
	if (at == MAP_FAILED)
		die("mmap");
	if (n_mapped < sizeof(mapped) / sizeof(mapped[0])) {
		mapped[n_mapped].at = at;
		mapped[n_mapped++].size = size;
	}
	return at;
}

/* Give back what map_low() has mapped. */
static void unmap_low(void)
{
	while (n_mapped--)
		munmap(mapped[n_mapped].at, mapped[n_mapped].size);
	n_mapped = 0;
}

static __u8 *add_memory(int slot, __u64 base, size_t size)
{
	struct kvm_userspace_memory_region region = { .slot = slot, .guest_phys_addr = base };
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
	void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, -1, 0);

	if (at == MAP_FAILED)
		die("mmap");
	region.memory_size = size;
	region.userspace_addr = (unsigned long)at;
	if (ioctl(vm.fd, KVM_SET_USER_MEMORY_REGION, &region) < 0)
		die("KVM_SET_USER_MEMORY_REGION");
	return at;
}

/* In front of an instruction this has KVM's emulator execute it: force_emulation_prefix=1. */
static const __u8 prefix[] = { 0x0f, 0x0b, 'k', 'v', 'm' };

static void write_code(__u64 at, __u8 opcode)
{
	/* who runs on behind the end of an access comes there again */
	const __u8 once[] = { 0x0f, opcode, 0xe6, DONE_PORT, 0xeb, -4 };
	/* incq (%rbx); jmp back to the instruction, or to its prefix */
	const __u8 loop[] = { 0x0f, opcode, 0x48, 0xff, 0x03, 0xeb, -7 };
	const __u8 prefixed_loop[] = { 0x0f, opcode, 0x48, 0xff, 0x03, 0xeb, -12 };

	memcpy(vm.memory + at, once, sizeof(once));
	memcpy(vm.memory + at + LOOP, loop, sizeof(loop));
	memcpy(vm.memory + at + PREFIXED - sizeof(prefix), prefix, sizeof(prefix));
	memcpy(vm.memory + at + PREFIXED, once, sizeof(once));
	memcpy(vm.memory + at + (LOOP | PREFIXED) - sizeof(prefix), prefix, sizeof(prefix));
	memcpy(vm.memory + at + (LOOP | PREFIXED), prefixed_loop, sizeof(prefixed_loop));
}

static void write_sweep(__u64 at, __u8 opcode)
{
	/* the instruction; add %esi, %ecx; dec %rbp; jnz back; out %al, $port */
	const __u8 code[] = {
		0x0f, opcode, 0x01, 0xf1, 0x48, 0xff, 0xcd, 0x75, -9, 0xe6, DONE_PORT,
	};

	memcpy(vm.memory + at, code, sizeof(code));
}

static void write_stub(unsigned int vector)
{
	__u32 stub = STUBS + 16 * vector;
	__u16 gate[] = { stub & 0xffff, 8, 0x8e00, stub >> 16, 0, 0, 0, 0 };
	/* out %al, $port, for ever */
	__u8 code[] = { 0xe6, VECTOR_PORT + vector, 0xeb, -4 };

	memcpy(vm.memory + IDT + 16 * vector, gate, sizeof(gate));
	memcpy(vm.memory + stub, code, sizeof(code));
}

static void open_kvm(void)
{
	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0)
		die("/dev/kvm");
}

/* It registers an MMU notifier, which gives up where a signal is pending: SIGSTOP, say. */
static int create_vm(void)
{
	int fd;

	if (!kvm)
		open_kvm();
	do
		fd = ioctl(kvm, KVM_CREATE_VM, 0);
	while (fd < 0 && errno == EINTR);
	if (fd < 0)
		die("KVM_CREATE_VM");
	return fd;
}

static void open_vm(void)
{
	const __u64 gdt[] = { 0, 0x00af9b000000ffff, 0x00cf93000000ffff };
	const __u64 pml4 = PDPT | 7, pdpt = PD | 7, pd[] = { 0x87, MEMORY | 0x87 };
	const int in_pml4 = HIGHER_HALF >> 39 & 0x1ff, in_pdpt = HIGHER_HALF >> 30 & 0x1ff;
	/* mov (%rcx), %rbx; out %al, $port */
	const __u8 touch[] = { 0x48, 0x8b, 0x19, 0xe6, DONE_PORT };

	vm.fd = create_vm();
	vm.memory = add_memory(0, 0, MEMORY);
	memcpy(vm.memory + GDT, gdt, sizeof(gdt));
	memcpy(vm.memory + PML4, &pml4, sizeof(pml4));
	memcpy(vm.memory + PML4 + sizeof(pml4) * in_pml4, &pml4, sizeof(pml4));
	memcpy(vm.memory + PDPT, &pdpt, sizeof(pdpt));
	memcpy(vm.memory + PDPT + sizeof(pdpt) * in_pdpt, &pdpt, sizeof(pdpt));
	memcpy(vm.memory + PD, pd, sizeof(pd));
	write_code(RDMSR, 0x32);
	write_code(WRMSR, 0x30);
	write_sweep(SWEEP_RDMSR, 0x32);
	write_sweep(SWEEP_WRMSR, 0x30);
	memcpy(vm.memory + TOUCH, touch, sizeof(touch));
	for (unsigned int vector = 0; vector < VECTORS; vector++)
		write_stub(vector);
}
