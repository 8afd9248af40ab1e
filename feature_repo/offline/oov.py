"""The OOV embeddings that a view has had: the zeros it begins with, and those that its owner has set, in history."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
from feast import FeatureStore, FeatureView
from numpy.typing import NDArray

from encoders.spec import EncoderSpec
from feature_repo.embeddings import OOV_KEY, Embeddings, OovEmbedding, Status, all_missing, oov_zeros
from feature_repo.offline.columns import Columns
from feature_repo.offline.gather import matrix
from feature_repo.offline.history import read_whole
from feature_repo.offline.retrieval import micros, open_history
from feature_repo.views import EMBEDDING, EMBEDDING_ID


@dataclass(frozen=True, slots=True)
class OovHistory:
    """The OOV embeddings of one view, in the order of their events; the first are the zeros. Replays have rows, too.

    Attributes:
        embeddings: S of them.
        created_times: (S,) int64, microseconds since 1970.
    """

    embeddings: tuple[OovEmbedding, ...]
    created_times: NDArray[np.int64]

    @classmethod
    def read(cls, store: FeatureStore, view: FeatureView, spec: EncoderSpec) -> Self:
        """Reads them from history.

        Raises:
            ValueError: one has another length than the view's vectors.
        """
        columns = Columns.of(view.batch_source)
        times = [columns.event, columns.created]

        def rows() -> pa.Table:
            history, _ = open_history(store.config, view, None, None)
            return history.where(columns.named(spec.join_key), OOV_KEY, [EMBEDDING, EMBEDDING_ID, *times], times)

        found = read_whole(rows)
        zeros = oov_zeros(spec.view, spec.dim)
        if not found.num_rows:
            return cls((zeros,), np.zeros(1, dtype=np.int64))
        vectors = matrix(found[EMBEDDING])
        if vectors is None or vectors.shape[1] != spec.dim:
            raise ValueError(f"history of {view.name!r} holds OOV embeddings that are not of {spec.dim} floats")
        event_times, created_times = (micros(found[name]) for name in times)
        ids = found[EMBEDDING_ID].to_numpy()
        order = np.lexsort((ids, created_times, event_times))  # which wins, as of any key
        were_set = (
            OovEmbedding(vector=vectors[i].astype(np.float32), embedding_id=int(ids[i]), event_time=int(event_times[i]))
            for i in order
        )
        return cls((zeros, *were_set), np.append(0, created_times[order]))

    def __len__(self) -> int:
        return len(self.embeddings)

    @property
    def ids(self) -> NDArray[np.int64]:
        """(S,)"""
        return np.array([each.embedding_id for each in self.embeddings], dtype=np.int64)

    def answers(self, which: Sequence[int]) -> Embeddings:
        """Some of them, as look-ups were answered."""
        each = [all_missing(self.embeddings[i], 1, Status.OOV) for i in which]
        return Embeddings(
            vectors=np.concatenate([one.vectors for one in each]),
            status=np.concatenate([one.status for one in each]),
            embedding_id=np.concatenate([one.embedding_id for one in each]),
            event_time=np.concatenate([one.event_time for one in each]),
            failures={},
        )

    def at(self, moments: NDArray[np.int64], *, as_served: bool) -> NDArray[np.int64]:
        """The ids of those that stood at `moments` (µs), (N,).

        Args:
            as_served: by event and created time, zeros before the first; else by event time alone, and before the
                first that was set that one: as of any key.
        """
        zeros, *were_set = self.embeddings
        before = zeros
        if were_set and not as_served:
            before = next(each for each in reversed(were_set) if each.event_time == were_set[0].event_time)
        ids = np.full(len(moments), before.embedding_id)
        for each, created_time in zip(were_set, self.created_times[1:].tolist(), strict=True):  # few; a later one wins
            since = max(each.event_time, created_time) if as_served else each.event_time
            ids[moments >= since] = each.embedding_id
        return ids
