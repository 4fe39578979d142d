/*
 * msrward-player: does what a tape says, and writes down what it sees.
 *
 * It needs no shared library and nothing but /dev, /proc and /sys. A supervisor reads the tape and
 * forks workers that do the cases; what takes too long it kills, and what a case does to its worker
 * is that case's alone. It decides nothing and expects nothing: what it writes is read where the
 * contract is (msrward judge; vmm/conformance/judge/trace.py says what each line means).
 */
#include "words.c"

#include <ctype.h>
#include <dirent.h>
#include <sys/prctl.h>

#include "player/tape.c"
#include "player/pool.c"
#include "player/operands.c"
#include "player/installs.c"
#include "player/steps.c"
#include "player/levels.c"
#include "player/actions.c"
#include "player/case.c"
#include "player/needs.c"
#include "player/say.c"
#include "player/records.c"
#include "player/worker.c"
#include "player/log.c"
#include "player/listen.c"
#include "player/supervise.c"
#include "player/facts.c"

/* Play the tape to its end; the exit status. */
static int play_tape(const char *path, int jobs, int is_own)
{
	signal(SIGPIPE, SIG_IGN);
	/* Ignored, as it may be inherited, no worker would leave a status. */
	signal(SIGCHLD, SIG_DFL);
	read_tape(path);
	open_kvm();
	tell_facts();
	kmsg = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (kmsg < 0 || lseek(kmsg, 0, SEEK_END) < 0)
		say("unwatched %s", strerror(errno));
	taint = read_taint();
	play_all(jobs, is_own);
	look_at_the_log();
	say("over %u", n_records);
	flush();
	return PASS;
}

#include "player/guest.c"

static int usage(FILE *to)
{
	fprintf(to, "usage: msrward-player [-jN] [--own] TAPE\n"
			"Play a tape that `msrward tape` wrote (- for stdin); `msrward judge` reads what it says.\n"
			"  -jN    so many workers at once, 1 to %d (1)\n"
			"  --own  the kernel is the tape's: set module parameters as it says\n",
		MAX_WORKERS);
	return TROUBLE;
}

int main(int argc, char **argv)
{
	int jobs = 1, is_own = 0, i;
	char more;

	if (getpid() == 1)
		be_init();
	if (fcntl(1, F_GETFD) < 0)
		die("msrward-player: the trace cannot be written");
	for (i = 1; i < argc && argv[i][0] == '-' && argv[i][1]; i++) {
		if (!strcmp(argv[i], "--own"))
			is_own = 1;
		else if (!strcmp(argv[i], "-h") || !strcmp(argv[i], "--help"))
			return usage(stdout), PASS;
		else if (sscanf(argv[i], "-j%d%c", &jobs, &more) != 1 || jobs < 1 ||
			 jobs > MAX_WORKERS)
			return usage(stderr);
	}
	return i == argc - 1 ? play_tape(argv[i], jobs, is_own) : usage(stderr);
}
