/* A guest that never leaves by itself; and one that does nothing but read the MSR in RCX. */
	.globl start, read_forever
start:
	jmp	start

read_forever:
	rdmsr
	jmp	read_forever
