"""What an encoder's view holds now: of each key the newest embedding, read from history into one matrix."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureStore
from numpy.typing import NDArray

from encoders.keys import KeyRefused, canonical_key
from encoders.spec import EncoderSpec
from feature_repo.embeddings import OOV_KEY
from feature_repo.offline.columns import Columns
from feature_repo.offline.gather import key_codes
from feature_repo.offline.history import read_whole
from feature_repo.offline.point_in_time import last_rows
from feature_repo.offline.retrieval import open_history, rows_of
from feature_repo.views import CONTENT_HASH, EMBEDDING, EMBEDDING_ID
from training.vectors import MatrixPlace


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchivedItems:
    """N keys of a view with their newest embeddings, in the order of history.

    Attributes:
        keys: (N,) canonical.
        ids: (N,) int64 embedding ids: a key that was embedded anew has another one.
        event: (N,) int64 µs, when the content is known to exist.
        content_hash: (N,) hex digits of the file or text; empty where it is not known.
        vectors: (N, dim) float32; a numpy memory map where it is large.
    """

    keys: pa.Array
    ids: NDArray[np.int64]
    event: NDArray[np.int64]
    content_hash: pa.Array
    vectors: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ids)

    def rows_of(self, spec: EncoderSpec, keys: Sequence[str | None]) -> NDArray[np.int64]:
        """The row of each key, (K,), in whichever form it is given; -1 where it is not archived, or can be no key."""

        def canonical(key: str | None) -> str | None:
            try:
                return None if key is None else canonical_key(spec, key)
            except KeyRefused:
                return None

        asked = pa.array([canonical(key) for key in keys], pa.string())
        found = pc.fill_null(pc.index_in(asked, self.keys, skip_nulls=True), -1)
        rows: NDArray[np.int64] = found.to_numpy(zero_copy_only=False).astype(np.int64)
        return rows


def read_items(store: FeatureStore, spec: EncoderSpec, place: MatrixPlace) -> ArchivedItems:
    """Reads them; keys that were removed are left out.

    Raises:
        ValueError: a vector of the history has another length than the view's.
        FileNotFoundError: compactions removed what was being read, again and again.
    """
    return read_whole(lambda: _read(store, spec, place))


def _read(store: FeatureStore, spec: EncoderSpec, place: MatrixPlace) -> ArchivedItems:
    view = store.get_feature_view(spec.view)
    columns = Columns.of(view.batch_source)
    key = columns.named(spec.join_key)
    history, _ = open_history(store.config, view, None, None)
    index = history.index([key, EMBEDDING_ID, CONTENT_HASH], [t for t in (columns.event, columns.created) if t])
    keys = index.select([key])
    _, codes = key_codes(keys.slice(0, 0), keys)
    rows = rows_of(index, codes, columns, EMBEDDING_ID)
    at = last_rows(rows)
    # The last event of the others is their removal; and the view's OOV embedding is no item.
    items = pc.and_(pc.is_valid(index[EMBEDDING_ID]), pc.not_equal(index[key], OOV_KEY))
    at = at[items.to_numpy()[at]]
    vectors = place.empty(spec.view, len(at), spec.dim)
    history.vectors(at, EMBEDDING, vectors)
    chosen = index.select([key, EMBEDDING_ID, CONTENT_HASH]).take(pa.array(at)).combine_chunks()
    return ArchivedItems(
        keys=_one(chosen[key]),
        ids=chosen[EMBEDDING_ID].to_numpy(),
        event=rows.event[at],
        content_hash=_one(pc.fill_null(chosen[CONTENT_HASH].cast(pa.string()), "")),
        vectors=vectors,
    )


def _one(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return (
        combined if isinstance(combined, pa.Array) else pa.concat_arrays(combined.chunks or [pa.array([], pa.string())])
    )
