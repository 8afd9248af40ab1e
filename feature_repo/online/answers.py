"""Rows of bytes as what was asked for: Feast's values, or one matrix."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Int64, String
from numpy.typing import NDArray

from feature_repo.embeddings import Embeddings, RowVersion, Status, all_missing, embedding_id, oov_zeros
from feature_repo.online.columns import Column, Vectors, matrix
from feature_repo.online.reads import Row
from feature_repo.online.rows import from_micros
from feature_repo.online.statements import from_bigint, items_of
from feature_repo.online.table import OnlineTable

EMBEDDING_ID = "embedding_id"
FIRST_FEATURE = 3  # of a row: entity_key, event_time, nulls, features


def feast_rows(
    table: OnlineTable, features: Sequence[str], keys: Sequence[bytes | None], rows: Mapping[bytes, Row], oldest: int
) -> list[tuple[datetime | None, dict[str, Value] | None]]:
    """What `OnlineStore.online_read` answers: values of `features` for each key, rows before `oldest` (µs) left out."""
    visible = {key: row for key, row in rows.items() if from_bigint(row[1] or b"") >= oldest}
    values: list[dict[str, Value]] = [{} for _ in visible]
    for at, feature in enumerate(features, FIRST_FEATURE):
        _decode(table.columns[feature], [row[at] for row in visible.values()], values)
    for row, found in zip(visible.values(), values, strict=True):
        if row[2] is not None:
            found.update((name, Value()) for name in map(bytes.decode, items_of(row[2])) if name in features)
    answered: dict[bytes | None, Any] = {
        key: (from_micros(from_bigint(row[1] or b"")), found)
        for (key, row), found in zip(visible.items(), values, strict=True)
    }
    return [answered.get(key, (None, None)) for key in keys]


def _decode(column: Column, stored: Sequence[bytes | None], into: Sequence[dict[str, Value]]) -> None:
    there = [(i, value) for i, value in enumerate(stored) if value is not None]
    if column.dim:
        serialized = Vectors(column.dim).decode_all(value for _, value in there)
        for (i, _), value in zip(there, serialized, strict=True):
            into[i][column.feature] = Value.FromString(value)
    else:
        for i, value in there:
            into[i][column.feature] = column.decode(value)


@dataclass(frozen=True, slots=True)
class MatrixShape:
    """Which features of a view make a matrix with ids.

    Attributes:
        join_key: the view's one string join key.
        features: the vector, and the id where the view keeps one.
        dim: floats of the vector.
    """

    join_key: str
    features: tuple[str, ...]
    dim: int

    @classmethod
    def of(cls, view: Any, table: OnlineTable) -> "MatrixShape":
        """Raises ValueError for a view that has no matrix."""
        vectors = [column for column in table.columns.values() if column.dim]
        keys = [(key.name, key.dtype) for key in view.entity_columns]
        if len(vectors) != 1 or len(keys) != 1 or keys[0][1] != String:
            raise ValueError(
                f"feature view {view.name!r} cannot be read as a matrix: it needs one string join key and one "
                f"Array(Float32) with a vector_length, and has keys {', '.join(k for k, _ in keys) or 'none'} and "
                f"vectors {', '.join(column.feature for column in vectors) or 'none'}"
            )
        has_id = any(field.name == EMBEDDING_ID and field.dtype == Int64 for field in view.features)
        features = (vectors[0].feature, EMBEDDING_ID) if has_id else (vectors[0].feature,)
        return cls(keys[0][0], features, vectors[0].dim)


def embeddings(
    view: str,
    shape: MatrixShape,
    keys: Sequence[str],
    stored: Sequence[bytes | None],
    rows: Mapping[bytes, Row],
    oldest: int,
) -> Embeddings:
    """One answer a key, in order, zeros for none; a row is visible when it is whole and not before `oldest` (µs)."""
    answer = all_missing(oov_zeros(view, shape.dim), len(keys), Status.OOV)
    whole = _whole(stored, rows)
    event_time = _bigints(row[1] for _, row in whole)
    if event_time.size and event_time.min() < oldest:
        whole = [each for each, visible in zip(whole, event_time >= oldest, strict=True) if visible]
        event_time = event_time[event_time >= oldest]
    if not whole:
        return answer
    at = [i for i, _ in whole]
    where: Any = slice(None) if len(at) == len(keys) else at
    answer.vectors[where] = matrix([row[FIRST_FEATURE] for _, row in whole], shape.dim)
    answer.status[where] = Status.HIT
    answer.event_time[where] = event_time
    if len(shape.features) > 1:
        answer.embedding_id[where] = _bigints(row[FIRST_FEATURE + 1] for _, row in whole)
    else:
        answer.embedding_id[where] = [
            embedding_id(view, keys[i], int(event), answer.vectors[i]) for i, event in zip(at, event_time, strict=True)
        ]
    return answer


def versions(
    keys: Sequence[str], stored: Sequence[bytes | None], rows: Mapping[bytes, Row], oldest: int
) -> dict[str, RowVersion]:
    """Key → the event that is online, of rows of `OnlineTable.select_version`; none before `oldest` (µs)."""
    found: dict[str, RowVersion] = {}
    for key, at in zip(keys, stored, strict=True):
        row: Any = None if at is None else rows.get(at)
        if row is not None and (event_time := from_bigint(row[1])) >= oldest:
            found[key] = RowVersion(
                event_time=event_time,
                created_time=from_bigint(row[2]),
                embedding_id=None if row[3] is None else from_bigint(row[3]),
            )
    return found


def _whole(stored: Sequence[bytes | None], rows: Mapping[bytes, Row]) -> list[tuple[int, tuple[Any, ...]]]:
    """Positions of the keys whose rows have all features that were read, with those rows."""
    whole: list[tuple[int, tuple[Any, ...]]] = []
    for i, key in enumerate(stored):
        row = None if key is None else rows.get(key)
        if row is not None and None not in row[FIRST_FEATURE:]:
            whole.append((i, row))
    return whole


def _bigints(stored: Iterable[bytes]) -> NDArray[np.int64]:
    return np.frombuffer(b"".join(stored), ">i8").astype(np.int64)
