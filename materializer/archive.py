"""Where embeddings are archived: history, then online, both through Feast's own push."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pandas as pd
from cassandra import DriverException
from cassandra.cluster import NoHostAvailable
from cassandra.connection import ConnectionException
from feast import FeatureStore
from feast.data_source import PushMode
from feast.errors import FeastObjectNotFoundException, PushSourceNotFoundException
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from encoders.spec import EncoderSpec
from feature_repo.embeddings import embedding_id
from feature_repo.offline_store import ensure_readable
from feature_repo.online_rows import OnlineRows
from feature_repo.session import StoreUnavailable
from feature_repo.views import CONTENT_HASH, CREATED_TIME, EMBEDDING, EMBEDDING_ID, EVENT_TIME, push_source_name


class ArchiveUnavailable(Exception):
    """The archive did not take or give what it was asked for, and may later; the message says which part and why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddedBatch:
    """N new embeddings of one view, of distinct canonical keys."""

    keys: tuple[str, ...]
    vectors: NDArray[np.float32]  # (N, dim)
    event_time: NDArray[np.int64]  # (N,) microseconds since 1970
    content_hash: tuple[str, ...]  # hex digits; empty where there is none
    created_at: int  # microseconds since 1970

    def __len__(self) -> int:
        return len(self.keys)


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


class FeastArchive:
    """The stores of a feature store, written with `FeatureStore.push`.

    A worker that dies between history and online leaves rows in history that no look-up answers yet; the next worker
    embeds the keys again and appends them again, with the same event time (it travels in the request) and a later
    created time. Feast's point-in-time join keeps one row per key and event time, the one created last: so readers see
    one. Where the encoder answers bit for bit the same, both rows have the same id, which hashes just that.

    Args:
        store: the feature store; its registry cache is refreshed when it does not know a view yet.
        rows: reads the same store's online rows.
    """

    def __init__(self, store: FeatureStore, rows: OnlineRows) -> None:
        self._store = store
        self._rows = rows

    def archived(self, spec: EncoderSpec, keys: Sequence[str]) -> set[str]:
        with _translated("the online store"):
            found = self._rows.read(spec, keys).found
        return {key for key, is_there in zip(keys, found, strict=True) if is_there}

    def append_history(self, spec: EncoderSpec, batch: EmbeddedBatch) -> None:
        with _translated("history"):
            self._know(spec)
            # Feast reads the columns of what is there before it appends.
            ensure_readable(self._store.get_feature_view(spec.view, allow_registry_cache=True))
            self._store.push(push_source_name(spec.view), frame(spec, batch), to=PushMode.OFFLINE)

    def write_online(self, spec: EncoderSpec, batch: EmbeddedBatch) -> None:
        with _translated("the online store"):
            self._know(spec)
            self._store.push(push_source_name(spec.view), frame(spec, batch), to=PushMode.ONLINE)

    def _know(self, spec: EncoderSpec) -> None:
        # The directory may have read a newer registry than the one that the store holds in its cache.
        try:
            view = self._store.get_feature_view(spec.view, allow_registry_cache=True)
        except FeastObjectNotFoundException:
            view = None
        if view is None or EncoderSpec.from_tags(view.tags) != spec:
            self._store.refresh_registry()


def frame(spec: EncoderSpec, batch: EmbeddedBatch) -> pd.DataFrame:
    """The batch with the columns of its feature view."""
    event_time = [int(t) for t in batch.event_time]
    return pd.DataFrame(
        {
            spec.join_key: list(batch.keys),
            EMBEDDING: list(batch.vectors),  # a row each, (dim,) float32
            EMBEDDING_ID: np.array(
                [
                    embedding_id(spec.view, key, time, vector)
                    for key, time, vector in zip(batch.keys, event_time, batch.vectors, strict=True)
                ],
                dtype=np.int64,
            ),
            CONTENT_HASH: list(batch.content_hash),
            EVENT_TIME: _utc(batch.event_time),
            CREATED_TIME: _utc(np.full(len(batch), batch.created_at, dtype=np.int64)),
        }
    )


def _utc(micros: NDArray[np.int64]) -> pd.DatetimeIndex:
    # Microseconds, not pandas' nanoseconds: those end in the year 2262.
    return pd.DatetimeIndex(micros.astype("datetime64[us]"), tz="UTC")


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
    except (FeastObjectNotFoundException, PushSourceNotFoundException) as error:
        raise ArchiveUnavailable(f"the registry does not hold the view (any more): {error}") from error


@dataclass(frozen=True, slots=True)
class MemoryArchive:
    """An archive in memory: for tests without a server, and to see what a worker would write."""

    history: list[pd.DataFrame] = field(default_factory=list)
    rows: dict[tuple[str, str], tuple[int, NDArray[np.float32]]] = field(default_factory=dict)
    """(view, key) → event time in µs, vector (dim,): the last event, as in the online store."""

    def archived(self, spec: EncoderSpec, keys: Sequence[str]) -> set[str]:
        return {key for key in keys if (spec.view, key) in self.rows}

    def append_history(self, spec: EncoderSpec, batch: EmbeddedBatch) -> None:
        self.history.append(frame(spec, batch).assign(view=spec.view))

    def write_online(self, spec: EncoderSpec, batch: EmbeddedBatch) -> None:
        for key, time, vector in zip(batch.keys, batch.event_time, batch.vectors, strict=True):
            row = self.rows.get((spec.view, key))
            if row is None or row[0] <= time:
                self.rows[spec.view, key] = (int(time), vector)
