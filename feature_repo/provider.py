"""Feast's local provider, which leaves the vectors of a push in their matrix.

    provider: feature_repo.provider.EmbeddingProvider

Feast makes a Python object and then protobuf of every float first, which takes half the time of a push. All else is
Feast's: the other columns, views of another shape, vectors that are null or of another length, and the errors.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from feast import FeatureView
from feast.infra.passthrough_provider import PassthroughProvider
from feast.types import Array, Float32, String
from feast.utils import _columns_to_proto_values
from numpy.typing import NDArray

from feature_repo.online.matrix_rows import MatrixRows
from feature_repo.online.rows import RowToWrite

FIRST_YEAR, LAST_YEAR = 1, 9999  # of UTC, of what can be told when it is read


class EmbeddingProvider(PassthroughProvider):  # type: ignore[misc]
    """The provider; it works with any online store."""

    @staticmethod
    def _prep_rows_to_write_for_ingestion(
        feature_view: Any, df: pd.DataFrame, field_mapping: dict[str, str] | None = None
    ) -> Sequence[RowToWrite]:
        """Rows as online stores take them: key, values, event time, created time."""
        rows: Sequence[RowToWrite] | None = matrix_rows(feature_view, df)
        if rows is None:
            rows = PassthroughProvider._prep_rows_to_write_for_ingestion(feature_view, df, field_mapping)
        return rows


def matrix_rows(feature_view: Any, df: pd.DataFrame) -> MatrixRows | None:
    """The frame's rows where the view has one string join key and one vector of fixed length, and all vectors fit it.

    None where it is otherwise, and where Feast has to tell what is wrong.

    Raises:
        ValueError: of Feast: a column is missing, or has values of another type.
    """
    if type(feature_view) is not FeatureView or feature_view.batch_source.field_mapping:
        return None
    source, keys = feature_view.batch_source, feature_view.entity_columns
    vectors = [field for field in feature_view.features if field.dtype == Array(Float32) and field.vector_length]
    if len(keys) != 1 or len(vectors) != 1 or keys[0].dtype != String:
        return None
    key, vector = keys[0].name, vectors[0]
    if not {key, vector.name, source.timestamp_field} <= set(df.columns):
        return None
    texts = df[key].tolist()
    matrix = _matrix(df[vector.name], vector.vector_length)
    if matrix is None or not all(type(text) is str for text in texts):
        return None
    (batch,) = pa.Table.from_pandas(df.drop(columns=[key, vector.name])).combine_chunks().to_batches() or (None,)
    if batch is None:
        return None
    event_time = _micros(batch, source.timestamp_field)
    created_time = _micros(batch, source.created_timestamp_column) if source.created_timestamp_column else None
    if event_time is None or (source.created_timestamp_column and created_time is None):
        return None
    others = [(f.name, f.dtype.to_value_type()) for f in feature_view.features if f.name not in (key, vector.name)]
    return MatrixRows(
        join_key=key,
        keys=texts,
        feature=vector.name,
        vectors=matrix,
        others=_columns_to_proto_values(batch, others),
        event_time=event_time,
        created_time=created_time,
    )


def _matrix(column: pd.Series, dim: int) -> NDArray[np.float32] | None:
    """The column as (N, dim) float32, or None where it is none."""
    rows = column.to_numpy()
    if not all(isinstance(row, np.ndarray) and row.dtype == np.float32 and row.shape == (dim,) for row in rows):
        return None
    return np.concatenate(rows).reshape(-1, dim) if len(rows) else None


def _micros(batch: pa.RecordBatch, name: str) -> NDArray[np.int64] | None:
    """A column of times in microseconds, (N,); None where one is missing, or in no year of four digits."""
    if name not in batch.schema.names:
        return None
    times = pd.DatetimeIndex(pd.to_datetime(batch.column(name).to_numpy(zero_copy_only=False)))
    if times.hasnans or not ((times.year >= FIRST_YEAR) & (times.year <= LAST_YEAR)).all():
        return None
    return np.asarray(times.as_unit("us").asi8)
