"""What the command says on stderr when something is wrong, and few cases to go wrong with."""

FEW = "plumbing.*"


def assert_one_clear_line(answer, *words, status=2):
    code, _, err = answer
    assert code == status
    assert err.startswith("msrward: ")
    assert err.count("\n") == 1, err
    for word in words:
        assert word in err
