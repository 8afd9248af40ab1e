"""Tables of feature views that stand in Cassandra, against what is declared: what `embark tables` shows."""

from dataclasses import dataclass
from typing import Any

from feast import FeatureStore

from feature_repo.online.schema import declared_views, drop
from feature_repo.online.table import StoredTable, stored_tables, table_name
from feature_repo.session import connect, store_errors


@dataclass(frozen=True, slots=True)
class TableState:
    """A table of this project and whether anything declared uses it.

    Attributes:
        state: `used`; `old version`, of a view that is declared; `orphaned`, of one that no longer is.
    """

    table: StoredTable
    state: str


def project_tables(store: FeatureStore) -> list[TableState]:
    """The project's tables, by view and version.

    Raises:
        StoreUnavailable: Cassandra does not answer.
    """
    views = declared_views(store.registry.proto())
    declared = {view.name for view in views}
    versioned = store.config.registry.enable_online_feature_view_versioning
    used = {
        table_name(store.project, view.name, (getattr(view, "current_version_number", 0) or 0) if versioned else 0)
        for view in views
    }
    session = connect(store)
    with store_errors("tables"):
        tables = [t for t in stored_tables(session, store.config.online_store.keyspace) if t.project == store.project]
    return [
        TableState(t, "used" if t.name in used else "old version" if t.view in declared else "orphaned") for t in tables
    ]


def drop_tables(store: FeatureStore, tables: list[StoredTable]) -> None:
    """Drops tables, with their rows.

    Raises:
        StoreUnavailable: Cassandra does not answer; some may be gone.
    """
    session: Any = connect(store)
    with store_errors("tables"):
        drop(session, tables)
