import pytest

from tests.distribution import scope, turn


@pytest.mark.parametrize(
    ("test", "whole"),
    [
        ("tests/integration/test_serving.py::test_a", "tests/integration/"),
        ("tests/integration/test_tables.py::test_b[x::y]", "tests/integration/"),
        ("tests/integration/test_readme.py::test_c", "tests/integration/test_readme.py"),
        ("tests/embark/test_cli.py::test_d", "tests/embark/test_cli.py"),
    ],
)
def test_what_shares_servers_or_fixtures_runs_in_one_process(test: str, whole: str) -> None:
    assert scope(test) == whole


def test_this_run_is_divided_so(request: pytest.FixtureRequest) -> None:
    turns = [turn(item.nodeid) for item in request.session.items]
    assert turns == sorted(turns)
