"""A push through our provider makes the rows that Feast's own makes."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest
from feast import Entity, FeatureView, Field, FileSource
from feast.infra.passthrough_provider import PassthroughProvider
from feast.types import Array, Float32, Int64, String
from feast.value_type import ValueType
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from feature_repo.online.matrix_rows import MatrixRows
from feature_repo.online.rows import RowToWrite
from feature_repo.provider import EmbeddingProvider

KEY = Field(name="item", dtype=String)
VECTOR = Field(name="embedding", dtype=Array(Float32), vector_length=3)
WORDS = Field(name="words", dtype=Array(Float32))  # of any length
ID = Field(name="id", dtype=Int64)


def view(*fields: Field, **mapping: str) -> FeatureView:
    declared = FeatureView(
        name="items",
        entities=[Entity(name="item", join_keys=["item"], value_type=ValueType.STRING)],
        schema=[KEY, *fields],
        source=FileSource(name="s", path="none.parquet", timestamp_field="event_timestamp", field_mapping=mapping),
        ttl=timedelta(0),
    )
    declared.features, declared.entity_columns = list(fields), [KEY]  # as `feast apply` infers them
    return declared


def frame(count: int, **columns: Sequence[Any]) -> pd.DataFrame:
    times = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=i) for i in range(count)]
    return pd.DataFrame({"item": [f"i{i}" for i in range(count)], **columns, "event_timestamp": times})


def rows(provider: Any, of: FeatureView, df: pd.DataFrame) -> list[RowToWrite]:
    """Times are in UTC, whether they say so or not."""
    made = provider._prep_rows_to_write_for_ingestion(of, df)
    return [(key, values, _utc(event), created and _utc(created)) for key, values, event, created in made]


def _utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def is_matrix(of: FeatureView, df: pd.DataFrame) -> bool:
    return isinstance(EmbeddingProvider._prep_rows_to_write_for_ingestion(of, df), MatrixRows)


@given(
    arrays.arrays(np.float32, st.tuples(st.integers(1, 5), st.just(3)), elements=st.floats(width=32, allow_nan=False))
)
def test_vectors_and_what_stands_beside_them(matrix: Any) -> None:
    df = frame(
        len(matrix), embedding=list(matrix), id=range(len(matrix)), words=[[1.0] * i for i in range(len(matrix))]
    )
    of = view(VECTOR, ID, WORDS)
    assert is_matrix(of, df)
    assert rows(EmbeddingProvider, of, df) == rows(PassthroughProvider, of, df)


def test_a_view_of_nothing_but_a_vector() -> None:
    df = frame(2, embedding=[np.ones(3, np.float32), np.zeros(3, np.float32)])
    assert rows(EmbeddingProvider, view(VECTOR), df) == rows(PassthroughProvider, view(VECTOR), df)


@pytest.mark.parametrize(
    "vectors",
    [
        pytest.param([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], id="lists"),
        pytest.param([np.ones(3), np.zeros(3)], id="float64"),
        pytest.param([np.ones(3, np.float32), None], id="a null"),
        pytest.param([np.ones(3, np.float32), np.ones(2, np.float32)], id="another length"),
    ],
)
def test_what_is_no_matrix_of_float32_is_left_to_feast(vectors: Sequence[Any]) -> None:
    df = frame(2, embedding=vectors, id=[1, 2])
    assert not is_matrix(view(VECTOR, ID), df)
    assert rows(EmbeddingProvider, view(VECTOR, ID), df) == rows(PassthroughProvider, view(VECTOR, ID), df)


def test_columns_under_other_names_are_left_to_feast() -> None:
    df = frame(2, stored=[np.ones(3, np.float32)] * 2, id=[1, 2])
    of = view(VECTOR, ID, stored="embedding")
    assert rows(EmbeddingProvider, of, df) == rows(PassthroughProvider, of, df)


def test_the_bits_of_a_nan_stay_what_they_were() -> None:
    odd = np.array([0x7FC12345, 0xFF800001, 0x80000000], dtype=np.uint32).view(np.float32)
    ((_, values, _, _),) = rows(EmbeddingProvider, view(VECTOR), frame(1, embedding=[odd]))
    assert values["embedding"].float_list_val.SerializeToString().endswith(odd.tobytes())
