"""Vectors of a history copied by position: the same as its values, few of each row group."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from feature_repo.offline import folder
from feature_repo.offline.folder import Folder
from feature_repo.offline.history import History, PartsHistory, TableHistory
from feature_repo.offline.parts import append, ensure_schema

DIM = 4
SCHEMA = pa.schema(
    {"key": pa.int64(), "vector": pa.list_(pa.float32()), "at": pa.timestamp("us", tz="UTC")},
)


def rows(first: int, count: int) -> pa.Table:
    """Every seventh row is of a key that was removed: it has no vector."""
    keys = range(first, first + count)
    vectors = [None if key % 7 == 0 else [float(key)] * DIM for key in keys]
    return pa.table({"key": [*keys], "vector": vectors, "at": [*keys]}, schema=SCHEMA)


@pytest.fixture
def histories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[History]:
    monkeypatch.setattr(folder, "ROW_GROUP_BYTES", 300)  # some ten rows
    home = Folder.at(str(tmp_path / "history"))
    schema = ensure_schema(home, SCHEMA)
    for first in (0, 50, 100):
        append(home, schema, "at", rows(first, 50))
    parts = PartsHistory(home, schema)
    whole = parts.index(["key", "vector"], [])
    return [parts, TableHistory(whole)]


def test_vectors_are_those_of_the_rows_asked_for_and_removed_ones_beside_them_do_not_matter(
    histories: list[History],
) -> None:
    draw = np.random.default_rng(0)
    for history in histories:
        keys = history.index(["key"], [])["key"].to_numpy()
        there = np.flatnonzero(keys % 7 != 0)
        for wanted in (there, there[:1], there[-1:], there[:0], np.sort(draw.choice(there, 40, replace=False))):
            into = np.full((len(wanted), DIM), np.nan, dtype=np.float32)
            history.vectors(wanted, "vector", into)
            assert (into == keys[wanted, None]).all()
            assert history.values(wanted, ["key"])["key"].to_pylist() == keys[wanted].tolist()


def test_rows_that_are_no_vectors_of_that_length_are_told(histories: list[History]) -> None:
    for history in histories:
        keys = history.index(["key"], [])["key"].to_numpy()
        for wanted, dim in ((np.flatnonzero(keys == 1), DIM + 1), (np.flatnonzero(keys <= 1), DIM)):
            with pytest.raises(ValueError, match=f"vectors that are not of {dim} floats"):
                history.vectors(wanted, "vector", np.empty((len(wanted), dim), dtype=np.float32))
