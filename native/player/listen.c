/*
 * What workers say, told on line by line.
 */

static void finish_record(struct worker *worker, const char *how)
{
	look_at_the_log();
	say("done %d %d %s%s", worker->record, ms_of_clock() - worker->began, how, worker->steps);
	flush();
	worker->record = -1;
}

/* A step is the number of its text; the same again and again is counted. */
static void note_step(struct worker *worker, unsigned int text)
{
	size_t room = sizeof(worker->steps) - worker->noted;

	if (text == worker->last_text)
		worker->times++;
	else
		worker->times = 1, worker->last_at = worker->noted;
	worker->last_text = text;
	worker->noted = worker->last_at;
	room = sizeof(worker->steps) - worker->noted;
	if (worker->times == 1)
		worker->noted += snprintf(worker->steps + worker->noted, room, " %u", text);
	else
		worker->noted += snprintf(worker->steps + worker->noted, room, " %u*%d", text,
					  worker->times);
	if (worker->noted >= sizeof(worker->steps))
		die("the steps of a case");
}

/* A whole line of a worker: what it may say about the record that it is at, or anything else. */
static void forward(struct worker *worker, const char *line)
{
	char step[32], lack[32], end[32], spent[32];
	int size = 0, nothing;

	snprintf(step, sizeof(step), "step %d ", worker->record);
	snprintf(lack, sizeof(lack), "lacks %d ", worker->record);
	snprintf(end, sizeof(end), "end %d", worker->record);
	snprintf(spent, sizeof(spent), "spent %d", worker->record);
	if (!strncmp(line, step, strlen(step)) &&
	    sscanf(line, "step %*d %d %n", &nothing, &size) == 1) {
		note_step(worker, number_of(line + size));
	} else if (!strncmp(line, lack, strlen(lack))) {
		say("%s", line);
		if (n_lacking < MAX_NEEDS &&
		    sscanf(line, "lacks %*d %39s%n", lacking[n_lacking], &size) == 1)
			n_lacking++;
	} else if (!strcmp(line, end)) {
		finish_record(worker, "ok");
	} else if (!strcmp(line, spent)) {
		finish_record(worker, "ok");
		worker->is_spent = 1;	/* it ends by itself */
	} else {
		say("said %d %s", worker->record, line);
	}
}

static int read_worker(struct worker *worker)
{
	ssize_t got = read(worker->fd, worker->partial + worker->used,
			   sizeof(worker->partial) - 1 - worker->used);
	char *line = worker->partial, *end;

	if (got <= 0)
		return 0;
	worker->used += got;
	worker->partial[worker->used] = 0;
	while ((end = strchr(line, '\n'))) {
		*end = 0;
		forward(worker, line);
		line = end + 1;
	}
	worker->used -= line - worker->partial;
	memmove(worker->partial, line, worker->used);
	if (worker->used == sizeof(worker->partial) - 1)
		worker->used = 0;	/* no line is that long */
	return 1;
}
