"""What the benchmarks of the online store share: Feast's stock store, ours and the plain driver on one real Cassandra.

Each has a keyspace of its own, and the same rows: an item's embedding and the embedding's id.
"""

import gc
import json
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile
from cassandra.io.libevreactor import LibevConnection
from cassandra.policies import RoundRobinPolicy
from cassandra.query import tuple_factory
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, PushSource
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Array, Float32, Int64, String
from feast.value_type import ValueType
from numpy.typing import NDArray

from benchmarks.turns import WrongAnswer as WrongAnswer
from benchmarks.turns import options as options
from benchmarks.turns import publish as publish
from benchmarks.turns import take_turns as take_turns
from embark.servers import LocalServers, free_port
from feature_repo.online.columns import Vectors
from feature_repo.online.rows import RowToWrite
from feature_repo.online.statements import RawProtocolHandler

ITEM = Entity(name="item", join_keys=["item"], value_type=ValueType.STRING)
STOCK, OURS, DRIVER = "stock", "ours", "driver"  # keyspaces
REQUEST_SECONDS = 60.0  # of stock and driver: a busy machine is slow, and no failure
FLUSH_MS = 500


@dataclass(frozen=True, slots=True)
class Embedded:
    """Items with their embeddings: `keys[i]` has `vectors[i]`."""

    keys: Sequence[str]
    vectors: NDArray[np.float32]  # (N, dim)

    @classmethod
    def seeded(cls, name: str, count: int, dim: int) -> "Embedded":
        keys = [f"https://example.com/{name}/{i}.jpg" for i in range(count)]
        draw = np.random.default_rng(sum(name.encode()))
        return cls(keys, draw.standard_normal((count, dim), dtype=np.float32))

    @property
    def dim(self) -> int:
        return int(self.vectors.shape[1])

    def rows(self) -> list[RowToWrite]:
        """As Feast's online stores take them."""
        now, vectors = datetime.now(UTC), Vectors(self.dim)
        return [
            (
                EntityKey(join_keys=["item"], entity_values=[Value(string_val=key)]),
                {"embedding": vectors.value(vector), "embedding_id": Value(int64_val=i)},
                now,
                now,
            )
            for i, (key, vector) in enumerate(zip(self.keys, self.vectors, strict=True))
        ]


@dataclass(frozen=True, slots=True)
class OnlineCluster:
    """A Cassandra with an applied feature store of each kind, and nothing in them."""

    servers: LocalServers
    stock: FeatureStore
    ours: FeatureStore

    @contextmanager
    def driver(self) -> Iterator[Any]:
        """A session of the plain driver, answering raw statements raw, as fast as one was found to be.

        That is: no Nagle's algorithm, which by default holds a query back until the one before it was acknowledged;
        256 KiB to a read of the socket, of which the driver makes 4 KiB; and protocol version 4, since 5 adds
        checksums that are computed in Python. All are choices that the driver's own settings leave to its user.
        """
        profile = ExecutionProfile(
            load_balancing_policy=RoundRobinPolicy(), request_timeout=REQUEST_SECONDS, row_factory=tuple_factory
        )
        cluster = Cluster(
            self.servers.cassandra_hosts,
            port=self.servers.cassandra_port,
            protocol_version=4,
            compression=False,
            sockopts=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
            connection_class=_WideConnection,
            execution_profiles={EXEC_PROFILE_DEFAULT: profile},
        )
        try:
            session = cluster.connect()
            session.client_protocol_handler = RawProtocolHandler
            session.execute(
                f"CREATE KEYSPACE IF NOT EXISTS {DRIVER} WITH replication ="
                " {'class': 'NetworkTopologyStrategy', 'datacenter1': 1}"
            )
            yield session
        finally:
            cluster.shutdown()

    def put_at_rest(self, session: Any) -> None:
        """Has Cassandra write all tables to disk, so that no store reads from memory what another reads from disk.

        Nothing in CQL flushes a table, but one can be told to flush itself after a while.
        """
        tables = session.execute("SELECT keyspace_name, table_name FROM system_schema.tables").current_rows
        tables = [(keyspace, table) for keyspace, table in tables if keyspace in (STOCK, OURS, DRIVER)]
        data = self.servers.state / "cassandra-1" / "data"
        _alter(session, tables, FLUSH_MS)
        for keyspace, table in tables:
            while not list(data.glob(f"{keyspace}/{table}-*/*-Statistics.db")):  # the last part of a table on disk
                time.sleep(0.1)
        time.sleep(2 * FLUSH_MS / 1000)  # some were there in part
        _alter(session, tables, 0)


class _WideConnection(LibevConnection):  # type: ignore[misc]
    in_buffer_size = 256 * 1024
    out_buffer_size = 64 * 1024


def _alter(session: Any, tables: Sequence[tuple[str, str]], flush_ms: int) -> None:
    for keyspace, table in tables:
        session.execute(f'ALTER TABLE {keyspace}."{table}" WITH memtable_flush_period_in_ms = {flush_ms}')


def view(dim: int) -> FeatureView:
    """Items' embeddings of `dim` floats, pushed through `<name>_push`."""
    name = f"embedding_{dim}"
    never = FileSource(name=f"{name}_history", path="none.parquet", timestamp_field="event_timestamp")
    return FeatureView(
        name=name,
        entities=[ITEM],
        schema=[
            Field(name="item", dtype=String),
            Field(name="embedding", dtype=Array(Float32), vector_length=dim),
            Field(name="embedding_id", dtype=Int64),
        ],
        source=PushSource(name=f"{name}_push", batch_source=never),
        ttl=timedelta(0),
    )


@contextmanager
def running(dims: Sequence[int]) -> Iterator[OnlineCluster]:
    """A Cassandra of its own with both feature stores on it, each with a view of every dim; gone on leaving."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = LocalServers(
            state=folder / "servers", kafka_port=free_port(), cassandra_port=free_port(), keyspace=STOCK
        )
        stack.callback(servers.down)
        servers.up()
        stores = {
            STOCK: {
                "type": "cassandra",
                "protocol_version": 5,
                # Feast reads the time-out only where these are given; both are the driver's own choice besides.
                "request_timeout": REQUEST_SECONDS,
                "load_balancing": {
                    "load_balancing_policy": "TokenAwarePolicy(DCAwareRoundRobinPolicy)",
                    "local_dc": "datacenter1",
                },
            },
            OURS: {
                "type": "feature_repo.online_store.EmbeddingOnlineStore",
                "replication": {"datacenter1": 1},
                "request_timeout": REQUEST_SECONDS,
            },
        }
        opened = {}
        for name, settings in stores.items():
            store = opened[name] = _store(folder / name, servers, name, settings)
            stack.callback(_disconnect, store)
            store.apply([ITEM, *map(view, dims)])
        # A full collection looks at the 300,000 objects that imports made, for 0.2 s, in whichever way runs just then.
        # Frozen, they are left alone; what the ways leave behind is collected as ever.
        gc.collect()
        gc.freeze()
        yield OnlineCluster(servers, opened[STOCK], opened[OURS])


def _disconnect(store: FeatureStore) -> None:
    cluster = store._get_provider().online_store._cluster  # Feast's own store has no way to close it
    if cluster is not None:
        cluster.shutdown()


def _store(folder: Path, servers: LocalServers, name: str, settings: Mapping[str, Any]) -> FeatureStore:
    folder.mkdir()
    described = {
        "project": name,
        "provider": "local" if name == STOCK else "feature_repo.provider.EmbeddingProvider",
        "registry": {"path": str(folder / "registry.db"), "cache_ttl_seconds": 3600},  # no round is to refresh it
        "online_store": {
            "hosts": servers.cassandra_hosts,
            "port": servers.cassandra_port,
            "keyspace": name,
            **settings,
        },
        "offline_store": {
            "type": "duckdb" if name == STOCK else "feature_repo.offline_store.EmbeddingOfflineStore",
        },
        "entity_key_serialization_version": 3,
    }
    (folder / "feature_store.yaml").write_text(json.dumps(described))  # JSON is YAML
    return FeatureStore(repo_path=str(folder))
