/*
 * What a program needs that judges itself: what each step is expected to leave, and what the host
 * must have. `msrward export` copies what a case needs of it, after the words.
 */

static void need(const char *lack)
{
	if (lack)
		skip(lack);
}

/*
 * A parameter of kvm.ko that changes what is seen: the program says nothing unless it is as given.
 */
static void need_parameter(const char *name, int on)
{
	char path[96], why[192];
	FILE *file;
	int is;

	snprintf(path, sizeof(path), "/sys/module/kvm/parameters/%s", name);
	file = fopen(path, "r");
	is = file ? fgetc(file) : 'N';
	if (file)
		fclose(file);
	snprintf(why, sizeof(why), "%s is %s: load kvm with %s=%d", path, on ? "off" : "on", name,
		 on);
	if ((is != 'N' && is != '0') != on)
		skip(why);
}

/* The status to end with: a PASS that nobody could be told is none. */
static int told(int status)
{
	if (fflush(stdout) == 0 && !ferror(stdout))
		return status;
	fprintf(stderr, "stdout cannot be written\n");
	return status == PASS ? TROUBLE : status;
}

/* Say whether a step is as expected; ANY stands for one number, "or" for one of two. */
static int matches(const char *want, const char *have)
{
	const char *or = strstr(want, " or ");
	char first[1024];

	if (or) {
		snprintf(first, sizeof(first), "%.*s", (int)(or - want), want);
		return matches(first, have) || matches(or + 4, have);
	}
	if (!strcmp(want, "whatever"))
		return !is_end(have);
	if (!strcmp(want, "unfiltered"))
		return !is_end(have) && !strstr(have, "FILTER") && !strstr(have, "regs(");
	while (*want && *have) {
		if (!strncmp(want, "ANY", 3)) {
			want += 3;
			have += strcspn(have, ",)");
		} else if (*want++ != *have++) {
			return 0;
		}
	}
	return *want == *have;
}

/* End a step: print what it left, and at the first step that is wrong stop. */
static void expect(int step, const char *want)
{
	printf("%d: %s\n", step, seen);
	if (!matches(want, seen)) {
		printf("FAIL: step %d: expected %s, saw %s\n", step, want, seen);
		exit(told(FAIL));
	}
	seen[0] = 0;
}

/* End a step that may leave anything: print it. */
static void observe(int step)
{
	printf("%d: %s\n", step, seen);
	if (is_end(seen)) {
		printf("FAIL: step %d: saw %s\n", step, seen);
		exit(told(FAIL));
	}
	seen[0] = 0;
}

/* A run of accesses that have to end alike. */
struct run {
	__u32 count;
	int ended;
};

static int is_admitted(int want, int have)
{
	if (want == UNFILTERED)
		return have != FILTER && have != STRANGE;
	return want == WHATEVER ? have != STRANGE : want == have;
}

/* End a sweep: print what it left, and stop at the first access that ended wrong. */
static void expect_swept(int step, const struct run *want)
{
	int is_whole = !strncmp(seen, "swept(", 6);
	__u32 left = want->count;

	printf("%d: %s\n", step, seen);
	for (__u32 i = 0; i < sweep_done.count && is_whole; i++) {
		if (!left--)
			left = (++want)->count - 1;
		if (!is_admitted(want->ended, sweep_ended[i])) {
			printf("FAIL: step %d: MSR %#x: saw %s\n", step,
			       sweep_done.first + i * sweep_done.stride, name_of(sweep_ended[i]));
			exit(told(FAIL));
		}
	}
	if (!is_whole) {
		printf("FAIL: step %d: saw %s\n", step, seen);
		exit(told(FAIL));
	}
	seen[0] = 0;
}
