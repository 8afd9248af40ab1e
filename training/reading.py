"""The embedding's id that each impression gets: as logged, as of its time, or of the first event of its key."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureStore, FeatureView
from numpy.typing import NDArray

from encoders.spec import EncoderSpec
from feature_repo.offline.canonical import canonical_keys
from feature_repo.offline.columns import Columns
from feature_repo.offline.history import read_whole
from feature_repo.offline.retrieval import open_history
from feature_repo.views import EMBEDDING_ID
from training.impressions import ID_SUFFIX, TIME, Impressions, ImpressionsError

NO_ID = -1  # where an impression has no embedding; ids have 63 bits
ROW = "impression_row"  # carried through the join: an engine like Spark answers in any order


def ids_logged(impressions: Impressions, spec: EncoderSpec) -> NDArray[np.int64]:
    """The ids that the ranker logged, (N,); NO_ID where it logged none.

    Raises:
        ImpressionsError: there is no such column.
    """
    name = f"{spec.view}{ID_SUFFIX}"
    if name not in impressions.table.column_names:
        raise ImpressionsError(
            f"impressions lack {name!r}: log the ids that look-ups answer, or read as_served or as_of_content"
        )
    ids: NDArray[np.int64] = pc.fill_null(impressions.table[name], NO_ID).to_numpy()
    return ids


def ids_at(store: FeatureStore, impressions: Impressions, spec: EncoderSpec, *, as_served: bool) -> NDArray[np.int64]:
    """The ids that stood at the impressions' times, (N,), by Feast's point-in-time join; NO_ID for none.

    Raises:
        ImpressionsError: the view's key is missing.
        RuntimeError: the offline store lost rows.
    """
    keys = _keys(impressions, spec)
    return _joined(store, keys, impressions.table[TIME], spec, as_served=as_served)


@dataclass(frozen=True, slots=True)
class FirstEvents:
    """The event time of the first row of every key of a view's history.

    Attributes:
        keys: (K,) canonical.
        times: (K,) of `timestamp[us, UTC]`.
    """

    keys: pa.Array
    times: pa.Array

    @classmethod
    def read(cls, store: FeatureStore, view: FeatureView) -> Self:
        """Reads keys and times of the history, no vectors."""
        columns = Columns.of(view.batch_source)
        key = columns.named(view.entity_columns[0].name)

        def read() -> pa.Table:
            history, _ = open_history(store.config, view, None, None)
            return history.index([key], [columns.event])

        first = read_whole(read).group_by(key).aggregate([(columns.event, "min")])
        return cls(first[key].combine_chunks(), first[f"{columns.event}_min"].combine_chunks())

    def fill(
        self, store: FeatureStore, impressions: Impressions, spec: EncoderSpec, ids: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], int]:
        """`ids` (N,) with the id of the key's oldest embedding in the place of NO_ID; and how many that were.

        What stands at the time of the first event is the oldest row, by the very rules of the join.
        """
        missing = np.flatnonzero(ids == NO_ID)
        view = store.get_feature_view(spec.view)
        keys = canonical_keys(view, pa.table({spec.join_key: _keys(impressions, spec).take(pa.array(missing))}))
        place = pc.index_in(keys[spec.join_key], self.keys, skip_nulls=True)
        there = pc.is_valid(place).to_numpy()
        if not there.any():
            return ids, 0
        # Of each key once: all its impressions get the same row.
        of_key, inverse = np.unique(place.filter(pc.is_valid(place)).to_numpy(), return_inverse=True)
        oldest = pa.array(of_key)
        found = _joined(store, self.keys.take(oldest), self.times.take(oldest), spec, as_served=False)
        filled = ids.copy()
        filled[missing[there]] = found[inverse]
        return filled, int((found[inverse] != NO_ID).sum())


def _keys(impressions: Impressions, spec: EncoderSpec) -> pa.ChunkedArray:
    if spec.join_key not in impressions.table.column_names:
        raise ImpressionsError(f"impressions lack {spec.join_key!r}, the key of {spec.view}")
    return impressions.table[spec.join_key]


def _joined(
    store: FeatureStore,
    keys: pa.ChunkedArray | pa.Array,
    times: pa.ChunkedArray | pa.Array,
    spec: EncoderSpec,
    *,
    as_served: bool,
) -> NDArray[np.int64]:
    count = len(keys)
    frame = pd.DataFrame({spec.join_key: _texts(keys), TIME: times.to_pandas(), ROW: np.arange(count, dtype=np.int64)})
    job = store.get_historical_features(frame, [f"{spec.view}:{EMBEDDING_ID}"], filter_by_created_timestamp=as_served)
    table = job.to_arrow()
    rows = table[ROW].to_numpy()
    ids = np.full(count, NO_ID, dtype=np.int64)
    ids[rows] = pc.fill_null(table[EMBEDDING_ID].cast(pa.int64()), NO_ID).to_numpy()
    if len(rows) != count:
        raise RuntimeError(f"the offline store answered {len(rows)} rows for {count} impressions of {spec.view}")
    return ids


def _texts(keys: pa.ChunkedArray | pa.Array) -> NDArray[np.object_]:
    """The keys as Python strings, equal ones as one object: 8 bytes an impression."""
    encoded = (keys.combine_chunks() if isinstance(keys, pa.ChunkedArray) else keys).dictionary_encode()
    distinct = np.array([*encoded.dictionary.to_pylist(), None], dtype=object)
    texts: NDArray[np.object_] = distinct[pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)]
    return texts
