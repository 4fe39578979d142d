/*
 * The tape as a whole: its records, and what lacks.
 */

struct record {
	__u8 kind, flags;
	__u32 deadline;		/* ms */
	char id[256];
	char needs[8][40];
	int n_needs;
	struct cursor rest;
};

static struct record *records;
static __u32 n_records;
static char lacking[MAX_NEEDS][40];
static int n_lacking;

static void read_record(struct cursor tape, struct record *record)
{
	record->kind = u8(&tape);
	text(&tape, record->id, sizeof(record->id));
	if (record->kind == CASE) {
		record->flags = u8(&tape);
		record->deadline = u32(&tape);
		record->n_needs = below(&tape, 9);
		for (int i = 0; i < record->n_needs; i++)
			text(&tape, record->needs[i], sizeof(record->needs[i]));
	} else if (record->kind != NEED && record->kind != PARAMETER) {
		damaged("a record of no known kind");
	}
	record->rest = tape;
}

/* The tape as a whole, or stdin for "-". */
static struct cursor load(const char *path)
{
	size_t room = 1 << 20, size = 0;
	int fd = strcmp(path, "-") ? open(path, O_RDONLY | O_CLOEXEC) : 0;
	__u8 *all = malloc(room);
	ssize_t got;

	if (fd < 0)
		die(path);
	while (all && (got = read(fd, all + size, room - size)) != 0) {
		if (got < 0)
			die(path);
		size += got;
		if (size > 64 << 20)
			damaged("it is longer than 64 MiB");
		if (size == room)
			all = realloc(all, room *= 2);
	}
	if (!all)
		die("the tape");
	return (struct cursor){ all, all + size };
}

static void read_tape(const char *path)
{
	struct cursor tape = load(path);
	__u32 version, size, crc;

	if (tape.end - tape.at < HEADER || memcmp(take(&tape, 8), "MSRWTAPE", 8))
		damaged("it does not begin as one");
	version = u32(&tape);
	if (version != VERSION) {
		fprintf(stderr, "msrward-player: the tape is of version %08x, and this player of %08x: "
				"take both from one msrward\n", version, VERSION);
		exit(TROUBLE);
	}
	n_records = u32(&tape);
	size = u32(&tape);
	crc = u32(&tape);
	if (size != tape.end - tape.at || crc != crc32(tape.at, size))
		damaged("its length or its checksum is wrong");
	if (n_records > 1 << 20)
		damaged("so many records");
	records = calloc(n_records + 1, sizeof(*records));
	if (!records)
		die("the tape");
	for (__u32 i = 0; i < n_records; i++)
		read_record(part(&tape, u32(&tape)), &records[i]);
	say("msrward-player %08x %08x %u", VERSION, crc, n_records);
}
