/*
 * What is written: lines in which nothing is a control byte, on a line that may lose bytes.
 */

enum { MAX_WORKERS = 16, MAX_NEEDS = 64, MAX_TEXTS = 1 << 14, MAX_LINE = 1 << 17 };
enum { LEAVES_WITHIN = 5000 };


/* Number the lines, and say how long each is: on a serial line a byte can be lost. */
static int is_framed;
static unsigned long n_lines;

/* A line in which nothing is a control byte, whoever it comes from. */
static void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void say(const char *format, ...)
{
	static char plain[MAX_LINE], line[4 * MAX_LINE];
	char *to = line;
	va_list args;

	va_start(args, format);
	vsnprintf(plain, sizeof(plain), format, args);
	va_end(args);
	for (const char *from = plain; *from; from++)
		if (*from == '\\' || !isprint((unsigned char)*from))
			to += sprintf(to, "\\x%02x", (unsigned char)*from);
		else
			*to++ = *from;
	*to = 0;
	if (is_framed)
		printf("%lu %zu 0 ", ++n_lines, (size_t)(to - line));
	fputs(line, stdout);
	putchar('\n');
}

/* A trace that is not written is worth nothing: end, and the workers with it. */
static void flush(void)
{
	if (!fflush(stdout) && !ferror(stdout))
		return;
	fprintf(stderr, "msrward-player: the trace cannot be written: %s\n", strerror(errno));
	_exit(TROUBLE);
}

/* What steps left is written once, and then called by its number: a serial line is slow. */
static char *texts[MAX_TEXTS];
static unsigned int n_texts, text_at[2 * MAX_TEXTS];

static unsigned int number_of(const char *text)
{
	unsigned int at = crc32((const __u8 *)text, strlen(text)) % (2 * MAX_TEXTS);

	while (text_at[at] && strcmp(texts[text_at[at] - 1], text))
		at = (at + 1) % (2 * MAX_TEXTS);
	if (text_at[at])
		return text_at[at];
	errno = E2BIG;
	if (n_texts == MAX_TEXTS)
		die("the texts of a trace");
	texts[n_texts] = strdup(text);
	if (!texts[n_texts])
		die("strdup");
	say("text %u %s", n_texts + 1, text);
	return text_at[at] = ++n_texts;
}
