/*
 * Actions that install filters, alone or beside another.
 */

static void *const KERNEL_ADDRESS = (void *)0xffff800000000000;

/* What an install sends, kept until the case has ended. */
struct placed {
	struct kvm_msr_filter filter;
	__u8 *bits[KVM_MSR_FILTER_MAX_RANGES];
	__u16 sizes[KVM_MSR_FILTER_MAX_RANGES];
	int fd, caller, is_compat;
	unsigned long number;
	const void *argp;
};

static struct placed *last_placed;
static int has_threads;	/* which may still read the bitmaps of an install */

/* A page's last byte and those behind it: a bitmap is aligned to nothing, and crosses pages. */
static __u8 *across_pages(size_t size)
{
	return (__u8 *)map_low(PAGE + size) + PAGE - 1;
}

/* Where the bits of a slot go: where those of the last install are, as a VMM changes its filter. */
static __u8 *place_of(int slot, size_t size)
{
	const struct placed *last = has_threads ? NULL : last_placed;

	if (last && last->bits[slot] && last->sizes[slot] == size)
		return last->bits[slot];
	return across_pages(size);
}

/* A bitmap as the tape says: bytes, a pointer to nowhere, or bytes before the edge of a page. */
static void read_bitmap(struct cursor *tape, struct placed *placed, int slot)
{
	__u8 **bitmap = &placed->filter.ranges[slot].bitmap;
	__u8 kind = below(tape, 5);
	__u16 size = u16(tape);
	const __u8 *bits = take(tape, size);

	if (size > PAGE)
		damaged("a bitmap is longer than a page");
	if (kind == 0) {
		*bitmap = placed->bits[slot] = place_of(slot, size);
		placed->sizes[slot] = size;
		memcpy(*bitmap, bits, size);
	} else if (kind == 4) {
		*bitmap = at_edge(bits, size);
	} else {
		*bitmap = kind == 1 ? NULL : kind == 2 ? unmapped() : KERNEL_ADDRESS;
	}
}

static struct placed *read_install(struct cursor *tape)
{
	struct placed *placed = map_low(sizeof(*placed));
	int pointer, ranges;

	placed->fd = fd_of(tape);
	placed->caller = below(tape, 3);
	placed->number = u32(tape);
	placed->is_compat = placed->number == KVM_X86_SET_MSR_FILTER_COMPAT;
	pointer = below(tape, 4);
	placed->filter.flags = u32(tape);
	ranges = below(tape, KVM_MSR_FILTER_MAX_RANGES + 1);
	for (int slot = 0; slot < ranges; slot++) {
		placed->filter.ranges[slot].flags = u32(tape);
		placed->filter.ranges[slot].base = u32(tape);
		placed->filter.ranges[slot].nmsrs = u32(tape);
		read_bitmap(tape, placed, slot);
	}
	holes(&placed->filter);
	placed->argp = pointer == 0 ? &placed->filter : pointer == 1 ? NULL :
		       pointer == 2 ? unmapped() : KERNEL_ADDRESS;
	last_placed = placed;
	return placed;
}

static void send(const void *argument)
{
	const struct placed *placed = argument;
	const void *argp = placed->argp;

	if (argp == &placed->filter && placed->is_compat)
		argp = low_compat(argp);
	else if (argp == &placed->filter && placed->caller == 1)
		argp = low(argp);
	if (placed->caller == 0)
		install(placed->fd, placed->number, argp);
	else if (placed->caller == 1)
		install_compat(placed->fd, placed->number, argp);
	else
		install_in_child(placed->fd, placed->number, argp);
}

/* What the kernel was given: the bitmaps below 4 GiB are those, no copies are made of them. */
static void scribble_last(void)
{
	for (int slot = 0; last_placed && slot < KVM_MSR_FILTER_MAX_RANGES; slot++)
		if (last_placed->bits[slot])
			scribble_bitmap(last_placed->bits[slot], last_placed->sizes[slot]);
	saw("done");
}

static void begin_install_of(struct cursor *tape)
{
	char name[20];
	struct placed *placed;
	int slot;

	has_threads = 1;
	text(tape, name, sizeof(name));
	slot = u8(tape);
	placed = read_install(tape);
	if (slot < KVM_MSR_FILTER_MAX_RANGES)
		placed->filter.ranges[slot].bitmap =
			not_there(name, placed->bits[slot], placed->sizes[slot]);
	begin_install(name, send, placed);
}

static void do_inner(const void *argument)
{
	struct cursor tape = *(const struct cursor *)argument;

	do_action(&tape);
}

static void meanwhile_of(struct cursor *tape)
{
	struct cursor *inner = map_low(sizeof(*inner));
	char name[20];

	has_threads = 1;
	text(tape, name, sizeof(name));
	*inner = part(tape, u16(tape));
	meanwhile(name, do_inner, inner);
}
