/* The work-horse: executes a program of MSR accesses and records what each one left.
 *
 * Threaded code: each step is [handler, operands, results], RSP points into it and RET goes on to
 * the next. So an access costs a handful of instructions beside itself, and the host can tell from
 * RSP alone which step a vCPU is in. Exceptions come in on a stack of their own (IST 1), or they
 * would overwrite the program.
 */
#include "abi.inc"

	.set	TF, 0x100

	.globl start, op_touch, op_again, op_done, vectors
start:
	ret

/* One handler for each way to execute an access; NAME_at is where its RDMSR or WRMSR stands. */
	.macro	access name, instruction, is_emulated, is_single_step
	.globl	op_\name, \name\()_at
op_\name:
	pop	%rcx
	pop	%rax
	pop	%rdx
	.if \is_single_step
	pushfq				/* over RDX's word, which has been read */
	orl	$TF, (%rsp)
	popfq				/* TF counts from the instruction after the next */
	.endif
	.if \is_emulated
	ud2
	.ascii	"kvm"
	.endif
\name\()_at:
	\instruction
	mov	%rax, (%rsp)
	mov	%rdx, 8(%rsp)
	add	$32, %rsp
	ret
	.endm

	access	rdmsr, rdmsr, 0, 0
	access	wrmsr, wrmsr, 0, 0
	access	emulated_rdmsr, rdmsr, 1, 0
	access	emulated_wrmsr, wrmsr, 1, 0
	access	stepped_rdmsr, rdmsr, 0, 1
	access	stepped_wrmsr, wrmsr, 0, 1
	access	stepped_emulated_rdmsr, rdmsr, 1, 1
	access	stepped_emulated_wrmsr, wrmsr, 1, 1

/* RDMSR or WRMSR of RCX, RCX + RSI, and so on, RBP of them; RDI + RBP is the byte of the one that is
 * due, set if it faults: to the vector, or to NO_GP where anything else about it is not #GP(0).
 * RSP stays at four words that a fault overwrites, before the handler with which it goes on. */
	.macro	sweep name, instruction
	.globl	op_sweep_\name, sweep_\name\()_faulted
op_sweep_\name:
	pop	%rcx
	pop	%rax
	pop	%rdx
	pop	%rbp
	pop	%rsi
	pop	%rdi
sweep_\name\()_at:
	\instruction
sweep_\name\()_next:
	add	%esi, %ecx
	dec	%rbp
	jnz	sweep_\name\()_at
	add	$40, %rsp
	ret
sweep_\name\()_faulted:
	sub	$40, %rsp
	mov	(%rsp), %rax
	mov	20(%rsp), %ebx		/* FAULTED and the vector */
	cmpq	$sweep_\name\()_at, 24(%rsp)
	jne	1f
	cmpl	$0, 16(%rsp)
	je	2f
1:	mov	$NO_GP, %ebx
2:	movb	%bl, (%rdi, %rbp)
	jmp	sweep_\name\()_next
	.endm

	sweep	rdmsr, rdmsr
	sweep	wrmsr, wrmsr

/* Read the guest memory at RCX: the page may be one that the host has not given yet. */
op_touch:
	pop	%rcx
	pop	%rax
	pop	%rdx
	mov	(%rcx), %rbx
	mov	%rax, (%rsp)
	mov	%rdx, 8(%rsp)
	add	$32, %rsp
	ret

/* Count at RCX that the program went round, and start it (at RAX) again. */
op_again:
	pop	%rcx
	pop	%rax
	incq	(%rcx)
	mov	%rax, %rsp
	ret

/* A port write ends a batch with an in-kernel interrupt controller too, where HLT would wait. */
op_done:
	out	%al, $DONE_PORT
	jmp	op_done

/* The stubs are 16 bytes each, so that the host can compute an IDT from their number. */
	.balign	16
vectors:
	.set	vector, 0
	.rept	32
	.balign	16
	/* these push an error code by themselves */
	.if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30)
	push	$0
	.endif
	push	$vector
	jmp	fault
	.set	vector, vector + 1
	.endr

/* Frame: vector, error code, RIP, CS, RFLAGS, RSP, SS. The faulting RSP points to word 4. */
fault:
	mov	40(%rsp), %rbx
	mov	%rax, (%rbx)
	mov	%rdx, 8(%rbx)
	mov	8(%rsp), %eax
	mov	%eax, 16(%rbx)
	mov	(%rsp), %eax
	or	$FAULTED_HIGH, %eax
	mov	%eax, 20(%rbx)
	mov	16(%rsp), %rax
	mov	%rax, 24(%rbx)
	add	$32, %rbx
	mov	%rbx, 40(%rsp)
	movq	$start, 16(%rsp)
	andl	$~TF, 32(%rsp)
	add	$16, %rsp
	iretq

#include "nested.inc"
#include "stubs.inc"
