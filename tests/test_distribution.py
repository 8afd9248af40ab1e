import re
from pathlib import Path

import pytest

from tests.distribution import scope, turn

TESTS = Path(__file__).parent
CI = (TESTS.parent / ".ci" / "run").read_text()
IN_FOLDERS = re.findall(r"^run pytest -n 0 -m (.*?) (tests/.*)$", CI, re.MULTILINE)


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


@pytest.mark.parametrize(("markers", "folders"), IN_FOLDERS)
def test_ci_names_every_folder_that_has_tests_of_a_marker(markers: str, folders: str) -> None:
    marked = re.compile(rf"pytest\.mark\.({'|'.join(re.findall('[a-z]+', markers.replace(' or ', ' ')))})\b")
    files = [path.relative_to(TESTS.parent) for path in TESTS.rglob("test_*.py") if marked.search(path.read_text())]
    assert files
    assert {str(file.parent) for file in files} <= set(folders.split())
