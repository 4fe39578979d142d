/*
 * A worker: a process that plays a case at a time and writes to a pipe.
 */

/* A worker: a process, the pipe that it writes to, and the record that it is at. */
struct worker {
	pid_t pid;
	int fd, commands;
	int record;		/* -1: none */
	int is_killed, is_spent, used, began;
	struct patience patience;
	char partial[MAX_LINE];
	/* What its case left so far: " 1 4*3", the last of it from last_at on. */
	char steps[MAX_LINE / 2];
	size_t noted, last_at;
	unsigned int last_text;
	int times;
};

static struct worker workers[MAX_WORKERS];

static int needs_what_lacks(const struct record *record)
{
	for (int i = 0; i < record->n_needs; i++)
		for (int j = 0; j < n_lacking; j++)
			if (!strcmp(record->needs[i], lacking[j]))
				return i + 1;
	return 0;
}

static void play(int number)
{
	const struct record *record = &records[number];

	if (record->kind == NEED) {
		const char *why = lacks(record->id);

		if (why)
			printf("lacks %d %s %s\n", number, record->id, why);
		return;
	}
	play_case(number, record->rest, record->flags);
}

static void serve(int commands)
{
	__u32 number;

	while (read(commands, &number, sizeof(number)) == sizeof(number)) {
		play(number);
		printf("%s %u\n", is_spent ? "spent" : "end", number);
		fflush(stdout);
		if (is_spent)
			break;
	}
	exit(0);
}

static void hire(struct worker *worker)
{
	int lines[2], commands[2];

	if (pipe2(lines, O_CLOEXEC) < 0 || pipe2(commands, O_CLOEXEC) < 0)
		die("msrward-player: pipes for a worker (-j asks for fewer, ulimit -n allows more)");
	flush();
	worker->pid = fork();
	if (worker->pid < 0)
		die("msrward-player: a worker (-j asks for fewer, ulimit -u allows more)");
	if (worker->pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		dup2(lines[1], 1);
		dup2(lines[1], 2);
		for (struct worker *each = workers; each < workers + MAX_WORKERS; each++)
			if (each->pid && each != worker)
				close(each->commands);
		close(commands[1]);
		open_kvm();
		serve(commands[0]);
	}
	close(lines[1]);
	close(commands[0]);
	fcntl(lines[0], F_SETFL, O_NONBLOCK);
	worker->fd = lines[0];
	worker->commands = commands[1];
	worker->record = -1;
	worker->is_killed = worker->is_spent = worker->used = 0;
}
