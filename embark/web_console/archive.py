"""What the archive knows of keys, read as EmbArk reads it, but without asking for what is missing."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from feast import FeatureStore
from numpy.typing import NDArray

from encoders.keys import KeyRefused, canonical_key
from encoders.spec import EncoderSpec
from feature_repo.embeddings import Status
from feature_repo.failures import CassandraFailureMarks, FailureMarks
from feature_repo.online_rows import FeastOnlineRows, OnlineRows
from feature_repo.session import StoreUnavailable
from feature_repo.views import EMBEDDING_ID

SEARCHES = 2  # at a time: one without an index reads every row of its view


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyState:
    """A key in one view.

    Attributes:
        status: name of a `Status`: what a look-up would be answered.
        why: of FAILED and UNAVAILABLE.
        embedding_id, event_time: of a HIT, microseconds since 1970; 0 else.
    """

    view: str
    key: str
    status: str
    why: str = ""
    embedding_id: int = 0
    event_time: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbour:
    """An item near another one; `similarity` is the cosine, 1 at most."""

    key: str
    similarity: float


class NotArchived(LookupError):
    """Nothing can be near a key that has no embedding."""


class ArchiveReader:
    """Reads the online store and the failure marks. Safe to share between threads; connects when it is first asked.

    Args:
        store: a feature store of its own.
    """

    def __init__(self, store: FeatureStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._searches = threading.Semaphore(SEARCHES)
        self._connected: tuple[OnlineRows, FailureMarks] | None = None

    def states(self, spec: EncoderSpec, keys: Sequence[str]) -> list[KeyState]:
        """What a look-up of `keys` would be answered, in their order; nothing is asked for."""
        canonical: dict[str, str] = {}
        refused: dict[str, str] = {}
        for key in keys:
            try:
                canonical[key] = canonical_key(spec, key)
            except KeyRefused as refusal:
                refused[key] = f"KeyRefused: {refusal}"
        try:
            found = self._read(spec, list(dict.fromkeys(canonical.values())))
        except StoreUnavailable as outage:
            found = {
                key: KeyState(view=spec.view, key=key, status=Status.UNAVAILABLE.name, why=str(outage))
                for key in canonical.values()
            }
        return [
            found[canonical[key]]
            if key in canonical
            else KeyState(view=spec.view, key=key, status=Status.FAILED.name, why=refused[key])
            for key in keys
        ]

    def near(self, spec: EncoderSpec, key: str, count: int) -> list[Neighbour]:
        """The items whose embeddings are nearest to a key's, at most `count`, nearest first; not itself.

        Raises:
            NotArchived: the key has no embedding.
            StoreUnavailable: the store did not answer.
            ValueError: the view has no index, and too many rows to read them all.
        """
        rows, _ = self._parts()
        canonical = canonical_key(spec, key)
        read = rows.read(spec, [canonical])
        if read.status[0] != Status.HIT:
            raise NotArchived(f"{spec.view} has no embedding of this key: nothing can be near it")
        with self._searches:
            found = self._search(spec, read.vectors[0], count + 1)
        return [each for each in found if each.key != canonical][:count]

    def has_index(self, spec: EncoderSpec) -> bool:
        """Whether a search of a view need not read every row."""
        with self._lock:
            view = self._store.get_feature_view(spec.view)
        return any(getattr(field, "vector_index", False) for field in view.features)

    def marks(self) -> FailureMarks:
        """The failure marks.

        Raises:
            StoreUnavailable: the store cannot be reached.
        """
        return self._parts()[1]

    def _parts(self) -> tuple[OnlineRows, FailureMarks]:
        with self._lock:
            if self._connected is None:
                self._connected = FeastOnlineRows(self._store), CassandraFailureMarks.of(self._store)
            return self._connected

    def _read(self, spec: EncoderSpec, keys: list[str]) -> dict[str, KeyState]:
        if not keys:
            return {}
        rows, marks = self._parts()
        read = rows.read(spec, keys)
        hit = dict(zip(keys, (read.status == Status.HIT).tolist(), strict=True))
        why = marks.read(spec.view, [key for key in keys if not hit[key]])
        return {
            key: KeyState(
                view=spec.view,
                key=key,
                status=(Status.HIT if hit[key] else Status.FAILED if key in why else Status.OOV).name,
                why=why.get(key, ""),
                embedding_id=int(read.embedding_id[i]) if hit[key] else 0,
                event_time=int(read.event_time[i]) if hit[key] else 0,
            )
            for i, key in enumerate(keys)
        }

    def _search(self, spec: EncoderSpec, vector: NDArray[np.float32], count: int) -> list[Neighbour]:
        with self._lock:
            view = self._store.get_feature_view(spec.view)
        found: Sequence[tuple[Any, Any, Mapping[str, Any]]] = (
            self._store._get_provider().online_store.retrieve_online_documents_v2(
                self._store.config, view, [EMBEDDING_ID], vector.tolist(), count, "cosine"
            )
        )
        return [
            Neighbour(key=entity.entity_values[0].string_val, similarity=1.0 - values["distance"].float_val)
            for _, entity, values in found
        ]
