/*
 * The vCPUs and VMs that actions are about: a VM that needs nothing of its own serves many cases.
 */

static void do_action(struct cursor *tape);

static int vcpu_of(struct cursor *tape)
{
	return below(tape, sizeof(vm.vcpus) / sizeof(vm.vcpus[0]));
}

/* A VM that serves many cases, and the state that its vCPUs were created in. */
struct pooled {
	struct vm vm;
	struct kvm_sregs sregs[16];
	struct kvm_vcpu_events events[16];
};

static struct pooled pool[POOLED], *pooled;	/* the one in use; NULL: the VM is the case's own */
static int n_pooled, next_pooled, is_spent, makes_vcpus;

/* A vCPU that no script creates exists from its first use. */
static void use_vcpu(int id)
{
	if (vm.vcpus[id].run)
		return;
	need_vcpu(id);
	if (pooled && (ioctl(vm.vcpus[id].fd, KVM_GET_SREGS, &pooled->sregs[id]) < 0 ||
		       ioctl(vm.vcpus[id].fd, KVM_GET_VCPU_EVENTS, &pooled->events[id]) < 0))
		die("the state of a vCPU");
}

static int used_vcpu(struct cursor *tape)
{
	int id = vcpu_of(tape);

	use_vcpu(id);
	return id;
}
