/*
 * Instructions that load and store state: bases, what XSAVES saves, and what an SMI has saved.
 */

/* Two bases that change places: the value in KERNEL_GS_BASE, and another one in GS. */
enum { KERNEL_GS_BASE = 0xc0000102, OTHER_BASE = 0x12345000 };

static void give_swapped(struct setting *setting)
{
	give_msr(setting, KERNEL_GS_BASE, setting->value);
	setting->sregs.gs.base = OTHER_BASE;
}

static __u64 show_swapped(const struct setting *setting)
{
	int is_swapped = msr_of(setting->id, KERNEL_GS_BASE) == OTHER_BASE;

	return is_swapped ? setting->sregs.gs.base : 0;
}

static const struct effect swapgs_effect = {
	.code = { 0x0f, 0x01, 0xf8 }, .size = 3, .port = DONE_PORT, .mode = &long_mode,
	.gives = give_swapped, .shows = show_swapped,
};

/* Without FSGSBASE in CR4 there are no such instructions. */
static void allow_fsgsbase(struct setting *setting)
{
	setting->sregs.cr4 |= 1 << 16;
}

static void give_fs_base(struct setting *setting)
{
	allow_fsgsbase(setting);
	setting->sregs.fs.base = setting->value;
}

static void give_gs_base(struct setting *setting)
{
	allow_fsgsbase(setting);
	setting->sregs.gs.base = setting->value;
}

static void give_new_base(struct setting *setting)
{
	allow_fsgsbase(setting);
	setting->regs.rax = setting->value;
}

static __u64 show_fs_base(const struct setting *setting)
{
	return setting->sregs.fs.base;
}

static __u64 show_gs_base(const struct setting *setting)
{
	return setting->sregs.gs.base;
}

/* rdfsbase %rax, and so on */
static const struct effect rdfsbase_effect = {
	.code = { 0xf3, 0x48, 0x0f, 0xae, 0xc0 }, .size = 5, .port = DONE_PORT, .mode = &long_mode,
	.gives = give_fs_base, .shows = show_rax,
};

static const struct effect rdgsbase_effect = {
	.code = { 0xf3, 0x48, 0x0f, 0xae, 0xc8 }, .size = 5, .port = DONE_PORT, .mode = &long_mode,
	.gives = give_gs_base, .shows = show_rax,
};

static const struct effect wrfsbase_effect = {
	.code = { 0xf3, 0x48, 0x0f, 0xae, 0xd0 }, .size = 5, .port = DONE_PORT, .mode = &long_mode,
	.gives = give_new_base, .shows = show_fs_base,
};

static const struct effect wrgsbase_effect = {
	.code = { 0xf3, 0x48, 0x0f, 0xae, 0xd8 }, .size = 5, .port = DONE_PORT, .mode = &long_mode,
	.gives = give_new_base, .shows = show_gs_base,
};

/* The control word has a bit that is always 1. */
enum { ALWAYS = 0x40, CONTROL_BITS = 0xf3f };

/* The form of an XSAVES area that only XSAVES writes: compact, with the state of the FPU in it. */
static const __u64 compact_x87[] = { 1, 1ull << 63 | 1 };

static __u8 *area_of(const struct setting *setting)
{
	return vm.memory + AREAS + PAGE * setting->id;
}

static __u64 control_at(const __u8 *at)
{
	return (at[0] | at[1] << 8) & ~ALWAYS;
}

/* The guest works on its area, on the state of the FPU alone (EDX:EAX = 1). */
static void give_control(struct setting *setting, size_t offset)
{
	__u16 control = (setting->value & CONTROL_BITS) | ALWAYS;

	memset(area_of(setting), 0, PAGE);
	memcpy(area_of(setting) + offset, &control, sizeof(control));
	setting->sregs.cr4 |= 1 << 18;	/* OSXSAVE */
	setting->regs.rax = 1;
	setting->regs.rdi = AREAS + PAGE * setting->id;
	setting->regs.rsi = AREAS + PAGE * setting->id + CONTROL;
}

static void give_loaded(struct setting *setting)
{
	give_control(setting, CONTROL);
}

static __u64 show_saved(const struct setting *setting)
{
	const __u8 *area = area_of(setting);
	int is_compact = !memcmp(area + 520, &compact_x87[1], sizeof(compact_x87[1]));

	return is_compact ? control_at(area) : 0;
}

/* fldcw (%rsi); xsaves (%rdi) */
static const struct effect xsaves_effect = {
	.code = { 0xd9, 0x2e, 0x0f, 0xc7, 0x2f }, .size = 5, .before = 2, .port = DONE_PORT,
	.mode = &long_mode, .gives = give_loaded, .shows = show_saved,
};

static void give_saved(struct setting *setting)
{
	give_control(setting, 0);
	memcpy(area_of(setting) + 512, compact_x87, sizeof(compact_x87));
}

static __u64 show_stored(const struct setting *setting)
{
	return control_at(area_of(setting) + CONTROL);
}

/* fninit; xrstors (%rdi); fnstcw (%rsi) */
static const struct effect xrstors_effect = {
	.code = { 0xdb, 0xe3, 0x0f, 0xc7, 0x1f, 0xd9, 0x3e }, .size = 7, .before = 2,
	.port = DONE_PORT, .mode = &long_mode, .gives = give_saved, .shows = show_stored,
};

static void give_interrupted_base(struct setting *setting)
{
	setting->sregs.fs.base = setting->value;
}

/* What it loads is what an SMI has saved. */
static const struct effect rsm_effect = {
	.code = { 0x0f, 0xaa }, .size = 2, .port = DONE_PORT, .mode = &long_mode,
	.gives = give_interrupted_base, .shows = show_fs_base,
};
