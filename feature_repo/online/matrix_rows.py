"""Rows to write whose vectors are one matrix: what a push, or KFC, has before anybody makes protobuf of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from numpy.typing import NDArray

from feature_repo.online.columns import Vectors
from feature_repo.online.rows import FIRST_TIME, LAST_TIME, RowToWrite, from_micros


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MatrixRows(Sequence[RowToWrite]):
    """N rows of a view with one string join key and one feature of fixed length.

    Any online store can write them, as it writes a list of rows; ours takes the columns as they are.

    Attributes:
        join_key, keys: its name; the value of each row.
        feature, vectors: the name of the vector; (N, dim) float32.
        others: the other features' values, N each.
        event_time, created_time: (N,) int64, microseconds since 1970 within the years 1 to 9999; `created_time` is None
            where rows count as created when they are written.
    """

    join_key: str
    keys: Sequence[str]
    feature: str
    vectors: NDArray[np.float32]
    others: Mapping[str, Sequence[Value]]
    event_time: NDArray[np.int64]
    created_time: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        count = len(self.keys)
        for times in (self.event_time, self.created_time):
            if times is not None and count and not (times.min() >= FIRST_TIME and times.max() <= LAST_TIME):
                raise ValueError("a time is not within the years 1 to 9999 of UTC")
        lengths = {len(self.vectors), len(self.event_time), *map(len, self.others.values())}
        if self.created_time is not None:
            lengths.add(len(self.created_time))
        if lengths != {count} or self.vectors.ndim != 2 or self.vectors.dtype != np.float32:
            raise ValueError(
                f"{count} keys, columns of {sorted(lengths)} rows, vectors {self.vectors.dtype} {self.vectors.shape}"
            )

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, at: int) -> RowToWrite: ...
    @overload
    def __getitem__(self, at: slice) -> list[RowToWrite]: ...
    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        values = {name: column[at] for name, column in self.others.items()}
        values[self.feature] = Vectors(self.vectors.shape[1]).value(self.vectors[at])
        return (
            EntityKey(join_keys=[self.join_key], entity_values=[Value(string_val=self.keys[at])]),
            values,
            from_micros(int(self.event_time[at])),
            None if self.created_time is None else from_micros(int(self.created_time[at])),
        )
