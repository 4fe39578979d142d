#define _GNU_SOURCE
#include "stress.h"

#include <errno.h>
#include <time.h>

/* Everything shared is sequentially consistent: one total order is what the judge reasons with. */
#define LOAD(at) __atomic_load_n(&(at), __ATOMIC_SEQ_CST)
#define STORE(at, value) __atomic_store_n(&(at), value, __ATOMIC_SEQ_CST)
#define TICK(clock) __atomic_add_fetch(&(clock), 1, __ATOMIC_SEQ_CST)

static void raise_to(uint64_t *at, uint64_t value)
{
	uint64_t old = LOAD(*at);

	while (old < value && !__atomic_compare_exchange_n(at, &old, value, 0, __ATOMIC_SEQ_CST,
							   __ATOMIC_SEQ_CST))
		;
}

/* --- the judge ---------------------------------------------------------------------------- */

/* What is settled before the accesses of this KVM_RUN begin. */
void mw_open_window(struct mw_racer *racer)
{
	struct mw_window *window = &racer->window;
	uint64_t seen = LOAD(racer->vm->seen);

	window->cutoff = LOAD(racer->vm->replaced);
	window->cutoff0 = seen > window->cutoff ? seen : window->cutoff;
	window->began = LOAD(racer->vm->clock);
}

/* Newest first, so that the first one certainly replaced ends the search: an installer's older
 * installs were replaced before. A slot that may have been overwritten while it was read, or no
 * room for one more, makes the window loose. */
static void collect(struct mw_window *window, struct mw_ring *ring, uint32_t installer)
{
	for (uint64_t number = LOAD(ring->begun); number-- > 0;) {
		struct mw_install *slot = &ring->installs[number % MW_RING];
		struct mw_install seen = { LOAD(slot->started), LOAD(slot->returned),
					   LOAD(slot->filter), (uint32_t)number, installer };

		if (LOAD(ring->begun) >= number + MW_RING)
			window->loose = 1;
		if (window->loose || (seen.returned && seen.returned < window->cutoff))
			return;
		if (seen.started > window->ended)
			continue;
		if (window->n == MW_WINDOW)
			window->loose = 1;
		else
			window->installs[window->n++] = seen;
	}
}

/* Which installs the accesses of this KVM_RUN may have seen. */
void mw_close_window(struct mw_racer *racer)
{
	struct mw_window *window = &racer->window;

	window->ended = LOAD(racer->vm->clock);
	window->n = window->loose = 0;
	for (uint32_t ring = 0; ring < racer->vm->n_rings; ring++)
		collect(window, &racer->vm->rings[ring], ring);
	racer->loose += window->loose;
}

/* The cutoff that an access with these permits leaves, or 0 if no install explains it. */
static uint64_t explain(const struct mw_window *window, uint64_t permits, uint64_t cutoff)
{
	uint64_t first = 0;

	for (uint32_t each = 0; each < window->n; each++) {
		const struct mw_install *install = &window->installs[each];

		if (install->returned && install->returned < cutoff)
			continue;
		if (permits >> install->filter & 1 && (!first || install->started < first))
			first = install->started;
	}
	return first && first < cutoff ? cutoff : first;
}

/* 0 if the outcome is possible, else 1 and it is noted. An access that an install explains raises
 * the cutoff for the later ones of its group: nobody sees the new filter and then the old. */
int mw_judge(struct mw_racer *racer, uint32_t step, uint32_t outcome)
{
	const struct mw_step *access = &racer->steps[step];
	const struct mw_window *window = &racer->window;
	uint64_t *own = &racer->cutoffs[access->group];
	uint64_t cutoff = access->group ? window->cutoff : window->cutoff0;
	uint64_t found;

	cutoff = *own > cutoff ? *own : cutoff;
	racer->outcomes[outcome]++;
	racer->batch[step] = (uint8_t)outcome;
	if (window->loose && access->permits[outcome])
		return 0;
	found = explain(window, access->permits[outcome], cutoff);
	if (found) {
		*own = found;
		return 0;
	}
	racer->used_cutoff = cutoff;
	racer->step = step;
	racer->outcome = outcome;
	return racer->is_impossible = 1;
}

/* --- vCPUs -------------------------------------------------------------------------------- */

/* Judge the steps before `end`, none of which exited: a marked one faulted. */
static int pass(struct mw_racer *racer, uint32_t end)
{
	for (; racer->at < end; racer->at++) {
		uint8_t *mark = racer->marks + (racer->at + 1) * MW_STEP_SIZE;
		uint32_t outcome = *mark ? MW_GP : MW_DONE;

		*mark = 0;
		if (mw_judge(racer, racer->at, outcome))
			return 1;
	}
	return 0;
}

static uint32_t outcome_of(const struct mw_step *step, const struct kvm_run *run)
{
	uint32_t kind = step->is_write ? KVM_EXIT_X86_WRMSR : KVM_EXIT_X86_RDMSR;

	if (run->exit_reason != kind || run->msr.index != step->index)
		return MW_STRANGE;
	switch (run->msr.reason) {
	case KVM_MSR_EXIT_REASON_FILTER:
		return MW_FILTER;
	case KVM_MSR_EXIT_REASON_UNKNOWN:
		return MW_UNKNOWN;
	case KVM_MSR_EXIT_REASON_INVAL:
		return MW_INVAL;
	}
	return MW_STRANGE;
}

static int exited(struct mw_racer *racer)
{
	struct kvm_run *run = racer->run;
	uint64_t at = (run->s.regs.regs.rsp - racer->program) / MW_STEP_SIZE - 1;

	if (at < racer->at || at >= racer->n_steps)
		return mw_judge(racer, racer->at, MW_STRANGE);
	if (pass(racer, (uint32_t)at) ||
	    mw_judge(racer, racer->at, outcome_of(&racer->steps[at], run)))
		return 1;
	racer->at++;
	run->msr.data = racer->reply;
	run->msr.error = 0;
	return 0;
}

static uint64_t nanoseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static void count_time(struct mw_racer *racer, uint64_t took)
{
	uint32_t bucket = took ? 63 - (uint32_t)__builtin_clzll(took) : 0;

	racer->took[bucket < MW_BUCKETS ? bucket : MW_BUCKETS - 1]++;
}

/* KVM_RUN to its next exit. A signal changes nothing: the window stays open, because what the
 * vCPU did before it is only told by the next exit. */
static int run(struct mw_racer *racer)
{
	uint64_t began;
	int reason;

	mw_open_window(racer);
	do {
		began = nanoseconds();
		reason = mw_run(racer->fd, racer->run);
	} while (reason == -EINTR && LOAD(*racer->phase) < MW_ABORT);
	count_time(racer, nanoseconds() - began);
	mw_close_window(racer);
	racer->runs++;
	return reason;
}

/* One whole batch: 0 when all of it was possible. */
static int batch(struct mw_racer *racer)
{
	struct kvm_run *kvm_run = racer->run;
	int wrong = 0;

	while (!wrong) {
		int reason = run(racer);

		if (reason == KVM_EXIT_X86_RDMSR || reason == KVM_EXIT_X86_WRMSR) {
			wrong = exited(racer);
		} else if (reason == KVM_EXIT_IO && kvm_run->io.port == MW_DONE_PORT) {
			wrong = pass(racer, racer->n_steps);
			break;
		} else {
			racer->is_lost = reason != -EINTR;
			racer->ended_by = reason;
			return 1;
		}
		raise_to(&racer->vm->seen, racer->cutoffs[0]);
	}
	raise_to(&racer->vm->seen, racer->cutoffs[0]);
	racer->at = 0;
	racer->batches++;
	return wrong;
}

/* Run batches on these vCPUs (one thread's, of different VMs) in turns until the phase says to
 * leave. 0, or 1 and one racer says why; then all the others are told to leave. */
int mw_race_vcpus(struct mw_racer *racers, uint32_t n)
{
	uint32_t phase, last = 0;

	for (uint32_t each = 0; each < n; each++)
		((struct kvm_run *)racers[each].run)->kvm_valid_regs |= KVM_SYNC_X86_REGS;
	do {
		phase = LOAD(*racers->phase);
		for (uint32_t each = 0; each < n && phase < MW_ABORT; each++) {
			if (!batch(&racers[each]))
				continue;
			STORE(*racers->phase, MW_ABORT);
			return 1;
		}
		last += phase == MW_END;
	} while (phase < MW_END || (phase == MW_END && !last));
	return 0;
}

/* --- installers --------------------------------------------------------------------------- */

static int install(struct mw_installer *me, struct mw_race_vm *vm, const struct mw_choice *choice)
{
	struct mw_ring *ring = &vm->rings[me->ring];
	uint64_t begun = LOAD(ring->begun), started;
	struct mw_install *slot = &ring->installs[begun % MW_RING];
	int result;

	STORE(slot->returned, 0);
	STORE(slot->filter, choice->filter);
	started = TICK(vm->clock);
	STORE(slot->started, started);
	STORE(ring->begun, begun + 1);
	result = mw_ioctl(vm->fd, KVM_X86_SET_MSR_FILTER, choice->address);
	STORE(slot->returned, TICK(vm->clock));
	raise_to(&vm->replaced, started);
	return result;
}

/* Install one filter after the other, in one VM after the other (an install right after another of
 * the same VM waits 4-20 ms: srcutree.exp_holdoff), until the phase or the limit says to leave.
 * 0, or 1 when a result was not the expected one; then all others leave too. */
int mw_race_install(struct mw_installer *me)
{
	while (LOAD(*me->phase) == MW_RACE && me->calls < me->limit) {
		const struct mw_choice *choice = &me->choices[me->turn % me->n_choices];
		struct mw_race_vm *vm = &me->vms[me->turn++ % me->n_vms];

		me->result = choice->expected
			? mw_ioctl(vm->fd, KVM_X86_SET_MSR_FILTER, choice->address)
			: install(me, vm, choice);
		me->calls++;
		*(choice->expected ? &me->refused : &me->swaps) += 1;
		if (me->result != choice->expected) {
			me->is_wrong = 1;
			STORE(*me->phase, MW_ABORT);
			return 1;
		}
	}
	return 0;
}
