/* The stress: vCPUs access MSRs while other threads install filters, and every outcome is judged.
 *
 * Which outcomes a filter permits is a table that the caller makes; here is only the question
 * which filters could have been in force. Each VM has a logical clock that installers advance:
 * an install is `started` before its ioctl and `returned` after it. Publications are serialized
 * (R77), so install i is certainly replaced by j once returned(i) < started(j) and j is in force.
 * Hence one number says it all, the cutoff: the latest start among the installs known to be in
 * force or replaced before an access began. Install i may be seen by that access unless
 * returned(i) < cutoff, or it was started only after the access had ended.
 */
#ifndef MSRWARD_STRESS_H
#define MSRWARD_STRESS_H

#include "shim.h"

#define MW_RING 256
#define MW_GROUPS 32
#define MW_WINDOW 32
/* A KVM_RUN that took from 2^n ns on, and less than 2^(n+1), counts in the n-th bucket. */
#define MW_BUCKETS 40
#define MW_MAX_STEPS 1024
#define MW_STEP_SIZE 16
#define MW_MARKS 0x8000
#define MW_DONE_PORT 0xd0

/* How an access ends. MW_STRANGE is an exit that is not this access's: no filter permits it. */
enum { MW_DONE, MW_GP, MW_FILTER, MW_UNKNOWN, MW_INVAL, MW_STRANGE, MW_OUTCOMES };

/* What all threads obey: installers leave at MW_SETTLE, vCPUs do one more batch after MW_END, and
 * at MW_ABORT everybody leaves at once. */
enum { MW_RACE, MW_SETTLE, MW_END, MW_ABORT };

/* One install; returned is 0 while it runs. */
struct mw_install {
	uint64_t started, returned;
	uint32_t filter, number, installer;
};

/* The last installs of one installer in one VM; failing ones are not among them. */
struct mw_ring {
	uint64_t begun;
	struct mw_install installs[MW_RING];
};

/* replaced: the latest start of an install that has returned. seen: likewise of one that a vCPU
 * is known to have obeyed, for accesses that no hardware bitmap answers. */
struct mw_race_vm {
	int fd;
	uint32_t n_rings;
	struct mw_ring *rings;
	uint64_t clock, replaced, seen;
};

/* A submitted filter: where it lies, its number, and the result that its install must have. */
struct mw_choice {
	uintptr_t address;
	uint32_t filter;
	int32_t expected;
};

struct mw_installer {
	uint32_t *phase;
	struct mw_race_vm *vms;
	const struct mw_choice *choices;
	uint32_t n_vms, n_choices, ring;
	uint64_t turn, limit;
	uint64_t swaps, refused, calls;
	int32_t result;
	uint32_t is_wrong;
};

/* One access. permits[outcome] has a bit for each filter under which it may end so. A vCPU's
 * accesses of one group see filters in the order of their publication: group 0 is what no
 * hardware bitmap ever answers; any other MSR has a group for itself. */
struct mw_step {
	uint32_t index;
	uint16_t is_write, group;
	uint64_t permits[MW_OUTCOMES];
};

/* The accesses between KVM_RUN and its return: when, and which installs they may have seen.
 * loose: more than there is room for, so every filter counts. */
struct mw_window {
	uint64_t began, ended, cutoff, cutoff0;
	uint32_t n, loose;
	struct mw_install installs[MW_WINDOW];
};

struct mw_racer {
	uint32_t *phase;
	struct mw_race_vm *vm;
	void *run;
	uint8_t *marks;
	const struct mw_step *steps;
	uint64_t program, reply;
	int fd;
	uint32_t n_steps, at;
	uint64_t cutoffs[MW_GROUPS];
	uint64_t outcomes[MW_OUTCOMES];
	uint64_t batches, runs, loose;
	uint64_t took[MW_BUCKETS];
	struct mw_window window;
	uint8_t batch[MW_MAX_STEPS];
	uint32_t is_impossible, step, outcome;
	uint64_t used_cutoff;
	uint32_t is_lost;
	int32_t ended_by;
};

void mw_open_window(struct mw_racer *racer);
void mw_close_window(struct mw_racer *racer);
int mw_judge(struct mw_racer *racer, uint32_t step, uint32_t outcome);
int mw_race_vcpus(struct mw_racer *racers, uint32_t n);
int mw_race_install(struct mw_installer *me);

#endif
