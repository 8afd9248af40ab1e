"""A registry in a file is never seen half written."""

import os
from pathlib import Path

import pytest
from feast import Entity, FeatureStore
from feast.value_type import ValueType


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    (tmp_path / "feature_store.yaml").write_text(
        "project: shop\nprovider: local\n"
        "registry: {path: data/registry.db,"
        " registry_store_type: feature_repo.registry_store.WholeFileRegistryStore}\n"
        "online_store: {type: sqlite, path: online.db}\nentity_key_serialization_version: 3\n"
    )
    return FeatureStore(repo_path=str(tmp_path))


def apply(store: FeatureStore, name: str) -> None:
    store.apply(Entity(name=name, join_keys=[name], value_type=ValueType.STRING))


def names(folder: Path) -> set[str]:
    return {each.name for each in FeatureStore(repo_path=str(folder)).list_entities()}


def test_what_is_applied_is_read_back_and_nothing_is_left_beside_it(store: FeatureStore, tmp_path: Path) -> None:
    apply(store, "a")
    apply(store, "b")
    assert {"a", "b"} <= names(tmp_path)
    assert [each.name for each in (tmp_path / "data").iterdir()] == ["registry.db"]


def test_a_write_that_fails_leaves_what_was_there(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(store, "a")

    def full(descriptor: int) -> None:
        assert "a" in names(tmp_path)  # while the next one is being written
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="disk full"):
            apply(store, "b")
    assert "a" in names(tmp_path)
    assert "b" not in names(tmp_path)
    assert [each.name for each in (tmp_path / "data").iterdir()] == ["registry.db"]
