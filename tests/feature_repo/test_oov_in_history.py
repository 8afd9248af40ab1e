"""The OOV embeddings that a view has had, as its history tells them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from feature_repo.embeddings import OOV_KEY, oov_zeros
from feature_repo.offline.history import TableHistory
from feature_repo.offline.oov import OovHistory
from tests.training.archive import IMAGE, NOON, SECOND, Archived, Embedded

ZEROS = oov_zeros(IMAGE.view, IMAGE.dim)


def read(archived: Archived) -> OovHistory:
    return OovHistory.read(archived.store, archived.views[IMAGE.view], IMAGE)


def test_a_view_begins_with_zeros_and_has_each_that_was_set(tmp_path: Path) -> None:
    archived = Archived.at(tmp_path, [IMAGE])
    assert read(archived).embeddings[-1].embedding_id == ZEROS.embedding_id
    first, second = Embedded(OOV_KEY, 10, 10, 1.0), Embedded(OOV_KEY, 20, 20, 2.0)
    archived.push(IMAGE, [second, Embedded("http://h.example/a.jpg", 5, 5, 9.0)])
    archived.push(IMAGE, [first, first])  # a replay
    oov = read(archived)
    ids = [ZEROS.embedding_id, first.id(IMAGE), second.id(IMAGE)]
    assert oov.ids.tolist() == [ids[0], ids[1], ids[1], ids[2]]
    assert oov.embeddings[-1].vector.tolist() == [2.0] * IMAGE.dim
    assert oov.answers([0, 1]).vectors[:, 0].tolist() == [0, 1]
    moments = NOON + np.array([9, 10, 19, 20]) * SECOND
    assert oov.at(moments, as_served=True).tolist() == [ids[0], ids[1], ids[1], ids[2]]
    assert oov.at(moments, as_served=False).tolist() == [ids[1], ids[1], ids[1], ids[2]]  # zeros were never set


def test_an_oov_embedding_of_another_length_is_told(tmp_path: Path) -> None:
    archived = Archived.at(tmp_path, [IMAGE])
    archived.push(IMAGE, [Embedded(OOV_KEY, 1, 1, 1.0)])
    with pytest.raises(ValueError, match="holds OOV embeddings that are not of 9 floats"):
        OovHistory.read(archived.store, archived.views[IMAGE.view], replace(IMAGE, dim=9))


def test_rows_of_a_single_file_are_found_by_value_too() -> None:
    times = pa.array([1, 2, 3]).cast(pa.timestamp("us"))
    found = TableHistory(pa.table({"key": ["a", OOV_KEY, None], "at": times, "n": [1, 2, 3]})).where(
        "key", OOV_KEY, ["n", "at"], ["at"]
    )
    assert found["n"].to_pylist() == [2]
    assert found.schema.field("at").type == pa.timestamp("us", tz="UTC")
