"""Click logs from parquet, csv and frames: what is taken, and what is refused by name."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.impressions import (
    Impressions,
    ImpressionsError,
    count_impressions,
    impression_batches,
    read_impressions,
)

LARGE_ID = 2**62 + 1  # no float has it


def frame(count: int = 5) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "event_timestamp": pd.date_range("2026-01-01", periods=count, freq="h", tz="UTC"),
            "clicked": [i % 2 for i in range(count)],
            "image_url": [f"http://shop.example/{i}.jpg" for i in range(count)],
            "text": [str(i) for i in range(count)],
            "item_id": range(count),
            "publisher": pd.Categorical(["a", "b", "a", "b", "a"][:count]),
            "hour": np.arange(count, dtype=np.int8),
            "price": np.linspace(0, 1, count),
            "resnet18__v1__embedding_id": pd.array([LARGE_ID, None, 1, 2, 3][:count], dtype="Int64"),
        }
    )


def test_a_frame_a_csv_and_a_parquet_file_give_the_same_impressions(tmp_path: Path) -> None:
    of_frame = read_impressions(frame())
    frame().to_csv(tmp_path / "log.csv", index=False)
    frame().to_parquet(tmp_path / "log.parquet")
    of_frame.write(tmp_path / "again.parquet")
    for name in ("log.parquet", "again.parquet"):
        assert read_impressions(tmp_path / name).table.equals(of_frame.table)
    of_csv = read_impressions(tmp_path / "log.csv")
    assert of_csv.table.select(
        ["event_timestamp", "clicked", "image_url", "text", "resnet18__v1__embedding_id"]
    ).equals(of_frame.table.select(["event_timestamp", "clicked", "image_url", "text", "resnet18__v1__embedding_id"]))


def test_columns_are_told_apart() -> None:
    impressions = Impressions.of(frame())
    assert impressions.keys == ("image_url", "text")
    assert impressions.categorical == ("publisher", "hour")
    assert impressions.logged_views == ("resnet18__v1",)
    assert impressions.clicked.tolist() == [0, 1, 0, 1, 0]
    assert impressions.clicked.dtype == np.int8
    assert impressions.true_ctr is None
    assert impressions.take(np.array([4, 0])).values("item_id") == [4, 0]


def test_an_embedding_id_keeps_all_its_digits_also_beside_a_null() -> None:
    impressions = Impressions.of(frame())
    assert impressions.values("resnet18__v1__embedding_id")[:2] == [LARGE_ID, None]
    assert int(impressions.frame["resnet18__v1__embedding_id"].iloc[0]) == LARGE_ID


def test_columns_of_other_names_are_renamed(tmp_path: Path) -> None:
    frame().rename(columns={"clicked": "is_click", "event_timestamp": "at"}).to_parquet(tmp_path / "log.parquet")
    names = {"clicked": "is_click", "event_timestamp": "at"}
    assert read_impressions(tmp_path / "log.parquet", names).clicked.sum() == 2
    with pytest.raises(ImpressionsError, match="no column 'when'"):
        read_impressions(tmp_path / "log.parquet", {"event_timestamp": "when"})


def test_times_as_text_or_without_a_zone_are_utc() -> None:
    naive = frame().assign(event_timestamp=lambda f: f["event_timestamp"].dt.tz_localize(None))
    text = frame().assign(event_timestamp=lambda f: f["event_timestamp"].map(lambda t: t.isoformat()))
    zoned = frame().assign(event_timestamp=lambda f: f["event_timestamp"].dt.tz_convert("Asia/Kathmandu"))
    for each in (naive, text, zoned):
        assert Impressions.of(each).table["event_timestamp"].equals(Impressions.of(frame()).table["event_timestamp"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda f: f.drop(columns="event_timestamp"), "needs a column 'event_timestamp'"),
        (lambda f: f.drop(columns=["image_url", "text"]), "one of the columns"),
        (lambda f: f.assign(clicked=2), "'clicked' holds others than 0 and 1"),
        (lambda f: f.assign(clicked="yes"), "'clicked' holds string"),
        (lambda f: f.assign(event_timestamp=range(5)), "'event_timestamp' holds int64"),
        (lambda f: f.assign(event_timestamp="yesterday"), "no time .* in 5 rows"),
        (lambda f: f.assign(resnet18__v1__embedding_id=[1.0, None, 2.0, 3.0, 4.0]), "lose the last digits"),
    ],
)
def test_what_cannot_be_impressions_is_refused_by_name(changed: object, message: str) -> None:
    with pytest.raises(ImpressionsError, match=message):
        Impressions.of(changed(frame()))  # type: ignore[operator]


def test_unknown_clicks_are_kept_but_not_learned_from() -> None:
    impressions = Impressions.of(frame().assign(clicked=pd.array([1, None, 0, 1, 0], dtype="Int8")))
    assert impressions.table["clicked"].null_count == 1
    with pytest.raises(ImpressionsError, match="cannot be learned from"):
        _ = impressions.clicked


def test_a_log_is_read_in_batches_across_files_and_row_groups(tmp_path: Path) -> None:
    for part in range(3):
        table = pa.Table.from_pandas(frame().assign(item_id=[part * 5 + i for i in range(5)]))
        pq.write_table(table, tmp_path / f"{part}.parquet", row_group_size=2)
    batches = list(impression_batches(tmp_path, rows=4))
    assert [len(batch) for batch in batches] == [4, 4, 4, 3]
    assert [item for batch in batches for item in batch.values("item_id")] == list(range(15))
    assert count_impressions(tmp_path) == 15
    with pytest.raises(FileNotFoundError, match="no click log"):
        count_impressions(tmp_path / "none.parquet")
    (tmp_path / "log.csv").write_text("text,event_timestamp\n")
    with pytest.raises(ImpressionsError, match="batches want parquet"):
        next(impression_batches(tmp_path / "log.csv"))
    (tmp_path / "log.txt").write_text("no table")
    with pytest.raises(ImpressionsError, match="no click log in parquet"):
        count_impressions(tmp_path / "log.txt")


def test_only_the_columns_that_are_wanted_are_read_in_batches(tmp_path: Path) -> None:
    frame().rename(columns={"text": "title"}).to_parquet(tmp_path / "log.parquet")
    (batch,) = impression_batches(tmp_path / "log.parquet", {"text": "title"}, only={"text", "event_timestamp"})
    assert batch.table.column_names == ["event_timestamp", "text"]
