/*
 * What the kernel says beside: its log, and its taint.
 */

static int kmsg = -1;
static long taint;

/* The number that a file begins with, or another where there is none. */
static double number_in(const char *path, double otherwise)
{
	FILE *file = fopen(path, "r");
	double number = otherwise;

	if (file && fscanf(file, "%lf", &number) != 1)
		number = otherwise;
	if (file)
		fclose(file);
	return number;
}

static long read_taint(void)
{
	return (long)number_in("/proc/sys/kernel/tainted", 0);
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
