import shutil
import subprocess

import pytest

from vmm.conformance.c import words


@pytest.fixture
def build(tmp_path):
    """What builds and runs a ``main`` of the words that it needs, and returns its output."""
    if not shutil.which("cc"):
        pytest.skip("no C compiler (cc) to build the words with")

    def build(body):
        main = f"int main(void)\n{{\n{body}\n}}"
        source = "\n\n".join([words.includes(), *words.needed(main), main])
        at = tmp_path / "words"
        at.with_suffix(".c").write_text(source)
        subprocess.run(["cc", "-w", "-o", at, at.with_suffix(".c")], check=True)
        return subprocess.run([at], capture_output=True, check=True).stdout

    return build
