import pytest

from vmm.conformance.host import parameters


@pytest.fixture
def parameter(tmp_path, monkeypatch):
    """Stands for /sys/module/kvm/parameters/ignore_msrs."""
    path = tmp_path / "ignore_msrs"
    monkeypatch.setattr(parameters, "IGNORE_MSRS", path)
    monkeypatch.delenv(parameters.OWN_GUEST, raising=False)
    return path


@pytest.mark.parametrize(
    ("text", "on"), [("Y\n", True), ("1\n", True), ("N\n", False), ("", False)]
)
def test_what_the_kernel_says_is_read(parameter, text, on):
    parameter.write_text(text)
    assert parameters.ignores_msrs() is on


def test_a_kernel_that_does_not_say_does_not_ignore(parameter):
    assert parameters.ignores_msrs() is False
    assert not parameters.may_set()


def test_only_a_guest_of_the_lab_is_ours_to_set(parameter, monkeypatch):
    parameter.write_text("N\n")
    assert not parameters.may_set()
    monkeypatch.setenv(parameters.OWN_GUEST, "1")
    assert parameters.may_set()


def test_it_is_as_before_afterwards_whatever_happens(parameter):
    parameter.write_text("N\n")
    with pytest.raises(KeyError), parameters.ignoring_msrs():
        assert parameters.ignores_msrs()
        raise KeyError
    assert parameter.read_text() == "N\n"
