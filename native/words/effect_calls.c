/*
 * Instructions that call the kernel and return from it.
 */

static void give_syscall(struct setting *setting)
{
	give_msr(setting, 0xc0000081, setting->value << 32);	/* STAR */
	give_msr(setting, 0xc0000082, LANDED);			/* LSTAR */
	give_msr(setting, 0xc0000084, 0);			/* SYSCALL_MASK */
}

static const struct effect syscall_effect = {
	.code = { 0x0f, 0x05 }, .size = 2, .port = LANDED_PORT, .mode = &long_mode,
	.gives = give_syscall, .shows = show_cs,
};

/* It leads to user code, which may write to ports by what R11 becomes: RFLAGS. */
static void give_sysret(struct setting *setting)
{
	give_msr(setting, 0xc0000081, setting->value << 48);	/* STAR */
	setting->regs.rcx = LANDED;
	setting->regs.r11 = 2 | IOPL3;
}

static const struct effect sysretq_effect = {
	.code = { 0x48, 0x0f, 0x07 }, .size = 3, .port = LANDED_PORT, .mode = &long_mode,
	.gives = give_sysret, .shows = show_user_cs,
};

static void give_sysenter(struct setting *setting)
{
	give_msr(setting, 0x174, setting->value);		/* SYSENTER_CS */
	give_msr(setting, 0x175, setting->regs.rsp);		/* SYSENTER_ESP */
	give_msr(setting, 0x176, LANDED);			/* SYSENTER_EIP */
}

static const struct effect sysenter_effect = {
	.code = { 0x0f, 0x34 }, .size = 2, .port = LANDED_PORT, .mode = &protected_mode,
	.gives = give_sysenter, .shows = show_cs,
};

static void give_sysexit(struct setting *setting)
{
	give_msr(setting, 0x174, setting->value);		/* SYSENTER_CS */
	setting->regs.rdx = LANDED;
	setting->regs.rcx = setting->regs.rsp;
}

static const struct effect sysexit_effect = {
	.code = { 0x0f, 0x35 }, .size = 2, .port = LANDED_PORT, .mode = &protected_mode,
	.gives = give_sysexit, .shows = show_user_cs,
};
