"""Feast's online store on Cassandra, at the speed of the driver: any feature view, embeddings above all.

    online_store:
      type: feature_repo.online_store.EmbeddingOnlineStore
      hosts: [127.0.0.1]
      keyspace: embark

How rows are kept, and why the last event wins, is told in `feature_repo.online.table`; every setting in
`docs/online-store.md`.
"""

import asyncio
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from datetime import datetime
from typing import Any, Literal

from feast import Entity, FeatureView, RepoConfig, utils
from feast.infra.infra_object import InfraObject
from feast.infra.online_stores.cassandra_online_store.cassandra_online_store import CassandraOnlineStore
from feast.infra.supported_async_methods import SupportedAsyncMethods
from feast.protos.feast.core.Registry_pb2 import Registry
from feast.protos.feast.serving.ServingService_pb2 import GetOnlineFeaturesResponse
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from pydantic import StrictStr

from feature_repo.embeddings import Embeddings, RowVersion
from feature_repo.online import answers, reads, schema, search, writes
from feature_repo.online.asked import Search, vector_field
from feature_repo.online.cluster import Connection, connect_to
from feature_repo.online.config import OnlineSettings
from feature_repo.online.encoding import RowEncoder
from feature_repo.online.filters import Filter
from feature_repo.online.response import AskedView
from feature_repo.online.rows import RowToWrite, stamp
from feature_repo.online.statements import RawBound, RawStatement, prepare
from feature_repo.online.views import OnlineView, Views, oldest_visible, text_keys
from feature_repo.online.writes import WriteFailed
from feature_repo.session import store_errors

logger = logging.getLogger(__name__)

# Rows in flight to a vector index, of a process's threads together: a node takes milliseconds for each, and gives up
# after 2 s.
INDEXED_CONCURRENCY = 64

_STORES: weakref.WeakSet["EmbeddingOnlineStore"] = weakref.WeakSet()
_PARENTS: list[Connection | None] = []


def _begin_after_fork() -> None:
    for store in _STORES:
        store._begin_after_fork()


os.register_at_fork(after_in_child=_begin_after_fork)


class EmbeddingOnlineStoreConfig(OnlineSettings):
    """The settings, here because Feast looks for them beside the store."""

    type: Literal["feature_repo.online_store.EmbeddingOnlineStore"] | StrictStr = (
        "feature_repo.online_store.EmbeddingOnlineStore"
    )


class EmbeddingOnlineStore(CassandraOnlineStore):  # type: ignore[misc]
    """The store. Threads and event loops may share one; after a fork each process gets a session of its own.

    Every method raises StoreUnavailable where Cassandra does not answer (never a missing value instead), NotApplied
    where it has no such table or column, and StoreMisconfigured where the settings contradict each other.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # taken to open a session or prepare a statement, never to use one
        self._indexing = threading.Lock()  # taken to write to a table with a vector index
        self._connection: Connection | None = None
        self._statements: dict[str, RawStatement] = {}
        self._views = Views()
        _STORES.add(self)

    @property
    def async_supported(self) -> SupportedAsyncMethods:
        return SupportedAsyncMethods(read=True, write=True)

    def _is_versioned_read_supported(self) -> bool:
        return True

    # Reading

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[tuple[datetime | None, dict[str, Value] | None]]:
        """Event time and values of each key, in order; (None, None) where there is no row, or none within the ttl."""
        view = self._view(config, table)
        features = _features(view, requested_features)
        keys = view.find(entity_keys)
        with store_errors(table.name):
            statements = self._reads(config, view, view.table.select(features), keys)
            (rows,) = reads.read(self._get_session(config), [statements], config.online_store.read_concurrency)
        return answers.feast_rows(view.table, features, keys, rows, _oldest(config, table))

    async def online_read_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[tuple[datetime | None, dict[str, Value] | None]]:
        """As `online_read`."""
        view = self._view(config, table)
        features = _features(view, requested_features)
        keys = view.find(entity_keys)
        with store_errors(table.name):
            await self._prepare(config, view.table.select(features))
            statements = self._reads(config, view, view.table.select(features), keys)
            (rows,) = await reads.read_async(
                self._get_session(config), [statements], config.online_store.read_concurrency
            )
        return answers.feast_rows(view.table, features, keys, rows, _oldest(config, table))

    def read_matrix(self, config: RepoConfig, table: FeatureView, keys: Sequence[str]) -> Embeddings:
        """The embeddings of `keys` as one matrix, without protobuf: HIT, or OOV where there is none.

        Args:
            table: a view with one string join key and one feature of fixed length (`vector_length`).
            keys: values of the join key, canonical where the view is an encoder's; repetitions are read once.

        Raises:
            ValueError: the view is not of that kind.
        """
        view = self._view(config, table)
        shape = answers.MatrixShape.of(table, view.table)
        stored = text_keys(shape.join_key, keys)
        with store_errors(table.name):
            statements = self._reads(config, view, view.table.select(shape.features), stored)
            (rows,) = reads.read(self._get_session(config), [statements], config.online_store.read_concurrency)
        return answers.embeddings(view.name, shape, keys, stored, rows, _oldest(config, table))

    def read_versions(self, config: RepoConfig, table: FeatureView, keys: Sequence[str]) -> dict[str, RowVersion]:
        """Which event of each of `keys` is online, deletions too; keys that have none are left out. Reads no vectors.

        Raises:
            ValueError: the view is not of the kind that `read_matrix` takes, or keeps no embedding ids.
        """
        view = self._view(config, table)
        shape = answers.MatrixShape.of(table, view.table)
        if len(shape.features) == 1:
            raise ValueError(f"feature view {table.name!r} keeps no embedding ids")
        stored = text_keys(shape.join_key, keys)
        with store_errors(table.name):
            select = view.table.select_version(shape.features[1])  # the id is written with the vector
            statements = self._reads(config, view, select, stored)
            (rows,) = reads.read(self._get_session(config), [statements], config.online_store.read_concurrency)
        return answers.versions(keys, stored, rows, _oldest(config, table))

    # `get_online_features`: what Feast calls between preparing a request and its on-demand features. Both forms are
    # Feast's own seam for stores that can read several views at once; the rest of its contract is untouched.

    def _read_features_per_fv(
        self,
        config: RepoConfig,
        grouped_refs: list[tuple[Any, list[str]]],
        join_key_values: dict[str, list[Value]],
        entity_name_to_join_key_map: dict[str, str],
        online_features_response: GetOnlineFeaturesResponse,
        full_feature_names: bool,
        include_feature_view_version_metadata: bool,
    ) -> None:
        asked = [
            self._asked(config, view, features, join_key_values, entity_name_to_join_key_map)
            for view, features in grouped_refs
        ]
        with store_errors(", ".join(each.view.name for each in asked)):
            statements = [
                self._reads(config, each.online, each.online.table.select(each.known), each.keys) for each in asked
            ]
            rows = reads.read(self._get_session(config), statements, config.online_store.read_concurrency)
        for each, found in zip(asked, rows, strict=True):
            each.answer(online_features_response, found, full_feature_names, include_feature_view_version_metadata)

    async def _read_features_per_fv_async(
        self,
        config: RepoConfig,
        grouped_refs: list[tuple[Any, list[str]]],
        join_key_values: dict[str, list[Value]],
        entity_name_to_join_key_map: dict[str, str],
        online_features_response: GetOnlineFeaturesResponse,
        full_feature_names: bool,
        include_feature_view_version_metadata: bool,
    ) -> None:
        asked = [
            self._asked(config, view, features, join_key_values, entity_name_to_join_key_map)
            for view, features in grouped_refs
        ]
        with store_errors(", ".join(each.view.name for each in asked)):
            for each in asked:
                await self._prepare(config, each.online.table.select(each.known))
            statements = [
                self._reads(config, each.online, each.online.table.select(each.known), each.keys) for each in asked
            ]
            rows = await reads.read_async(self._get_session(config), statements, config.online_store.read_concurrency)
        for each, found in zip(asked, rows, strict=True):
            each.answer(online_features_response, found, full_feature_names, include_feature_view_version_metadata)

    def _asked(
        self,
        config: RepoConfig,
        view: Any,
        features: list[str],
        join_key_values: dict[str, list[Value]],
        join_keys: dict[str, str],
    ) -> AskedView:
        rows, positions, count = utils._get_unique_entities(view, join_key_values, join_keys)
        online = self._view(config, view)
        return AskedView(view, online, features, online.find_rows(rows), positions, count, _oldest(config, view))

    # Searching

    def retrieve_online_documents_v2(
        self,
        config: RepoConfig,
        table: FeatureView,
        requested_features: list[str],
        embedding: list[float] | None,
        top_k: int,
        distance_metric: str | None = None,
        query_string: str | None = None,
        filters: Filter | None = None,
        include_feature_view_version_metadata: bool = False,
    ) -> list[search.Document]:
        """The rows nearest to a vector, those with certain words, or both: best first, at most `top_k`.

        Raises:
            ValueError: what is asked cannot be; the message says what can.
            ScanLimitReached: no index can answer, and there are too many rows to read them all.
        """
        asked = Search.of(
            table,
            self._view(config, table).table,
            requested_features,
            embedding,
            top_k,
            distance_metric,
            query_string,
            filters,
            oldest=_oldest(config, table),
        )
        return search.documents(asked, self._find(config, table, asked))

    def retrieve_online_documents(
        self,
        config: RepoConfig,
        table: FeatureView,
        requested_features: list[str] | None,
        embedding: list[float],
        top_k: int,
        distance_metric: str | None = None,
    ) -> list[tuple[datetime | None, EntityKey, Value, Value, Value]]:
        """Feast's older form: event time, key, the first feature asked for, the vector and the distance of each."""
        view = self._view(config, table)
        known = _features(view, requested_features or [])[:1]
        features, oldest = [*known, vector_field(table).name], _oldest(config, table)
        asked = Search.of(table, view.table, features, embedding, top_k, distance_metric, oldest=oldest)
        found = search.documents(asked, self._find(config, table, asked))
        return [
            (event_time, key, values.get(asked.features[0], Value()), values[asked.vector], values["distance"])
            for event_time, key, values in found
        ]

    def _find(self, config: RepoConfig, table: FeatureView, asked: Search) -> list[search.Found]:
        with store_errors(table.name):
            session = self._get_session(config)
            return search.find(asked, session, lambda cql: self._statement(config, cql), config.online_store)

    # Writing

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: Sequence[RowToWrite],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Writes rows: acknowledged at the write consistency when this returns, in any order, as often as one likes.

        Raises:
            ValueRefused: a row that the table cannot hold, such as a vector of another length; nothing was written.
            WriteFailed: some rows were not acknowledged; it names their keys.
        """
        with store_errors(table.name):
            statements, session = self._writes(config, table, data), self._get_session(config)
            concurrency = self._write_concurrency(config, table)
            with self._indexing if self._has_vector_index(config, table) else nullcontext():
                failures = writes.write(session, statements, concurrency, progress)
        if failures:
            raise WriteFailed(table.name, data, failures) from next(iter(failures.values()))

    async def online_write_batch_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: Sequence[RowToWrite],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """As `online_write_batch`."""
        with store_errors(table.name):
            view = self._view(config, table)
            await self._prepare(config, view.table.insert(list(view.table.columns)))
            statements = self._writes(config, table, data)
            failures = await writes.write_async(
                self._get_session(config), statements, self._write_concurrency(config, table), progress
            )
        if failures:
            raise WriteFailed(table.name, data, failures) from next(iter(failures.values()))

    def online_delete(self, config: RepoConfig, table: FeatureView, rows: Sequence[tuple[EntityKey, datetime]]) -> None:
        """Removes the rows of keys: each as of the event time given with it, so that a later event stays.

        Raises:
            WriteFailed: some were not acknowledged; it names their keys.
        """
        view = self._view(config, table)
        with store_errors(table.name):
            statement = self._statement(config, view.table.delete())
            bound = []
            for key, event_time in rows:
                partition = view.serialize(key)
                moment = stamp(event_time)
                bound.append(statement.bind_raw([moment, partition, moment], partition))
            failures = writes.write(self._get_session(config), bound, config.online_store.write_concurrency, None)
        if failures:
            given: list[RowToWrite] = [(key, {}, event_time, None) for key, event_time in rows]
            raise WriteFailed(table.name, given, failures) from next(iter(failures.values()))

    # Schema

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Entity],
        entities_to_keep: Sequence[Entity],
        partial: bool,
    ) -> None:
        """Creates missing tables and columns. What is no longer declared stays, unless `drop_removed_tables`."""
        with store_errors("feast apply"):
            session = self._get_session(config)
            schema.apply(session, config.online_store, [self._view(config, view).table for view in tables_to_keep])
            removed = schema.tables_of(session, config, tables_to_delete)
            if config.online_store.drop_removed_tables:
                schema.drop(session, removed)
            elif removed:
                logger.warning(
                    "Kept in Cassandra, though no longer declared: %s. `embark tables` lists and drops such tables.",
                    ", ".join(table.view for table in removed),
                )

    def plan(self, config: RepoConfig, desired_registry_proto: Registry) -> list[InfraObject]:
        """Prints what `feast apply` would execute: Feast's own report knows only the tables of its own stores."""
        with store_errors("feast plan"):
            tables = [self._view(config, view).table for view in schema.declared_views(desired_registry_proto)]
            for statement in schema.missing(self._get_session(config), config.online_store, tables):
                print(f"embark: `feast apply` would execute: {statement}")
        return []

    def teardown(self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Entity]) -> None:
        """Drops the tables of these views, every version of them."""
        with store_errors("feast teardown"):
            session = self._get_session(config)
            schema.drop(session, schema.tables_of(session, config, tables))

    # The session

    async def initialize(self, config: RepoConfig) -> None:
        """Connects, where that has not been done."""
        if self._connection is None:
            await asyncio.to_thread(self._get_session, config)

    async def close(self) -> None:
        """Disconnects; the next use connects again."""
        with self._lock:
            connection, self._connection = self._connection, None
            self._statements = {}
        if connection is not None:
            await asyncio.to_thread(connection.cluster.shutdown)

    def _begin_after_fork(self) -> None:
        # The parent's session is kept and left alone: its threads are not here, and its sockets are not ours to close.
        _PARENTS.append(self._connection)
        # Another thread of the parent may have held them.
        self._lock, self._indexing = threading.Lock(), threading.Lock()
        self._connection = None
        self._statements = {}

    @property
    def _cluster(self) -> Any:
        return None if self._connection is None else self._connection.cluster

    def _get_session(self, config: RepoConfig) -> Any:
        connection = self._connection
        if connection is None:
            with self._lock:
                connection = self._connection
                if connection is None:
                    connection = self._connection = connect_to(config.online_store)
        return connection.session

    def _statement(self, config: RepoConfig, cql: str) -> RawStatement:
        session = self._get_session(config)
        statement = self._statements.get(cql)
        if statement is None:
            with self._lock:
                statement = self._statements.get(cql)
                if statement is None:
                    statement = self._statements[cql] = prepare(session, cql)
        return statement

    async def _prepare(self, config: RepoConfig, cql: str) -> None:
        """Connects and prepares off the event loop, where that has not been done."""
        await self.initialize(config)
        if cql not in self._statements:
            await asyncio.to_thread(self._statement, config, cql)

    def _view(self, config: RepoConfig, view: Any) -> OnlineView:
        return self._views.of(
            config.online_store.keyspace,
            config.project,
            view,
            versioned=config.registry.enable_online_feature_view_versioning,
        )

    def _reads(self, config: RepoConfig, view: OnlineView, select: str, keys: Sequence[bytes | None]) -> list[RawBound]:
        wanted = [key for key in keys if key is not None]
        if not wanted:
            return []
        statement = self._statement(config, select)
        return reads.chunks(
            statement, self._cluster.metadata, view.table.keyspace, wanted, config.online_store.read_chunk_size
        )

    def _writes(self, config: RepoConfig, table: FeatureView, data: Sequence[RowToWrite]) -> Iterable[RawBound]:
        if not data:
            return []
        view = self._view(config, table)
        statement = self._statement(config, view.table.insert(list(view.table.columns)))
        ttl = config.online_store.key_ttl_seconds or 0
        encoder = RowEncoder(table.name, view.table.columns, statement, view.serialize, view.serialize_text, ttl)
        return map(encoder.bind, encoder.check_all(data))  # all are checked before the first leaves

    def _write_concurrency(self, config: RepoConfig, table: FeatureView) -> int:
        most: int = config.online_store.write_concurrency
        return min(most, INDEXED_CONCURRENCY) if self._has_vector_index(config, table) else most

    def _has_vector_index(self, config: RepoConfig, table: FeatureView) -> bool:
        indexes = self._view(config, table).table.indexes if config.online_store.vector_enabled else ()
        return any(index.metric for index in indexes)


def _features(view: OnlineView, requested: list[str] | None) -> list[str]:
    """Those of the requested features that the table has; all of them where none are named."""
    columns = view.table.columns
    return list(columns) if requested is None else [name for name in requested if name in columns]


def _oldest(config: RepoConfig, view: Any) -> int:
    return oldest_visible(view, expire_rows=config.online_store.expire_rows)
