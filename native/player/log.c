/*
 * What the kernel says beside: its log, and its taint.
 */

static int kmsg = -1;
static long taint;

static long read_taint(void)
{
	FILE *file = fopen("/proc/sys/kernel/tainted", "r");
	long value = 0;

	if (file && fscanf(file, "%ld", &value) != 1)
		value = 0;
	if (file)
		fclose(file);
	return value;
}

/* What the kernel said since the last look: raw records of /dev/kmsg. */
static void look_at_the_log(void)
{
	char line[8193];
	ssize_t size;
	long now = read_taint();

	while (kmsg >= 0 && ((size = read(kmsg, line, sizeof(line) - 1)) > 0 || errno == EPIPE)) {
		if (size < 0) {
			say("lost");
			continue;
		}
		line[size] = 0;
		say("log %s", line);
	}
	if (now != taint)
		say("taint %ld", taint = now);
}
