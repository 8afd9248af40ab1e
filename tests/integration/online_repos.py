"""Feature repos whose online store is ours, on the running Cassandra."""

import asyncio
import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from feast import Entity, FeatureStore, FeatureView, Field, FileSource
from feast.data_source import DataSource
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import FloatList, Value
from feast.types import String
from feast.value_type import ValueType

from embark.servers import LocalServers

PLUGIN = "feature_repo.online_store.EmbeddingOnlineStore"
ITEM = Entity(name="item", join_keys=["item"], value_type=ValueType.STRING)


def write_online_repo(
    folder: Path, servers: LocalServers, *, project: str = "", registry: dict[str, Any] | None = None, **settings: Any
) -> Path:
    """A feature repo of a project of its own; `settings` go under `online_store:`."""
    folder.mkdir(parents=True, exist_ok=True)
    online = {
        "type": PLUGIN,
        "hosts": servers.cassandra_hosts,
        "port": servers.cassandra_port,
        "keyspace": servers.keyspace,
        **settings,
    }
    described = {
        "project": project or f"o{uuid.uuid4().hex[:8]}",
        "provider": "local",
        "registry": {"path": str(folder / "registry.db"), **(registry or {})},
        "online_store": online,
        "entity_key_serialization_version": 3,
    }
    (folder / "feature_store.yaml").write_text(json.dumps(described))  # JSON is YAML
    return folder


@contextmanager
def open_store(folder: Path) -> Iterator[FeatureStore]:
    """A store that is closed, which Feast leaves to the end of the process."""
    store = FeatureStore(repo_path=str(folder))
    try:
        yield store
    finally:
        asyncio.run(store._get_provider().online_store.close())


def online(store: FeatureStore) -> Any:
    """The plugin."""
    return store._get_provider().online_store


def item_view(
    name: str,
    *fields: Field,
    ttl: timedelta = timedelta(0),
    tags: dict[str, str] | None = None,
    source: DataSource | None = None,
    key: str = "item",
) -> FeatureView:
    """A view of items, which have strings for keys."""
    entity = Entity(name=key, join_keys=[key], value_type=ValueType.STRING)
    return FeatureView(
        name=name,
        entities=[entity],
        schema=[Field(name=key, dtype=String), *fields],
        source=source or file_source(name),
        ttl=ttl,
        tags=tags,
    )


def file_source(name: str, path: str = "none.parquet") -> FileSource:
    return FileSource(
        name=f"{name}_file", path=path, timestamp_field="event_timestamp", created_timestamp_column="created"
    )


def item(value: str) -> EntityKey:
    return EntityKey(join_keys=["item"], entity_values=[Value(string_val=value)])


def vector(*floats: float) -> Value:
    return Value(float_list_val=FloatList(val=floats))


def read_items(
    store: FeatureStore, view: FeatureView, keys: Sequence[str], features: list[str] | None = None
) -> list[Any]:
    """Values of each item; None where there is no row."""
    return [row for _, row in online(store).online_read(store.config, view, [item(key) for key in keys], features)]
