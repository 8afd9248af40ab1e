"""A deletion is an event of its own, one microsecond after the row that it removes, with nothing in it.

Online it is a row without an embedding. As the last event it wins over the row that it removes and over a late replay
of that, by the rules of all rows (`feature_repo.online.table`); a later event wins over it. Look-ups miss the key, and
KFC reads there when it was removed. History gets the same: a row whose embedding, id and content hash are null.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from numpy.typing import NDArray

from encoders.spec import EncoderSpec
from feature_repo.online.rows import from_micros
from feature_repo.views import CONTENT_HASH, CREATED_TIME, EMBEDDING, EMBEDDING_ID, EVENT_TIME

AFTER = 1  # µs between a row and its deletion, and between a deletion and the earliest event that it does not hide


@dataclass(frozen=True, kw_only=True, slots=True)
class Deletions:
    """N deletions in one view, of distinct canonical keys.

    Attributes:
        keys: canonical.
        event_time: (N,) microseconds since 1970.
        deleted_at: when they were asked for, microseconds since 1970: their created time.
    """

    keys: tuple[str, ...]
    event_time: NDArray[np.int64]
    deleted_at: int

    def __len__(self) -> int:
        return len(self.keys)

    def table(self, spec: EncoderSpec) -> pa.Table:
        """The deletions with the columns of their feature view, as offline stores take them."""
        count, utc = len(self), pa.timestamp("us", tz="UTC")
        return pa.table(
            {
                spec.join_key: pa.array(self.keys, pa.string()),
                EMBEDDING: pa.nulls(count, pa.list_(pa.float32())),
                EMBEDDING_ID: pa.nulls(count, pa.int64()),
                CONTENT_HASH: pa.nulls(count, pa.string()),
                EVENT_TIME: pa.array(self.event_time).cast(utc),
                CREATED_TIME: pa.array(np.full(count, self.deleted_at, dtype=np.int64)).cast(utc),
            }
        )

    def rows(self, spec: EncoderSpec) -> Sequence[tuple[EntityKey, dict[str, Any], datetime, datetime]]:
        """The deletions as online stores take them."""
        created = from_micros(self.deleted_at)
        return [
            (
                EntityKey(join_keys=[spec.join_key], entity_values=[Value(string_val=key)]),
                {},
                from_micros(int(time)),
                created,
            )
            for key, time in zip(self.keys, self.event_time, strict=True)
        ]
