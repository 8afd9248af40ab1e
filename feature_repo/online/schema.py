"""Tables that follow what is declared: created, extended, and dropped only where that is asked for."""

from collections.abc import Iterable, Sequence
from typing import Any

from feast import FeatureView, OnDemandFeatureView, RepoConfig
from feast.protos.feast.core.Registry_pb2 import Registry
from feast.stream_feature_view import StreamFeatureView

from feature_repo.online.cluster import SCHEMA_SECONDS, create_keyspace
from feature_repo.online.config import OnlineSettings
from feature_repo.online.table import OnlineTable, StoredTable, stored_tables

ROUNDS = 5  # of bringing the schema up to date beside others who do the same


def missing(session: Any, config: OnlineSettings, tables: Sequence[OnlineTable]) -> list[str]:
    """The statements by which Cassandra's schema comes to hold `tables`."""
    there, indexed = _columns(session, config.keyspace), _indexes(session, config.keyspace)
    statements: list[str] = []
    for table in tables:
        if table.name not in there:
            statements.append(table.create())
        else:
            statements += table.missing_columns(there[table.name])
        statements += table.index_changes(indexed.get(table.name, ()), enabled=config.vector_enabled)
    return statements


def apply(session: Any, config: OnlineSettings, tables: Sequence[OnlineTable]) -> None:
    """Creates the keyspace (where `replication` is set), the tables and the columns that are missing.

    Raises:
        StoreMisconfigured: there is no keyspace, and no setting that says how to create it.
    """
    create_keyspace(session, config)
    # Again where another `feast apply` came first: IF NOT EXISTS leaves its table, which may have other columns.
    for _ in range(ROUNDS):
        statements = missing(session, config, tables)
        for statement in statements:
            session.execute(statement, timeout=SCHEMA_SECONDS)
        if not statements:
            break


def tables_of(session: Any, config: RepoConfig, views: Iterable[Any]) -> list[StoredTable]:
    """The tables that stand for these views, every version of them."""
    names = {view.name for view in views}
    if not names:
        return []
    return [
        table
        for table in stored_tables(session, config.online_store.keyspace)
        if table.project == config.project and table.view in names
    ]


def drop(session: Any, tables: Iterable[StoredTable]) -> None:
    """Drops tables, with their rows."""
    for table in tables:
        session.execute(table.drop(), timeout=SCHEMA_SECONDS)


def declared_views(registry: Registry) -> list[Any]:
    """The views of a registry that have rows online."""
    views: list[Any] = [FeatureView.from_proto(proto) for proto in registry.feature_views]
    views += [StreamFeatureView.from_proto(proto) for proto in registry.stream_feature_views]
    views += [
        view
        for view in map(OnDemandFeatureView.from_proto, registry.on_demand_feature_views)
        if view.write_to_online_store
    ]
    return [view for view in views if getattr(view, "online", True)]


def _columns(session: Any, keyspace: str) -> dict[str, set[str]]:
    """Table → its columns."""
    columns: dict[str, set[str]] = {}
    rows = session.execute(
        "SELECT table_name, column_name FROM system_schema.columns WHERE keyspace_name = %s", (keyspace,)
    )
    for table, column in rows:
        columns.setdefault(table, set()).add(column)
    return columns


def _indexes(session: Any, keyspace: str) -> dict[str, set[str]]:
    """Table → the names of its indexes."""
    indexes: dict[str, set[str]] = {}
    rows = session.execute(
        "SELECT table_name, index_name FROM system_schema.indexes WHERE keyspace_name = %s", (keyspace,)
    )
    for table, index in rows:
        indexes.setdefault(table, set()).add(index)
    return indexes
