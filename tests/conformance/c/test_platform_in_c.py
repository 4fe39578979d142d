"""What the words for CPUID make of kernels that answer in other ways."""

import shutil
import subprocess

import pytest

from vmm.conformance.c import words

KERNEL = """
static int says_how_many;

int __wrap_ioctl(int fd, unsigned long number, struct kvm_cpuid2 *cpuid)
{
	int count = number == KVM_GET_CPUID2 ? 3 : 7;

	for (int i = 0; i < count; i++)
		cpuid->entries[i] = (struct kvm_cpuid_entry2){ .function = i };
	if (number != KVM_GET_CPUID2 || says_how_many)
		cpuid->nent = count;
	return 0;
}
"""
MAIN = """int main(int argc, char **argv)
{
	says_how_many = argc > 1;
	printf("%u", cpuid_of(0)->nent);
}
"""


@pytest.mark.parametrize("says_how_many", [True, False])
def test_a_vcpus_cpuid_has_the_entries_that_it_has(tmp_path, says_how_many):
    """6.1 leaves the number as it was asked; 512 of them KVM_SET_CPUID2 refuses with E2BIG."""
    if not shutil.which("cc"):
        pytest.skip("no C compiler (cc) to build the words with")
    source = "\n\n".join([words.includes(), *words.needed(MAIN), KERNEL, MAIN])
    (tmp_path / "cpuid.c").write_text(source)
    command = ["cc", "-w", "-Wl,--wrap=ioctl", tmp_path / "cpuid.c", "-o", tmp_path / "cpuid"]
    subprocess.run(command, check=True)
    ran = subprocess.run([tmp_path / "cpuid", *["yes"] * says_how_many], capture_output=True)
    assert (ran.returncode, ran.stdout) == (0, b"3")
