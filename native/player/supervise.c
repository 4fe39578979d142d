/*
 * Who plays what, and until when; a crash of one case is that case's record alone.
 */

static void bury(struct worker *worker)
{
	char how[64];
	int status;

	if (waitpid(worker->pid, &status, WNOHANG) != worker->pid)
		return;
	while (read_worker(worker))
		;
	if (worker->is_killed)
		snprintf(how, sizeof(how), "timeout");
	else if (WIFSIGNALED(status))
		snprintf(how, sizeof(how), "died-%d", WTERMSIG(status));
	else
		snprintf(how, sizeof(how), "exited-%d", WEXITSTATUS(status));
	if (worker->record >= 0)
		finish_record(worker, how);
	close(worker->fd);
	close(worker->commands);
	worker->pid = 0;
}

/* Who plays it is told where the kernel's log has his number too: not in a PID namespace. */
static void say_begin(const struct worker *worker, __u32 number, int is_own)
{
	if (is_own)
		say("begin %u %d", number, worker->pid);
	else
		say("begin %u", number);
	flush();
}

static void assign(struct worker *worker, __u32 number, int is_own)
{
	if (!worker->pid)
		hire(worker);
	worker->record = number;
	worker->began = ms_of_clock();
	worker->patience = patience_of(DEADLINE);
	if (records[number].kind == CASE)
		worker->patience = patience_of(records[number].deadline);
	worker->noted = worker->last_text = worker->times = 0;
	worker->steps[0] = 0;
	say_begin(worker, number, is_own);
	if (write(worker->commands, &number, sizeof(number)) != sizeof(number))
		return;	/* it is dead: bury() says so */
}

/* A killed worker that does not die is held by the kernel: leave it behind. */
static void overdue(struct worker *worker)
{
	if (worker->is_killed) {
		finish_record(worker, "stuck");
		close(worker->fd);
		close(worker->commands);
		worker->pid = 0;
		return;
	}
	worker->is_killed = 1;
	worker->patience = patience_of(1000);
	kill(worker->pid, SIGKILL);
}

static int wait_for_workers(int jobs)
{
	struct pollfd fds[MAX_WORKERS];
	int busy = 0, beat = ms_of_clock();
	static int last_beat;

	for (int i = 0; i < jobs; i++) {
		fds[i].fd = workers[i].pid ? workers[i].fd : -1;
		fds[i].events = POLLIN;
		busy += workers[i].pid && (workers[i].record >= 0 || workers[i].is_spent);
	}
	if (!busy)
		return 0;
	poll(fds, jobs, SLICE);
	for (int i = 0; i < jobs; i++) {
		if (!workers[i].pid)
			continue;
		if (fds[i].revents & POLLIN)
			read_worker(&workers[i]);
		if (fds[i].revents & POLLHUP)
			bury(&workers[i]);
		if (workers[i].pid && workers[i].record >= 0 && !is_left(&workers[i].patience))
			overdue(&workers[i]);
	}
	if (beat - last_beat > 1000) {
		say("beat");
		flush();
		last_beat = beat;
	}
	return 1;
}

/* Let the workers end, who have nothing to do; one that does not (it may be stopped) is killed. */
static void dismiss(int jobs)
{
	for (int i = 0; i < jobs; i++) {
		struct pollfd ended = { .fd = workers[i].fd };

		if (!workers[i].pid)
			continue;
		close(workers[i].commands);
		if (poll(&ended, 1, LEAVES_WITHIN) <= 0)
			kill(workers[i].pid, SIGKILL);
		waitpid(workers[i].pid, NULL, 0);
		close(workers[i].fd);
		workers[i].pid = 0;
	}
}

static void set_parameter(const char *name, struct cursor tape, int is_own)
{
	char path[300], value[64];
	int fd;

	snprintf(path, sizeof(path), "/sys/module/kvm/parameters/%s", name);
	text(&tape, value, sizeof(value));
	fd = is_own && !strchr(name, '/') ? open(path, O_WRONLY | O_CLOEXEC) : -1;
	if (fd >= 0 && write(fd, value, strlen(value)) > 0)
		say("parameter %s %s", name, value);
	else
		say("parameter %s is left as it is", name);
	close(fd);
}

/* Somebody finds out whether the host has what cases need: none of them begins before he says. */
static int is_asking(int jobs)
{
	for (int i = 0; i < jobs; i++)
		if (workers[i].pid && workers[i].record >= 0 &&
		    records[workers[i].record].kind == NEED)
			return 1;
	return 0;
}

static void play_all(int jobs, int is_own)
{
	__u32 next = 0;

	for (;;) {
		struct record *record = &records[next];
		int at_once = next < n_records && record->kind == CASE ? jobs : 1, idle = -1;

		for (int i = 0; i < at_once && idle < 0; i++)
			if (!workers[i].pid || (workers[i].record < 0 && !workers[i].is_killed &&
						!workers[i].is_spent))
				idle = i;
		if (next == n_records || idle < 0 || record->kind == PARAMETER || is_asking(jobs)) {
			if (wait_for_workers(jobs))
				continue;
			if (next == n_records)
				break;
		}
		if (record->kind == PARAMETER) {
			set_parameter(record->id, record->rest, is_own);
			next++;
		} else if (record->kind == CASE && needs_what_lacks(record)) {
			say("without %u %s", next, record->needs[needs_what_lacks(record) - 1]);
			next++;
		} else if (record->kind == CASE || !wait_for_workers(jobs)) {
			assign(&workers[idle], next++, is_own);
		}
	}
	dismiss(jobs);
}
