"""Embeddings of encoder views in the online store, as matrices: what look-ups read and what KFC finds archived."""

from collections.abc import Sequence
from typing import Protocol

from feast import FeatureStore, FeatureView

from encoders.spec import EncoderSpec
from feature_repo.embeddings import OOV_KEY, Embeddings, OovEmbedding, RowVersion, Status, oov_zeros
from feature_repo.session import connect


class OnlineRows(Protocol):
    """Reads archived embeddings."""

    def read(self, spec: EncoderSpec, keys: Sequence[str]) -> Embeddings:
        """The embeddings of canonical keys of one view, in their order: HIT, or OOV and zeros where there is none.

        Raises:
            StoreUnavailable: the store did not answer; nothing may be concluded about any key.
        """
        ...


def served_oov(rows: OnlineRows, spec: EncoderSpec) -> OovEmbedding:
    """The OOV embedding of a view that is online: the row that its owner has set, or zeros.

    Raises:
        StoreUnavailable: the store did not answer.
    """
    row = rows.read(spec, [OOV_KEY])
    if row.status[0] != Status.HIT:
        return oov_zeros(spec.view, spec.dim)
    return OovEmbedding(vector=row.vectors[0], embedding_id=int(row.embedding_id[0]), event_time=int(row.event_time[0]))


class FeastOnlineRows:
    """Archived embeddings through the EmbeddingOnlineStore of a feature store. Safe to share between threads.

    Raises:
        StoreUnavailable: the store cannot be reached.
    """

    def __init__(self, store: FeatureStore) -> None:
        self._store = store
        connect(store)  # now, where it can be told, rather than in the first look-up
        self._views: dict[tuple[str, str], FeatureView] = {}

    def read(self, spec: EncoderSpec, keys: Sequence[str]) -> Embeddings:
        online: Embeddings = self._store._get_provider().online_store.read_matrix(
            self._store.config, self._view(spec), keys
        )
        return online

    def versions(self, spec: EncoderSpec, keys: Sequence[str]) -> dict[str, RowVersion]:
        """Which event of each of the canonical keys of one view is online; keys that have none are left out.

        Raises:
            StoreUnavailable: the store did not answer; nothing may be concluded about any key.
        """
        found: dict[str, RowVersion] = self._store._get_provider().online_store.read_versions(
            self._store.config, self._view(spec), keys
        )
        return found

    def _view(self, spec: EncoderSpec) -> FeatureView:
        # Kept, so that no look-up depends on the registry at that moment.
        identity = (spec.view, spec.fingerprint)
        if identity not in self._views:
            self._views[identity] = self._store.get_feature_view(spec.view)
        return self._views[identity]
