/*
 * L2 as SVM has it: the VMCB (APM volume 2, appendix B).
 */

static void put(__u8 *at, __u64 value, size_t size)
{
	memcpy(at, &value, size);
}

static __u64 vmcb_field(int id, int offset)
{
	__u64 value;

	memcpy(&value, l1_memory(id, VMCB + offset), sizeof(value));
	return value;
}

static void put_segment(__u8 *at, __u16 selector, __u16 attributes, __u32 limit, __u64 base)
{
	put(at, selector, 2);
	put(at + 2, attributes, 2);
	put(at + 4, limit, 4);
	put(at + 8, base, 8);
}

static void write_vmcb_segments(__u8 *vmcb)
{
	/* ES, SS, DS, FS, GS */
	static const int data[] = { 0x400, 0x420, 0x430, 0x440, 0x450 };

	for (int i = 0; i < 5; i++)
		put_segment(vmcb + data[i], 0x10, 0xc93, 0xffffffff, 0);
	put_segment(vmcb + 0x410, 0x08, 0xa9b, 0xffffffff, 0);		/* CS */
	put_segment(vmcb + 0x460, 0, 0, 0x17, GDT);
	put_segment(vmcb + 0x470, 0, 0x82, 0, 0);			/* LDTR */
	put_segment(vmcb + 0x480, 0, 0, 16 * VECTORS - 1, IDT);
	put_segment(vmcb + 0x490, 0x18, 0x8b, 0x67, 0);			/* TR */
}

static void write_vmcb(int id, const struct l2 *l2)
{
	__u8 *vmcb = l1_memory(id, VMCB);

	memset(vmcb, 0, PAGE);
	/* L1 intercepts shutdown, VMRUN, VMMCALL, and the MSRs that its bitmap says */
	put(vmcb + 0x00c, 1u << 31 | (l2->no_bitmap ? 0 : 1 << 28), 4);
	put(vmcb + 0x010, 1 << 0 | 1 << 1, 4);
	put(vmcb + 0x048, l1_area(id) + BITMAP, 8);
	put(vmcb + 0x058, 1, 4);			/* the ASID: 0 is the host's */
	put(vmcb + 0x0c0, l2->clean ? 1u << 31 : 0, 4);	/* Hyper-V's clean bit, and that it */
	put(vmcb + 0x3e0, l2->clean ? 1 << 1 : 0, 4);	/* says the bitmap of MSRs too */
	write_vmcb_segments(vmcb);
	put(vmcb + 0x4d0, 0x1d01, 8);			/* EFER: SVME, NX, LMA, LME, SCE */
	put(vmcb + 0x548, 0x220, 8);			/* CR4 */
	put(vmcb + 0x550, PML4, 8);			/* CR3 */
	put(vmcb + 0x558, 0x80010033, 8);		/* CR0 */
	put(vmcb + 0x560, 0x400, 8);			/* DR7 */
	put(vmcb + 0x568, 0xffff0ff0, 8);		/* DR6 */
	put(vmcb + 0x570, 2, 8);			/* RFLAGS */
	put(vmcb + 0x578, L2_START, 8);			/* RIP */
	put(vmcb + 0x5d8, STACKS + PAGE * (id + 1), 8);	/* RSP */
	put(vmcb + 0x668, 0x0007040600070406, 8);	/* PAT */
	write_bitmap(id, l2);
	*(struct got *)l1_memory(id, GOT) = (struct got){ .all = l2->fields };
}
