/* The guest of the stress: accesses MSRs and does next to nothing else.
 *
 * Threaded code as in access.S, but a step is 16 bytes, [handler, RCX], and leaves nothing unless
 * it faults: then a byte MARKS above the step's end is set. RAX and RDX are what the last RDMSR
 * returned, which only the host decides. The program's end is [op_done, address of the program].
 *
 * #GP comes in on a stack of its own (IST 1), takes RSP back from the frame and simply goes on: an
 * IRET would be one more instruction, and each costs 0.5 us where CPL0 code is emulated.
 */
#include "abi.inc"
#define MARKS		0x8000
#define LOST_PORT	0xd1

	.globl start, op_rdmsr, op_wrmsr, op_done, vectors
start:
	ret

op_rdmsr:
	pop	%rcx
	rdmsr
	ret

op_wrmsr:
	pop	%rcx
	wrmsr
	ret

op_done:
	out	%al, $DONE_PORT
	mov	(%rsp), %rsp
	ret

	.balign	16
vectors:
	.rept	13
	.balign	16
	out	%al, $LOST_PORT
	jmp	vectors
	.endr
	/* 13, #GP. Frame: error code, RIP, CS, RFLAGS, RSP, SS. */
	.balign	16
	mov	32(%rsp), %rsp
	movb	$1, MARKS(%rsp)
	ret
	.rept	18
	.balign	16
	out	%al, $LOST_PORT
	jmp	vectors
	.endr
