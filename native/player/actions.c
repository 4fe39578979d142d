/*
 * Accesses, and which action is which.
 */

static void access_in(__u8 mode, __u8 action, int id, struct access access)
{
	static const struct mode *const modes[] = {
		&long_mode, &compat_mode, &user_mode, &protected_mode, &real_mode,
		&higher_half_mode,
	};
	enum { SMM = sizeof(modes) / sizeof(modes[0]) };

	if (mode > SMM || action == SPIN)
		damaged("an access in no mode that it can have");
	if (mode == SMM && action == ACCESS)
		do_access_in_smm(id, access);
	else if (mode == SMM)
		begin_in_smm(id, access);
	else if (action == ACCESS)
		do_access_in(modes[mode], id, access);
	else
		begin_in(modes[mode], id, access);
}

static void access_on(struct cursor *tape, __u8 action)
{
	int id = used_vcpu(tape);
	__u16 flags = u16(tape), what = flags >> 3 & 3, mode = flags >> 5 & 7, form = flags >> 8;
	struct access access = access_of(tape, flags);

	if (form > 3 || (form && action == SPIN))
		damaged("an access of no form that it can have");
	if (form)
		access = form == 1 ? by_wrmsrns(access) : form == 2 ? by_immediate(access) :
			 by_rex(access);
	if (what || mode)
		access_in(mode, action, id, what ? behind(what, access) : access);
	else if (action == ACCESS)
		do_access(id, access);
	else if (action == BEGIN)
		begin(id, access);
	else
		spin(id, access);
}

static void do_action(struct cursor *tape)
{
	__u8 action = u8(tape);
	int id;

	switch (action) {
	case ACCESS: case BEGIN: case SPIN: access_on(tape, action); break;
	case COMPLETE: case FINISH: complete_of(tape); break;
	case SET_REGS: set_regs_of(tape); break;
	case GET_REGS: get_regs(used_vcpu(tape)); break;
	case ENABLE_CAP: enable_cap_of(tape); break;
	case INSTALL: send(read_install(tape)); break;
	case SCRIBBLE: scribble_last(); break;
	case CHECK_EXTENSION: id = fd_of(tape); check_extension(id, u32(tape)); break;
	case GET_MSR: get_msr_of(tape); break;
	case SET_MSR: set_msr_of(tape); break;
	case CREATE_IRQCHIP: create_irqchip(); break;
	case CREATE_VCPU: create_vcpu_of(tape); break;
	case SET_CPUID: set_cpuid_of(tape); break;
	case BEGIN_INSTALL: begin_install_of(tape); break;
	case MEANWHILE: meanwhile_of(tape); break;
	case RESUME_INSTALL: resume_of(tape); break;
	case AWAIT: await_of(tape); break;
	case PARK: park(used_vcpu(tape)); break;
	case RELEASE: release(vcpu_of(tape)); break;
	case UNTIL_EXITS: until_exits(vcpu_of(tape)); break;
	case UNTIL_RUNS: until_runs(vcpu_of(tape)); break;
	case STOP_SPIN: stop_spin(vcpu_of(tape)); break;
	case CLOSE_VM: close_vm(); break;
	case CLOSE_VCPU: close_vcpu(vcpu_of(tape)); break;
	case SWEEP: sweep_of(tape); break;
	case SET_CPUID_BITS: set_cpuid_bits_of(tape); break;
	case SEND_INIT: send_init(used_vcpu(tape)); break;
	case GET_MP_STATE: get_mp_state(used_vcpu(tape)); break;
	case ENTER_L2: enter_l2_of(tape); break;
	case LEAVE_L2: leave_l2(used_vcpu(tape)); break;
	case EXECUTE: execute_of(tape); break;
	case GET_VCPU_EVENTS: get_vcpu_events(used_vcpu(tape)); break;
	case REWRITE: rewrite_of(tape); break;
	case INJECT: inject_of(tape); break;
	case GET_TAKEN: get_taken(used_vcpu(tape)); break;
	case SAVE_NESTED: save_nested(used_vcpu(tape)); break;
	case RESTORE_NESTED: restore_of(tape); break;
	case LEAVE_NESTED: leave_nested(used_vcpu(tape)); break;
	case FRESH_VM: fresh_vm_of_case(); break;
	case WEIGH_BITMAPS: weigh_bitmaps(); break;
	case XEN_HVM_CONFIG: xen_hvm_config_of(tape); break;
	case SET_MP_STATE: id = used_vcpu(tape); set_mp_state(id, u8(tape)); break;
	case SEND_SIPI: send_sipi(used_vcpu(tape)); break;
	case SLEEP: sleep_in_kvm(used_vcpu(tape)); break;
	case WAKE: wake(vcpu_of(tape)); break;
	case AWAIT_SIPI: await_sipi(vcpu_of(tape)); break;
	case GET_HYPERCALL_PAGE: get_hypercall_page(); break;
	default: damaged("an action that this player does not know");
	}
}
