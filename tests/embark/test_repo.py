from pathlib import Path

import pytest
import yaml

from embark.repo import RepoExists, write_repo


def test_a_new_repo_points_at_the_given_servers(tmp_path: Path) -> None:
    write_repo(tmp_path / "r", project="p", keyspace="k", kafka="h:1", cassandra_hosts=["a", "b"], cassandra_port=2)
    for name in ("feature_store.yaml", "feature_store.spark.yaml"):
        config = yaml.safe_load((tmp_path / "r" / name).read_text())
        assert config["project"] == "p"
        assert config["online_store"]["hosts"] == ["a", "b"]
        assert (config["online_store"]["port"], config["online_store"]["keyspace"]) == (2, "k")
    assert 'KAFKA = "h:1"' in (tmp_path / "r" / "catalog.py").read_text()


def test_an_existing_repo_is_never_overwritten(tmp_path: Path) -> None:
    write_repo(tmp_path)
    (tmp_path / "catalog.py").write_text("mine")
    with pytest.raises(RepoExists, match=str(tmp_path)):
        write_repo(tmp_path)
    assert (tmp_path / "catalog.py").read_text() == "mine"
