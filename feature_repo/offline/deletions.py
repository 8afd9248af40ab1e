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


def without_deletions(view: FeatureView, ids: pa.ChunkedArray, keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """The keys of a history's rows, (N,), as numbers, NO_KEY for a deletion: content does not change by being removed.

    Args:
        ids: (N,) embedding ids of the rows. Rows of a view that is not an encoder's may lack one for other reasons.
    """
    if TAG_PREFIX + "encoder" not in view.tags or not ids.null_count:
        return keys
    return np.where(pc.is_null(ids).to_numpy(), NO_KEY, keys)
