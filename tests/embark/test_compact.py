"""`embark compact` on a history on disk."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from embark.cli import cli
from tests.feature_repo.history import Row, apply, item_view, open_store, push

PUSHES = 6


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A view with six parts of a row each, and a view without history."""
    store = open_store(tmp_path)
    (tmp_path / "ours.yaml").rename(tmp_path / "feature_store.yaml")
    apply(store, item_view(tmp_path), item_view(tmp_path, "empty"))
    view = store.get_feature_view("items")
    for number in range(PUSHES):
        push(store, view, [Row((f"item {number}",), number, number, number)])
    return tmp_path


def compact(repo: Path, *options: str) -> Result:
    return CliRunner(env={"EMBARK_REPO": str(repo)}).invoke(cli, ["compact", *options])


def told(repo: Path, *options: str) -> dict[str, Any]:
    result = compact(repo, "--json", *options)
    assert result.exit_code == 0, result.output
    return {each["view"]: each for each in json.loads(result.stdout)}


def test_many_files_become_one_and_the_old_ones_go_with_the_next_run(repo: Path) -> None:
    first = told(repo)
    assert (first["items"]["parts_before"], first["items"]["parts_after"]) == (PUSHES, 1)
    assert first["items"]["rows"] == PUSHES
    assert first["empty"]["parts_before"] == 0
    second = told(repo, "--grace", "0", "--view", "items")
    assert list(second) == ["items"]
    assert second["items"]["removed"] == PUSHES
    assert "1 → 1 files" in compact(repo, "--view", "items").stdout


@pytest.mark.parametrize(("options", "message"), [(("--view", "nothing"), "nothing"), (("--grace", "-1"), "-1")])
def test_what_cannot_be_compacted_is_named(repo: Path, options: tuple[str, ...], message: str) -> None:
    result = compact(repo, *options)
    assert result.exit_code == 2
    assert message in result.stderr
