"""What a removed key is to each reading of history."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureStore, FeatureView
from feast.value_type import ValueType

from encoders.spec import EncoderSpec
from feature_repo.embeddings import OOV_KEY
from feature_repo.offline.compaction import compact_history
from feature_repo.offline.newest import HistoryUnreadable, write_newest
from feature_repo.offline_store import EmbeddingOfflineStore, ensure_readable
from feature_repo.views import feature_view
from tests.feature_repo.history import STOCK, open_store

SPEC = EncoderSpec(
    name="tiny", version="v1", modality="text", dim=2, network="text_lstm", weights="seeded:0", pinned="seeded:0"
)
NOON = pd.Timestamp("2026-01-01 12:00", tz="UTC")
REFERENCES = [f"{SPEC.view}:{name}" for name in ("embedding", "embedding_id")]


def minutes(number: float) -> pd.Timestamp:
    return NOON + pd.Timedelta(minutes=number)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """`kept` is embedded once, `gone` at 0 and removed at 10, `back` the same and embedded again at 20."""
    store = open_store(tmp_path)
    entity = Entity(name="text", join_keys=["text"], value_type=ValueType.STRING)
    view = feature_view(SPEC, entity, tmp_path)
    ensure_readable(view)
    store.apply([entity, view])
    append(store, ["kept", "gone", "back"], [0, 0, 0], [0, 0, 0], [1, 2, 3])
    after = 1 / 60e6  # a microsecond
    append(store, ["gone", "back"], [after, after], [10, 10], [None, None])
    append(store, ["back"], [20], [21], [4])
    return store


def view_of(store: FeatureStore) -> FeatureView:
    view: FeatureView = store.get_feature_view(SPEC.view)
    return view


def append(
    store: FeatureStore,
    keys: Sequence[str],
    events: Sequence[float],
    created: Sequence[float],
    ids: Sequence[int | None],
) -> None:
    utc = pa.timestamp("us", tz="UTC")
    table = pa.table(
        {
            "text": pa.array(keys),
            "embedding": pa.array([None if i is None else [i, i] for i in ids], pa.list_(pa.float32())),
            "embedding_id": pa.array(ids, pa.int64()),
            "content_hash": pa.array([None if i is None else "" for i in ids], pa.string()),
            "event_timestamp": pa.array([minutes(m) for m in events], utc),
            "created_timestamp": pa.array([minutes(m) for m in created], utc),
        }
    )
    EmbeddingOfflineStore.offline_write_batch(store.config, view_of(store), table, None)


def read(store: FeatureStore, at: float, **reading: Any) -> list[int | None]:
    """The ids of `kept`, `gone` and `back`, whose embeddings tell them too."""
    rows = pd.DataFrame({"text": ["kept", "gone", "back"], "event_timestamp": [minutes(at)] * 3})
    found = store.get_historical_features(rows, REFERENCES, **reading).to_df().set_index("text")
    ids = [None if pd.isna(found["embedding_id"][key]) else int(found["embedding_id"][key]) for key in rows["text"]]
    for key, id_ in zip(rows["text"], ids, strict=True):
        vector = found["embedding"][key]
        assert vector is None if id_ is None else list(vector) == [id_, id_]
    return ids


@pytest.mark.parametrize("compacted", [False, True])
def test_a_removal_hides_a_key_from_what_was_served_and_from_nothing_else(store: FeatureStore, compacted: bool) -> None:
    if compacted:
        append(store, ["other"], [0], [0], [9])
        (done,) = compact_history(store)
        assert done.parts_after == 1
    served = {"filter_by_created_timestamp": True}
    assert read(store, 5, **served) == [1, 2, 3]
    assert read(store, 15, **served) == [1, None, None]
    assert read(store, 25, **served) == [1, None, 4]
    assert read(store, 5) == read(store, 15) == [1, 2, 3]
    assert read(store, 25) == [1, 2, 4]


def test_every_id_that_was_served_is_still_there(store: FeatureStore) -> None:
    job = store._get_provider().offline_store.pull_all_from_table_or_query(
        store.config,
        view_of(store).batch_source,
        ["text"],
        ["embedding", "embedding_id"],
        "event_timestamp",
        "created_timestamp",
        NOON.to_pydatetime(),
        minutes(60).to_pydatetime(),
    )
    rows = job.to_df()
    assert sorted(rows["embedding_id"].dropna()) == [1, 2, 3, 4]
    assert sorted(rows["text"][rows["embedding_id"].isna()]) == ["back", "gone"]


def test_a_removed_key_is_not_materialized(store: FeatureStore) -> None:
    job = store._get_provider().offline_store.pull_latest_from_table_or_query(
        store.config,
        view_of(store).batch_source,
        ["text"],
        ["embedding", "embedding_id"],
        "event_timestamp",
        "created_timestamp",
        minutes(-5).to_pydatetime(),
        minutes(60).to_pydatetime(),
    )
    rows = job.to_df()
    assert dict(zip(rows["text"], rows["embedding_id"], strict=True)) == {"kept": 1, "back": 4}


def test_stock_feast_reads_a_removal_as_nulls(store: FeatureStore, tmp_path: Path) -> None:
    assert read(open_store(tmp_path, STOCK), 25) == [1, None, 4]


def test_the_newest_events_are_those_that_were_not_removed(store: FeatureStore, tmp_path: Path) -> None:
    append(store, ["kept"], [-5], [30], [7])  # a late event: an older one
    append(store, ["kept"], [0], [31], [8])  # the same event, embedded again
    append(store, [OOV_KEY], [30], [30], [9])  # set by the view's owner: nothing to embed
    write_newest(store, SPEC, tmp_path / "keys" / "found.parquet")
    found = pq.read_table(tmp_path / "keys" / "found.parquet")
    times = found["event_time"].cast(pa.timestamp("us", tz="UTC"))
    assert dict(zip(found["key"].to_pylist(), times.to_pylist(), strict=True)) == {"kept": NOON, "back": minutes(20)}
    assert [each.name for each in (tmp_path / "keys").iterdir()] == ["found.parquet"]


def test_a_history_without_rows_has_no_newest_events(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    entity = Entity(name="text", join_keys=["text"], value_type=ValueType.STRING)
    view = feature_view(SPEC, entity, tmp_path)
    ensure_readable(view)
    store.apply([entity, view])
    write_newest(store, SPEC, tmp_path / "found.parquet")
    assert pq.read_table(tmp_path / "found.parquet").num_rows == 0


def test_a_part_that_is_no_parquet_is_told(store: FeatureStore, tmp_path: Path) -> None:
    (tmp_path / "data" / "history" / SPEC.view / "20260101-20260101_torn.parquet").write_bytes(b"PAR1")
    with pytest.raises(HistoryUnreadable, match=r"the keys of tiny__v1 cannot be read"):
        write_newest(store, SPEC, tmp_path / "found.parquet")
    assert not (tmp_path / "found.parquet").exists()


def test_many_keys_spill_rather_than_fail(store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feature_repo.offline.newest.MEMORY", "32MB")
    keys = [f"{number:0>400}" for number in range(30_000)]  # 12 MB
    append(store, keys, np.zeros(len(keys)).tolist(), np.zeros(len(keys)).tolist(), list(range(len(keys))))
    write_newest(store, SPEC, tmp_path / "found.parquet")
    assert pq.read_metadata(tmp_path / "found.parquet").num_rows == len(keys) + 2
