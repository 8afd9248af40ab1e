"""What the runner of Feast's tests makes of what pytest told."""

import json
from pathlib import Path

import pytest

from tests.feast_universal.outcomes import KNOWN, Known, count, read_results

DOCS = Path(__file__).parents[2] / "docs" / "feast-tests.md"


@pytest.fixture(autouse=True)
def one_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KNOWN, "stock", {"test_known": Known("no async", "why")})
    monkeypatch.setitem(KNOWN, "plugin", {})


def told(**outcomes: str) -> str:
    """What the pytest plugin writes: each test failed with the error given, or passed where it is empty."""
    return json.dumps({t: {"outcome": "failed" if why else "passed", "why": why} for t, why in outcomes.items()})


def test_a_known_failure_is_counted_apart() -> None:
    written = told(test_a="", test_b="AssertionError", test_known="E: no async")
    assert count(read_results("stock", "redis", written)) == {
        ("stock", "redis"): {"passed": 1, "failed": 1, "skipped": 0, "known": 1}
    }
    assert count(read_results("plugin", "redis", written))["plugin", "redis"]["failed"] == 2


def test_a_known_test_that_fails_otherwise_has_failed() -> None:
    (result,) = read_results("stock", "redis", told(test_known="AssertionError"))
    assert result.verdict == "failed"


def test_a_known_test_that_passes_has_passed() -> None:
    (result,) = read_results("stock", "redis", told(test_known=""))
    assert (result.verdict, result.known) == ("passed", Known("no async", "why"))


def test_a_known_test_that_is_skipped_was_skipped() -> None:
    (result,) = read_results("stock", "redis", '{"test_known": {"outcome": "skipped", "why": "no async"}}')
    assert result.verdict == "skipped"


def test_what_is_known_of_a_test_holds_for_all_its_parameters() -> None:
    (result,) = read_results("stock", "sqlite", '{"test_known[int32]": {"outcome": "failed", "why": "no async"}}')
    assert result.verdict == "known"


@pytest.mark.parametrize("test", sorted({test for tests in KNOWN.values() for test in tests}))
def test_each_test_that_is_known_not_to_pass_is_in_the_docs(test: str) -> None:
    assert f"`{test}`" in DOCS.read_text()
