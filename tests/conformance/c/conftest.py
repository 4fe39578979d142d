import shutil
import subprocess

import pytest

from vmm.conformance.c import words

MAIN = """int main(int argc, char **argv)
{{
	int (*bodies[])(void) = {{ {names} }};

	return bodies[atoi(argv[1])]();
}}"""


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """What builds a program of a text in C and the words that it needs."""
    if not shutil.which("cc"):
        pytest.skip("no C compiler (cc) to build the words with")

    def compiled(text):
        at = tmp_path_factory.mktemp("words") / "program"
        at.with_suffix(".c").write_text("\n\n".join([words.includes(), *words.needed(text), text]))
        subprocess.run(["cc", "-w", "-o", at, at.with_suffix(".c")], check=True)
        return at

    return compiled


@pytest.fixture(scope="session")
def build_many(compiled):
    """What builds one program of many bodies, and returns what runs it with one, by its key."""

    def build_many(bodies):
        numbers = {key: number for number, key in enumerate(bodies)}
        functions = [
            f"static int body_{numbers[key]}(void)\n{{\n{body}\n\treturn 0;\n}}"
            for key, body in bodies.items()
        ]
        main = MAIN.format(names=", ".join(f"body_{each}" for each in numbers.values()))
        program = compiled("\n\n".join((*functions, main)))

        def run(key):
            command = [program, str(numbers[key])]
            return subprocess.run(command, capture_output=True, check=True).stdout

        return run

    return build_many


@pytest.fixture
def build(build_many):
    """What builds and runs a ``main`` of one body, and returns its output."""
    return lambda body: build_many({"it": body})("it")
