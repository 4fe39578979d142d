/*
 * The words of the language in C: one function a word, and what they are made of.
 *
 * Two programs are made of these files: `msrward export` copies what a case needs of them, down to
 * one readable program, and the player (player.c) is all of them. A word does its step and says
 * what came of it, in the notation of a trace, with saw(). Nothing here waits for time to pass:
 * every step ends with an event of the kernel, or with a deadline. They stand in the order in which
 * each needs those before it.
 */
#include "words/layout.c"
#include "words/saw.c"
#include "words/vm.c"
#include "words/vcpu.c"
#include "words/exits.c"
#include "words/access.c"
#include "words/install.c"
#include "words/host.c"
#include "words/sweep.c"
#include "words/close.c"
#include "words/threads.c"
#include "words/faults.c"
#include "words/settle.c"
#include "words/stall.c"
#include "words/park.c"
#include "words/spin.c"
#include "words/sleep.c"
#include "words/lacks.c"
#include "words/platform.c"
#include "words/l1.c"
#include "words/vmcb.c"
#include "words/vmcs.c"
#include "words/evmcs.c"
#include "words/l1_exit.c"
#include "words/levels.c"
#include "words/modes.c"
#include "words/smm.c"
#include "words/behind.c"
#include "words/effect.c"
#include "words/effect_reads.c"
#include "words/effect_calls.c"
#include "words/effect_state.c"
#include "words/effects.c"
#include "words/shadows.c"
#include "words/restored.c"
#include "words/weigh.c"
#include "words/forms.c"
#include "words/xen.c"
