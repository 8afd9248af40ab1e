"""Where embeddings are archived: history, then online, through Feast's stores."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, Self

import numpy as np
import pyarrow as pa
from cassandra import DriverException
from cassandra.cluster import NoHostAvailable
from cassandra.connection import ConnectionException
from feast import FeatureStore, FeatureView
from feast.errors import FeastObjectNotFoundException
from feast.protos.feast.types.Value_pb2 import Value
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from encoders.spec import EncoderSpec
from feature_repo.embeddings import embedding_id
from feature_repo.online.matrix_rows import MatrixRows
from feature_repo.session import StoreUnavailable
from feature_repo.views import CONTENT_HASH, CREATED_TIME, EMBEDDING, EMBEDDING_ID, EVENT_TIME
from materializer.messages import Announcement


class ArchiveUnavailable(Exception):
    """The archive did not take or give what it was asked for, and may later; the message says which part and why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddedBatch:
    """N new embeddings of one view, of distinct canonical keys."""

    keys: tuple[str, ...]
    vectors: NDArray[np.float32]  # (N, dim)
    embedding_id: tuple[int, ...]  # of `feature_repo.embeddings`
    event_time: NDArray[np.int64]  # (N,) microseconds since 1970
    content_hash: tuple[str, ...]  # hex digits; empty where there is none
    created_at: int  # microseconds since 1970

    @classmethod
    def of(
        cls,
        view: str,
        *,
        keys: Sequence[str],
        vectors: NDArray[np.float32],
        event_time: NDArray[np.int64],
        content_hash: Sequence[str],
        created_at: int,
    ) -> Self:
        """The batch with its ids: history and online store get the same ones."""
        ids = (
            embedding_id(view, key, int(time), vector)
            for key, time, vector in zip(keys, event_time, vectors, strict=True)
        )
        return cls(
            keys=tuple(keys),
            vectors=vectors,
            embedding_id=tuple(ids),
            event_time=event_time,
            content_hash=tuple(content_hash),
            created_at=created_at,
        )

    def __len__(self) -> int:
        return len(self.keys)

    def announcements(self, view: str) -> list[Announcement]:
        """What is told of the batch when it is online."""
        return [
            Announcement("embedded", view, key, int(time), id_)
            for key, time, id_ in zip(self.keys, self.event_time, self.embedding_id, strict=True)
        ]


class Archive(Protocol):
    """What a worker asks of the archive."""

    def archived(self, spec: EncoderSpec, keys: Sequence[str]) -> set[str]:
        """Those of `keys` that are online.

        Raises:
            ArchiveUnavailable: the online store did not answer.
        """
        ...

    def append_history(self, spec: EncoderSpec, batch: EmbeddedBatch) -> None:
        """Appends to history: durable when this returns.

        Raises:
            ArchiveUnavailable: it may or may not have been appended.
        """
        ...

    def write_online(self, spec: EncoderSpec, batch: EmbeddedBatch) -> None:
        """Makes the embeddings what look-ups answer.

        Raises:
            ArchiveUnavailable: any part of it may or may not have been written.
        """
        ...


class ArchivedKeys(Protocol):
    """What an archive asks of the online store: `feature_repo.online_rows.FeastOnlineRows`."""

    def has(self, spec: EncoderSpec, keys: Sequence[str]) -> NDArray[np.bool_]: ...


class FeastArchive:
    """The stores of a feature store, written through Feast's provider as `FeatureStore.push` writes them.

    Not by `push` itself: that takes a frame, and makes of each row what both stores would have to take apart again.

    A worker that dies between history and online leaves rows in history that no look-up answers yet; the next worker
    embeds the keys again and appends them again, with the same event time (it travels in the request) and a later
    created time. Feast's point-in-time join keeps one row per key and event time, the one created last: so readers see
    one. Where the encoder answers bit for bit the same, both rows have the same id, which hashes just that.

    Safe to share between threads: a worker looks keys up while it writes others.

    Args:
        store: the feature store; its registry cache is refreshed when it does not know a view yet.
        rows: tells what the same store has online.
    """

    def __init__(self, store: FeatureStore, rows: ArchivedKeys) -> None:
        self._store = store
        self._rows = rows
        self._views: dict[EncoderSpec, FeatureView] = {}
        self._reading = threading.Lock()  # Feast's cache of views may mix two registries where two threads read it

    def archived(self, spec: EncoderSpec, keys: Sequence[str]) -> set[str]:
        with _translated("the online store"):
            found = self._rows.has(spec, keys)
        return {key for key, is_there in zip(keys, found, strict=True) if is_there}

    def append_history(self, spec: EncoderSpec, batch: EmbeddedBatch) -> None:
        with _translated("history"):
            view, provider = self._view(spec), self._store._get_provider()
            provider.offline_write_batch(self._store.config, view, table(spec, batch), None)

    def write_online(self, spec: EncoderSpec, batch: EmbeddedBatch) -> None:
        with _translated("the online store"):
            view, provider = self._view(spec), self._store._get_provider()
            provider.online_write_batch(self._store.config, view, rows(spec, batch), None)

    def _view(self, spec: EncoderSpec) -> FeatureView:
        with self._reading:
            view = self._views.get(spec)
            if view is None:
                # The directory may have read a newer registry than the one that the store holds in its cache.
                self._store.refresh_registry()
                view = self._store.get_feature_view(spec.view)
                if EncoderSpec.from_tags(view.tags) != spec:
                    raise ArchiveUnavailable(f"{spec.view} has changed in the registry")
                self._views[spec] = view
            return view


def rows(spec: EncoderSpec, batch: EmbeddedBatch) -> MatrixRows:
    """The batch as online stores take it."""
    return MatrixRows(
        join_key=spec.join_key,
        keys=batch.keys,
        feature=EMBEDDING,
        vectors=batch.vectors,
        others={
            EMBEDDING_ID: [Value(int64_val=each) for each in batch.embedding_id],
            CONTENT_HASH: [Value(string_val=each) for each in batch.content_hash],
        },
        event_time=batch.event_time,
        created_time=np.full(len(batch), batch.created_at, dtype=np.int64),
    )


def table(spec: EncoderSpec, batch: EmbeddedBatch) -> pa.Table:
    """The batch with the columns of its feature view, as offline stores take it."""
    count, dim = batch.vectors.shape
    offsets = np.arange(0, (count + 1) * dim, dim, dtype=np.int32)
    utc = pa.timestamp("us", tz="UTC")
    return pa.table(
        {
            spec.join_key: pa.array(batch.keys, pa.string()),
            EMBEDDING: pa.ListArray.from_arrays(offsets, np.ascontiguousarray(batch.vectors).reshape(-1)),
            EMBEDDING_ID: pa.array(batch.embedding_id, pa.int64()),
            CONTENT_HASH: pa.array(batch.content_hash, pa.string()),
            EVENT_TIME: pa.array(batch.event_time).cast(utc),
            CREATED_TIME: pa.array(np.full(count, batch.created_at, dtype=np.int64)).cast(utc),
        }
    )


@contextmanager
def _translated(part: str) -> Iterator[None]:
    try:
        yield
    except StoreUnavailable as error:
        raise ArchiveUnavailable(str(error)) from error
    except (NoHostAvailable, DriverException, ConnectionException, OSError) as error:
        raise ArchiveUnavailable(f"{part} cannot be used: {error!r}") from error
    except DecodeError as error:
        # Feast rewrites the registry's file in place: half of it may be seen.
        raise ArchiveUnavailable(f"the registry cannot be read: {error}") from error
    except FeastObjectNotFoundException as error:
        raise ArchiveUnavailable(f"the registry does not hold the view (any more): {error}") from error


@dataclass(frozen=True, slots=True)
class MemoryArchive:
    """An archive in memory: for tests without a server, and to see what a worker would write."""

    history: list[pa.Table] = field(default_factory=list)
    rows: dict[tuple[str, str], tuple[int, NDArray[np.float32]]] = field(default_factory=dict)
    """(view, key) → event time in µs, vector (dim,): the last event, as in the online store."""

    def archived(self, spec: EncoderSpec, keys: Sequence[str]) -> set[str]:
        return {key for key in keys if (spec.view, key) in self.rows}

    def append_history(self, spec: EncoderSpec, batch: EmbeddedBatch) -> None:
        named = pa.array([spec.view] * len(batch))
        self.history.append(table(spec, batch).append_column("view", named))

    def write_online(self, spec: EncoderSpec, batch: EmbeddedBatch) -> None:
        for key, time, vector in zip(batch.keys, batch.event_time, batch.vectors, strict=True):
            row = self.rows.get((spec.view, key))
            if row is None or row[0] <= time:
                self.rows[spec.view, key] = (int(time), vector)
