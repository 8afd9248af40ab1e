"""`embark tables` on a real Cassandra."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from feast import FeatureStore

from embark.cli import cli

pytestmark = pytest.mark.servers

TEXT_VIEW = "text_lstm__v1"
IMAGE_VIEW = "mobilenet_v3_small__v1"


def tables(repo: Path, *options: str) -> dict[str, str]:
    """View → state, as the command prints it."""
    result = CliRunner(env={"EMBARK_REPO": str(repo)}).invoke(cli, ["tables", "--json", *options])
    assert result.exit_code == 0, result.output
    listed = json.loads(result.stdout)
    assert all(each["name"].startswith(each["project"]) for each in listed)
    return {each["view"]: each["state"] for each in listed}


def remove(repo: Path, view: str) -> None:
    store = FeatureStore(repo_path=str(repo))
    store.apply(
        [], objects_to_delete=[store.get_feature_service("ctr_small"), store.get_feature_view(view)], partial=False
    )
    store._get_provider().online_store._cluster.shutdown()


def test_a_removed_view_keeps_its_table_until_that_is_dropped(feature_repo_dir: Path) -> None:
    assert tables(feature_repo_dir) == {IMAGE_VIEW: "used", TEXT_VIEW: "used"}
    remove(feature_repo_dir, IMAGE_VIEW)
    assert tables(feature_repo_dir) == {IMAGE_VIEW: "orphaned", TEXT_VIEW: "used"}
    assert tables(feature_repo_dir, "--drop-orphaned", "--yes") == {IMAGE_VIEW: "orphaned", TEXT_VIEW: "used"}
    assert tables(feature_repo_dir) == {TEXT_VIEW: "used"}


def test_nothing_is_dropped_without_a_yes(feature_repo_dir: Path) -> None:
    remove(feature_repo_dir, IMAGE_VIEW)
    result = CliRunner(env={"EMBARK_REPO": str(feature_repo_dir)}).invoke(
        cli, ["tables", "--drop-orphaned"], input="n\n"
    )
    assert result.exit_code == 1
    assert f"{IMAGE_VIEW[:10]}" in result.output
    assert tables(feature_repo_dir)[IMAGE_VIEW] == "orphaned"
