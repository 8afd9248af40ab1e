"""Rows of encoder views in the online store, as matrices: what look-ups read and what KFC finds already archived."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import numpy as np
from feast import FeatureStore, FeatureView
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from numpy.typing import NDArray

from encoders.spec import EncoderSpec
from feature_repo.session import connect, store_errors
from feature_repo.views import EMBEDDING, EMBEDDING_ID

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Archived rows of N keys, in their order; zeros where there is none."""

    found: NDArray[np.bool_]  # (N,)
    vectors: NDArray[np.float32]  # (N, dim)
    embedding_id: NDArray[np.int64]  # (N,)
    event_time: NDArray[np.int64]  # (N,) microseconds since 1970

    @classmethod
    def none_of(cls, count: int, dim: int) -> "Rows":
        """`count` missing rows, to be filled."""
        return cls(
            found=np.zeros(count, dtype=np.bool_),
            vectors=np.zeros((count, dim), dtype=np.float32),
            embedding_id=np.zeros(count, dtype=np.int64),
            event_time=np.zeros(count, dtype=np.int64),
        )


class OnlineRows(Protocol):
    """Reads archived rows."""

    def read(self, spec: EncoderSpec, keys: Sequence[str]) -> Rows:
        """The rows of canonical, distinct keys of one view.

        Raises:
            StoreUnavailable: the store did not answer; nothing may be concluded about any key.
        """
        ...


class FeastOnlineRows:
    """Archived rows through the online store of a feature store. Safe to share between threads once built.

    Raises:
        StoreUnavailable: the store cannot be reached.
    """

    def __init__(self, store: FeatureStore) -> None:
        self._store = store
        # The stock store opens its session unlocked on first use: here, before there are threads.
        connect(store)
        self._views: dict[tuple[str, str], FeatureView] = {}

    def read(self, spec: EncoderSpec, keys: Sequence[str]) -> Rows:
        rows = Rows.none_of(len(keys), spec.dim)
        if not keys:
            return rows
        entity_keys = [EntityKey(join_keys=[spec.join_key], entity_values=[Value(string_val=key)]) for key in keys]
        with store_errors(spec.view):
            answers = self._store._get_provider().online_read(
                self._store.config, self._view(spec), entity_keys, [EMBEDDING, EMBEDDING_ID]
            )
        for i, (event_time, values) in enumerate(answers):
            if not values or EMBEDDING not in values or EMBEDDING_ID not in values:
                continue  # a row is visible only when it is whole
            vector = values[EMBEDDING].float_list_val.val
            if len(vector) != spec.dim:
                logger.error(
                    "%s: a row of %r has %d values, not %d: read as missing", spec.view, keys[i], len(vector), spec.dim
                )
                continue
            rows.found[i] = True
            rows.vectors[i] = vector
            rows.embedding_id[i] = values[EMBEDDING_ID].int64_val
            rows.event_time[i] = _micros(event_time)
        return rows

    def _view(self, spec: EncoderSpec) -> FeatureView:
        # Kept, so that no look-up depends on the registry at that moment.
        identity = (spec.view, spec.fingerprint)
        if identity not in self._views:
            self._views[identity] = self._store.get_feature_view(spec.view)
        return self._views[identity]


def _micros(moment: datetime | None) -> int:
    if moment is None:
        return 0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)  # the driver answers naive UTC
    return round(moment.timestamp() * 1_000_000)
