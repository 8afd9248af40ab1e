"""Deletions in history: rows of an encoder's view without an id, embedding and content hash.

Their event time is a microsecond after that of the row that they remove, their created time is when it was removed. So
`as_served` finds them, as look-ups missed the key from then on. Stock Feast reads nulls there.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureView
from numpy.typing import NDArray

from encoders.spec import TAG_PREFIX

NO_KEY = -1  # of a row that nothing finds
FEATURES = {"embedding", "embedding_id", "content_hash"}  # of an encoder's view: `feature_repo.views`


def without_deletions(view: FeatureView, ids: pa.ChunkedArray, keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """The keys of a history's rows, (N,), as numbers, NO_KEY for a deletion: content does not change by being removed.

    Args:
        ids: (N,) embedding ids of the rows. Rows of a view that is not an encoder's may lack one for other reasons.
    """
    if TAG_PREFIX + "encoder" not in view.tags or not ids.null_count:
        return keys
    return np.where(pc.is_null(ids).to_numpy(), NO_KEY, keys)


def not_deleted(schema: pa.Schema, ids: pa.ChunkedArray, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of the positions `rows` that hold no deletion: materialized, it would be a key whose embedding is null.

    Online the key is missing already, by the row that `embark invalidate` wrote.

    Args:
        schema: of the history; Feast names no view where it pulls.
        ids: embedding ids of all rows.
    """
    if not set(schema.names) >= FEATURES or not ids.null_count:
        return rows
    there: NDArray[np.int64] = rows[pc.is_valid(ids).to_numpy()[rows]]
    return there
