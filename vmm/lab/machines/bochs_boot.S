# The boot sector of the Bochs disk: reads a kernel by PIO to where boot.rst wants it and starts
# it in real mode. Python appends the table of what to read; bochs_disk.py has the assembled bytes.
# An entry: u32 address, u32 first sector, u16 sectors per command, u16 commands. Address 0 ends.
	.code16
	.intel_syntax noprefix
start:	cli
	xor	ax, ax
	mov	ds, ax
	in	al, 0x92		# let addresses above 1 MiB through (A20)
	or	al, 2
	out	0x92, al
	lgdt	[gdtr - start + 0x7c00]
	mov	eax, cr0		# "unreal" mode: ES keeps the 4 GiB limit of its descriptor
	or	al, 1
	mov	cr0, eax
	mov	bx, 8
	mov	es, bx
	and	al, 0xfe
	mov	cr0, eax
	mov	dx, 0x3f6		# no interrupts from the disk: it is polled
	mov	al, 2
	out	dx, al
	mov	si, offset table - start + 0x7c00
	cld
entry:	mov	edi, [si]
	test	edi, edi
	jz	boot
	mov	ebx, [si + 4]
command: mov	dx, 0x1f2
	mov	al, [si + 8]
	out	dx, al
	inc	dx
	mov	eax, ebx
	out	dx, al
	inc	dx
	shr	eax, 8
	out	dx, al
	inc	dx
	shr	eax, 8
	out	dx, al
	inc	dx
	mov	al, ah
	or	al, 0xe0		# LBA addressing, first drive
	out	dx, al
	inc	dx
	mov	al, 0x20		# READ SECTORS
	out	dx, al
	movzx	ebp, word ptr [si + 8]
	add	ebx, ebp
sector:	in	al, dx
	and	al, 0x88		# not busy, and data ready
	cmp	al, 8
	jne	sector
	mov	dl, 0xf0
	mov	ecx, 256
	.byte	0x67			# insw to ES:EDI, counted by ECX
	rep insw
	mov	dl, 0xf7
	dec	bp
	jnz	sector
	dec	word ptr [si + 10]
	jnz	command
	add	si, 12
	jmp	entry
boot:	mov	ax, 0x9000
	mov	ds, ax
	mov	es, ax
	mov	fs, ax
	mov	gs, ax
	mov	ss, ax
	mov	sp, 0xe000
	.byte	0xea, 0x00, 0x00, 0x20, 0x90	# jmp 0x9020:0, the setup code
	.balign	8
gdt:	.quad	0, 0x00cf92000000ffff	# null, flat data
gdtr:	.word	15
	.long	gdt - start + 0x7c00
table:
