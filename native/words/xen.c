/*
 * The words for the MSR by which a guest of Xen has its hypervisor write a page of hypercalls.
 */

enum { HYPERCALL_PAGE = 0xf0000 };

/*
 * As many pages for one kind of code, each full of its number; the kernel reads them when it will.
 */
static __u64 hypercall_pages(__u32 kind, int pages)
{
	__u32 *at = pages ? map_low(pages * PAGE) : NULL;

	for (int i = 0; i < pages * PAGE / 4; i++)
		at[i] = kind | i / (PAGE / 4);
	return (unsigned long)at;
}

static void xen_hvm_config(__u32 msr, int pages, __u32 flags)
{
	struct kvm_xen_hvm_config config = { .flags = flags, .msr = msr };

	config.blob_addr_32 = hypercall_pages(0x32000000, pages);
	config.blob_addr_64 = hypercall_pages(0x64000000, pages);
	config.blob_size_32 = config.blob_size_64 = pages;
	saw_result(ioctl(vm.fd, KVM_XEN_HVM_CONFIG, &config));
}

/* The first of the page that is not 0. */
static void get_hypercall_page(void)
{
	const __u32 *at = (const __u32 *)(vm.memory + HYPERCALL_PAGE), *end = at + PAGE / 4;

	while (at < end && !*at)
		at++;
	if (at == end)
		saw("got(0)");
	else
		saw(*at < 10 ? "got(%u)" : "got(%#x)", *at);
}

static const char *lacks_xen(__u32 flags, const char *why)
{
	struct kvm_xen_hvm_config config = { .flags = flags, .msr = 0x40000200 };

	if (ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_XEN_HVM) < 1)
		return "no KVM_XEN_HVM_CONFIG: this kernel is built without CONFIG_KVM_XEN, or has none";
	open_vm();
	if (ioctl(vm.fd, KVM_XEN_HVM_CONFIG, &config) == 0)
		why = NULL;
	drop_vm();
	return why;
}

static const char *lacks_xen_hvm(void)
{
	return lacks_xen(0, "KVM_XEN_HVM_CONFIG is refused");
}

static const char *lacks_xen_intercept(void)
{
	return lacks_xen(2, "KVM_XEN_HVM_CONFIG with flags 2 is refused");
}
