/* The quick start: read the MSR whose index the host put into RCX, then halt. */
	.globl start
start:
	rdmsr
	hlt
	jmp	start
