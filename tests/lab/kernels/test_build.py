import pytest

from vmm.lab.errors import LabError
from vmm.lab.kernels import build

pytestmark = pytest.mark.usefixtures("cache_root")


def test_options_that_are_missing_are_named():
    wanted = "CONFIG_KVM=y\nCONFIG_NR_CPUS=8\nCONFIG_SMP=y\n# CONFIG_MODULES is not set\n"
    config = "CONFIG_SMP=y\nCONFIG_NR_CPUS=4\n# CONFIG_KVM is not set\n"
    assert build.missing(wanted, config) == ["CONFIG_KVM", "CONFIG_NR_CPUS"]


def test_an_option_that_newer_trees_have_under_another_name_is_not_missing():
    wanted = "".join(line for line in build.fragment().splitlines(True) if "SYSCTL" in line)
    assert build.missing(wanted, "CONFIG_SYSCTL=y\n") == []
    assert build.missing(wanted, "") == ["CONFIG_SYSCTL"]


def test_the_debug_flavour_adds_to_the_small_one():
    assert build.fragment(debug=True).startswith(build.fragment())
    assert "CONFIG_KASAN=y\n" in build.fragment(debug=True)
    assert "CONFIG_KASAN=y\n" not in build.fragment()


def test_a_directory_that_is_no_tree_is_one_line(tmp_path):
    with pytest.raises(LabError, match="no kernel source tree"):
        build.build(tmp_path, tmp_path / "objects")


def fake_tree(path, makefile):
    (path / "Kconfig").touch()
    (path / "Makefile").write_text(makefile)
    return path


def test_a_tree_that_does_not_build_says_what_the_compiler_said(tmp_path):
    makefile = "tinyconfig:\n\t@echo 'x.c:1:2: error: no such thing' >&2; false\n"
    with pytest.raises(build.BuildError, match=r"x\.c:1:2: error: no such thing"):
        build.build(fake_tree(tmp_path, makefile), tmp_path / "objects")


def test_a_tree_without_the_options_names_them(tmp_path):
    tree = fake_tree(tmp_path, "tinyconfig olddefconfig:\n\t@echo CONFIG_SMP=y > $(O)/.config\n")
    with pytest.raises(LabError, match=r"cannot have CONFIG_64BIT, .*CONFIG_KVM_AMD"):
        build.build(tree, tmp_path / "objects")


def test_a_tree_that_was_checked_out_anew_keeps_its_configuration_or_gets_a_new_one(
    tmp_path, cache_root, monkeypatch
):
    monkeypatch.setattr(build, "fragment", lambda debug: "CONFIG_SMP=y\n")
    makefile = (
        "tinyconfig:\n\t@echo tiny >> $(O)/done; : > $(O)/.config\n"
        "olddefconfig:\n\t@echo old >> $(O)/done; cat $(O)/../forget > $(O)/.config\n"
        "bzImage:\n\t@echo image >> $(O)/done\n"
    )
    tree, objects = fake_tree(tmp_path, makefile), tmp_path / "objects"
    (tmp_path / "forget").write_text("CONFIG_SMP=y\n")

    def done():
        build.build(tree, objects)
        steps = (objects / "done").read_text().split()
        (objects / "done").unlink()
        return steps

    assert done() == ["tiny", "old", "image"]
    assert done() == ["old", "image"]
    (tmp_path / "forget").write_text("# CONFIG_SMP is not set\n")
    with pytest.raises(LabError, match="cannot have CONFIG_SMP"):
        done()
    assert (objects / "done").read_text().split() == ["old", "tiny", "old"]
    (objects / "done").unlink()
    (tmp_path / "forget").write_text("CONFIG_SMP=y\n")
    assert done() == ["tiny", "old", "image"]
