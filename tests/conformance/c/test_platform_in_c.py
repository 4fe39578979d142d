"""What words about the platform make of kernels that answer in other ways."""

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
    ran = run(tmp_path, KERNEL, MAIN, *["yes"] * says_how_many)
    assert (ran.returncode, ran.stdout) == (0, b"3")


INTERRUPTED = """
int __wrap_ioctl(int fd, unsigned long number, ...)
{
	static int times;

	if (number == KVM_CREATE_VM && ++times == 3)
		return 7;
	errno = times < 3 ? EINTR : ENOMEM;
	return -1;
}
"""


def test_a_vm_that_a_signal_keeps_from_being_created_is_created_again(tmp_path):
    """As after SIGSTOP and SIGCONT; what is no signal's ends the program, as before."""
    ran = run(tmp_path, INTERRUPTED, 'int main(void) { kvm = 1; printf("%d", create_vm()); }')
    assert (ran.returncode, ran.stdout) == (0, b"7")
    twice = "int main(void) { kvm = 1; create_vm(); return create_vm() < 0; }"
    assert run(tmp_path, INTERRUPTED, twice).returncode == 2


def run(tmp_path, kernel, main, *arguments):
    """Run a main with the words that it needs, and what stands for the kernel."""
    if not shutil.which("cc"):
        pytest.skip("no C compiler (cc) to build the words with")
    source = "\n\n".join([words.includes(), *words.needed(main), kernel, main])
    (tmp_path / "program.c").write_text(source)
    command = ["cc", "-w", "-Wl,--wrap=ioctl", tmp_path / "program.c", "-o", tmp_path / "program"]
    subprocess.run(command, check=True)
    return subprocess.run([tmp_path / "program", *arguments], capture_output=True)


def test_an_install_that_returns_more_than_0_is_not_done(build):
    said = build(
        "\tsaw_install(2);\n\tputs(seen);\n\tseen[0] = 0;\n\tsaw_install(0);\n\tputs(seen);"
    )
    assert said == b"got(0x2)\ndone\n"


COUNTS = "int __wrap_ioctl(int fd, unsigned long number, ...) { return number; }"


@pytest.mark.parametrize(("result", "said"), [(0, b"done"), (2, b"rejected(255)")])
def test_neither_is_one_of_a_child(tmp_path, result, said):
    main = f"int main(void) {{ install_in_child(0, {result}, NULL); puts(seen); }}"
    assert run(tmp_path, COUNTS, main).stdout == said + b"\n"


def test_a_child_that_was_killed_is_no_answer_of_the_kernel(tmp_path):
    killed = "int __wrap_ioctl(int fd, unsigned long number, ...) { return raise(SIGKILL); }"
    ran = run(tmp_path, killed, "int main(void) { install_in_child(0, 0, NULL); return 0; }")
    assert (ran.returncode, ran.stderr[:25]) == (2, b"the child that installs: ")
