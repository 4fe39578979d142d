/*
 * The words that close a VM and its vCPUs.
 */

/* Closes the descriptor: the vCPUs keep their VM alive. */
static void close_vm(void)
{
	close(vm.fd);
	vm.fd = -1;
	saw("done");
}

static void drop_vcpu(int id)
{
	munmap(vm.vcpus[id].run, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0));
	close(vm.vcpus[id].fd);
	vm.vcpus[id] = (struct vcpu){ 0 };
}

static void close_vcpu(int id)
{
	drop_vcpu(id);
	saw("done");
}

/* Close and unmap all of the VM. */
static void drop_vm(void)
{
	for (int id = 0; id < 16; id++)
		if (vm.vcpus[id].run)
			drop_vcpu(id);
	if (vm.fd > 0)
		close(vm.fd);
	if (vm.park_area)
		munmap(vm.park_area, PARK_SIZE);
	munmap(vm.memory, MEMORY);
	memset(&vm, 0, sizeof(vm));
}
