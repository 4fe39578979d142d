/*
 * A tape's version, kinds and primitive values, as vmm/conformance/c/tape.py writes them; that says
 * what they mean. What no tape of ours can hold is damage.
 */

/* What every action's layout and each line of a trace come to: a test computes it. */
static const __u32 VERSION = 0x43d6f034;

enum { HEADER = 24, POOLED = 2 };

/* What a record of a tape is. */
enum { NEED = 1, PARAMETER, CASE };

/* What a case is: "keeps" says that its VM serves others after it. */
enum { KEEPS = 1, MAKES_VCPUS = 2 };

/* The actions, as a tape numbers them. */
enum {
	ACCESS = 1, BEGIN, SPIN, COMPLETE, FINISH, SET_REGS, GET_REGS, ENABLE_CAP, INSTALL,
	SCRIBBLE,
	CHECK_EXTENSION, GET_MSR, SET_MSR, CREATE_IRQCHIP, CREATE_VCPU, SET_CPUID, BEGIN_INSTALL,
	MEANWHILE, RESUME_INSTALL, AWAIT, PARK, RELEASE, UNTIL_EXITS, UNTIL_RUNS, STOP_SPIN,
	CLOSE_VM, CLOSE_VCPU, SWEEP, SET_CPUID_BITS, SEND_INIT, GET_MP_STATE, ENTER_L2, LEAVE_L2,
	EXECUTE, GET_VCPU_EVENTS, REWRITE, INJECT, GET_TAKEN,
	SAVE_NESTED, RESTORE_NESTED, LEAVE_NESTED, FRESH_VM,
	WEIGH_BITMAPS, XEN_HVM_CONFIG, GET_HYPERCALL_PAGE,
	SET_MP_STATE, SEND_SIPI, SLEEP, WAKE, AWAIT_SIPI,
};

struct cursor {
	const __u8 *at, *end;
};

static void damaged(const char *why)
{
	fprintf(stderr, "msrward-player: the tape is damaged: %s\n", why);
	exit(TROUBLE);
}

static const __u8 *take(struct cursor *tape, size_t size)
{
	const __u8 *at = tape->at;

	if (size > (size_t)(tape->end - at))
		damaged("it ends in the middle of a word");
	tape->at += size;
	return at;
}

static __u64 number(struct cursor *tape, size_t size)
{
	__u64 value = 0;

	memcpy(&value, take(tape, size), size);	/* little-endian, as the machine is */
	return value;
}

static __u8 u8(struct cursor *tape) { return number(tape, 1); }
static __u16 u16(struct cursor *tape) { return number(tape, 2); }
static __u32 u32(struct cursor *tape) { return number(tape, 4); }
static __u64 u64(struct cursor *tape) { return number(tape, 8); }

/* One of so many. */
static __u8 below(struct cursor *tape, unsigned int count)
{
	__u8 value = u8(tape);

	if (value >= count)
		damaged("a number is too large for what it counts");
	return value;
}

/* A text with its length before it, ended by a 0 in place. */
static const char *text(struct cursor *tape, char *into, size_t room)
{
	__u8 size = u8(tape);

	if (size >= room)
		damaged("a text is too long");
	memcpy(into, take(tape, size), size);
	into[size] = 0;
	return into;
}

static struct cursor part(struct cursor *tape, size_t size)
{
	const __u8 *at = take(tape, size);

	return (struct cursor){ at, at + size };
}

static __u32 crc32(const __u8 *at, size_t size)
{
	__u32 crc = ~0u;

	while (size--) {
		crc ^= *at++;
		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? 0xedb88320 : 0);
	}
	return ~crc;
}
