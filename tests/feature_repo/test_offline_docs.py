"""What `docs/offline-store.md` tells is so."""

import os
import re
from datetime import timedelta
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pytest

from feature_repo.offline.compaction import compact
from feature_repo.offline.folder import write_part
from feature_repo.offline_store import EmbeddingOfflineStoreConfig
from tests.feature_repo.history import STOCK, Row, apply, entity_rows, item_view, open_store, push

DOCS = (Path(__file__).parents[2] / "docs" / "offline-store.md").read_text()


def block(language: str, mark: str) -> str:
    (found,) = [b for b in re.findall(rf"```{language}\n(.*?)```", DOCS, re.DOTALL) if mark in b]
    return str(found)


@pytest.mark.parametrize("name", sorted(set(EmbeddingOfflineStoreConfig.model_fields) - {"type"}))
def test_each_setting_is_in_the_docs_with_its_default(name: str) -> None:
    default = EmbeddingOfflineStoreConfig.model_fields[name].default
    told = "none" if default is None else f"{default}"
    assert re.search(rf"^\|[^|]*`{name}`[^|]*\| {told} \|", DOCS, re.MULTILINE)


def test_others_read_each_row_as_the_docs_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, (entities, view) = open_store(tmp_path), item_view(tmp_path)
    apply(store, (entities, view))
    for i in range(6):
        push(store, view, [Row((f"k{i % 2}",), i, i, i)])
    assert compact(view, grace_seconds=60.0, target_bytes=1 << 20).waiting == 6
    push(store, view, [Row(("k0",), 9, 9, 9)])
    monkeypatch.chdir(tmp_path)
    assert len(pd.read_parquet("items")) == 13
    names: dict[str, pd.DataFrame] = {}
    exec(block("python", "read_parquet"), names)  # noqa: S102 - of our own docs
    assert sorted(names["frame"]["number"]) == [0, 1, 2, 3, 4, 5, 9]
    with duckdb.connect() as connection:
        rows = connection.sql(block("sql", "embark.replaces")).to_arrow_table().to_pylist()
    assert sorted(row["number"] for row in rows) == [0, 1, 2, 3, 4, 5, 9]
    stock = open_store(tmp_path, STOCK)
    asked = entity_rows(("item",), [("k0", 4), ("k0", 99), ("k1", 99)])
    found = (each.get_historical_features(asked, ["items:number"]).to_df() for each in (store, stock))
    assert [sorted(frame["number"]) for frame in found] == [[4, 5, 9]] * 2


def test_a_parts_name_is_durable_after_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, Path.rename
    names = {tmp_path: "above", tmp_path / "new": "folder of folders", tmp_path / "new" / "items": "folder"}

    def flushed(descriptor: int) -> None:
        here = os.fstat(descriptor)
        done.append(
            next(
                (name for path, name in names.items() if path.exists() and os.path.samestat(path.stat(), here)), "file"
            )
        )
        fsync(descriptor)

    def renamed(path: Path, to: Path) -> Path:
        done.append("rename")
        return rename(path, to)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "rename", renamed)
    part = tmp_path / "new" / "items" / "a.parquet"
    write_part(part, pa.table({"a": [1]}))
    assert done == ["above", "folder of folders", "file", "rename", "folder"]
    done.clear()
    write_part(part.with_name("b.parquet"), pa.table({"a": [1]}))
    assert done == ["file", "rename", "folder"]


def test_an_event_of_exactly_the_ttl_before_stands(tmp_path: Path) -> None:
    store, items = open_store(tmp_path), item_view(tmp_path, ttl=timedelta(minutes=10))
    apply(store, items)
    push(store, items[1], [Row(("a",), 0, None, 1), Row(("a",), 0, 5, 2)])
    asked = entity_rows(("item",), [("a", 10), ("a", 11)])
    assert store.get_historical_features(asked, ["items:number"]).to_arrow()["number"].to_pylist() == [2, None]
