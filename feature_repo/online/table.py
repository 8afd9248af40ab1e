"""The Cassandra table of a feature view: its name, its columns, and how it follows the view.

    entity_key blob      Feast's serialized entity key
    event_time bigint    microseconds since 1970, descending ┐
    created_time bigint  microseconds since 1970, descending ├ the version of the row, newest first
    digest bigint        how many values, and sums of them  ┘
    nulls set<text>      features that were written as null; one that stands in no column was not written at all
    "<feature>__<type>"  the features, see `columns`

Last event wins, for the whole row (decision 4). Each row is written under its version, stamped with its event time, by
one statement that deletes every lesser version with the same stamp: whatever order writes come in, and however often,
one row is left, the greatest. Equal events are told apart by when they were created, and equal creations by a digest,
so that no two writes can ever mix. Nothing is read before it is written. A row without a created time
counts as created when it is written.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from feast.infra.online_stores.helpers import compute_versioned_name

from feature_repo.online.columns import Column, column
from feature_repo.online.indexes import SearchIndex, changes, checked, indexes

LONGEST_NAME = 48  # of a Cassandra table
DIGEST_CHARACTERS = 12
KEY_COLUMNS = ("entity_key", "event_time", "created_time", "digest")


@dataclass(frozen=True, slots=True)
class OnlineTable:
    """The table of one feature view, or of one version of it.

    Attributes:
        keyspace, name: where it stands.
        project, view: whose it is.
        version: of the view, where the registry versions online tables; else 0.
        columns: feature → its column.
        indexes: what a search may use, where the store's `vector_enabled` is on.
    """

    keyspace: str
    name: str
    project: str
    view: str
    version: int
    columns: Mapping[str, Column] = field(hash=False)
    indexes: tuple[SearchIndex, ...] = ()

    @classmethod
    def of(cls, keyspace: str, project: str, view: Any, *, versioned: bool) -> "OnlineTable":
        """The table of a feature view (any kind that has `name` and `features`).

        Raises:
            ValueError: a feature that no column can hold, or an index by an unknown metric.
        """
        version = int(compute_versioned_name(view, versioned).removeprefix(view.name).removeprefix("_v") or 0)
        name = table_name(project, view.name, version)
        # Read back from the registry, a stream feature view lists its join keys among its features.
        join_keys = {each.name for each in getattr(view, "entity_columns", None) or ()}
        features = [each for each in view.features if each.name not in join_keys]
        columns = {each.name: column(each) for each in features}
        found = indexes(name, features, columns)
        for index in found:
            if index.metric is not None:
                columns[index.feature] = checked(columns[index.feature], index.metric)
        return cls(keyspace, name, project, view.name, version, columns, found)

    @property
    def cql(self) -> str:
        """The full name, for statements."""
        return f"{quoted(self.keyspace)}.{quoted(self.name)}"

    def select(self, features: Sequence[str]) -> str:
        """The newest row of each of a list of keys: entity_key, event_time, nulls, then `features` in their order."""
        columns = ", ".join(["entity_key", "event_time", "nulls", *(quoted(self.columns[f].name) for f in features)])
        return f"SELECT {columns} FROM {self.cql} WHERE entity_key IN ? PER PARTITION LIMIT 1"  # noqa: S608

    def select_version(self, feature: str) -> str:
        """The newest row of each of a list of keys: entity_key, event_time, created_time, then `feature`."""
        columns = f"entity_key, event_time, created_time, {quoted(self.columns[feature].name)}"
        return f"SELECT {columns} FROM {self.cql} WHERE entity_key IN ? PER PARTITION LIMIT 1"  # noqa: S608

    def insert(self, features: Sequence[str]) -> str:
        """A row, and the end of its lesser versions. Binds: stamp, key columns, nulls, features, ttl, key columns."""
        columns = ", ".join([*KEY_COLUMNS, "nulls", *(quoted(self.columns[f].name) for f in features)])
        binds = ", ".join("?" * (len(KEY_COLUMNS) + 1 + len(features)))
        older = "entity_key = ? AND (event_time, created_time, digest) < (?, ?, ?)"
        insert = f"INSERT INTO {self.cql} ({columns}) VALUES ({binds}) USING TTL ?"  # noqa: S608
        delete = f"DELETE FROM {self.cql} WHERE {older}"  # noqa: S608
        return f"BEGIN UNLOGGED BATCH USING TIMESTAMP ? {insert}; {delete}; APPLY BATCH"

    def delete(self) -> str:
        """Removes a key's row and every earlier event of it. Binds: stamp (the row's event time), entity_key, stamp."""
        # Not the whole partition: a node on newer sstables does not survive reading that, stamped before 1970.
        return f"DELETE FROM {self.cql} USING TIMESTAMP ? WHERE entity_key = ? AND event_time <= ?"  # noqa: S608

    def create(self) -> str:
        columns = "".join(f", {quoted(each.name)} {each.cql_type}" for each in self.columns.values())
        return (
            f"CREATE TABLE IF NOT EXISTS {self.cql} (entity_key blob, event_time bigint, created_time bigint,"
            f" digest bigint, nulls frozen<set<text>>{columns},"
            " PRIMARY KEY (entity_key, event_time, created_time, digest))"
            " WITH CLUSTERING ORDER BY (event_time DESC, created_time DESC, digest DESC)"
            f" AND comment = {_literal(self.comment())}{self._storage()}"
        )

    def _storage(self) -> str:
        # Floats do not get smaller by compression, and each read would undo it.
        return " AND compression = {'enabled': 'false'}" if any(each.dim for each in self.columns.values()) else ""

    def comment(self) -> str:
        """Whose table it is, for `stored_tables`."""
        return json.dumps({"project": self.project, "feature_view": self.view, "version": self.version})

    def missing_columns(self, existing: Iterable[str]) -> list[str]:
        """Statements that add what a table with the columns `existing` lacks."""
        there = set(existing)
        return [
            f"ALTER TABLE {self.cql} ADD IF NOT EXISTS {quoted(each.name)} {each.cql_type}"
            for each in self.columns.values()
            if each.name not in there
        ]

    def index_changes(self, existing: Collection[str], *, enabled: bool) -> list[str]:
        """Statements that bring a table with the indexes `existing` (names) to its own, or to none."""
        wanted = self.indexes if enabled else ()
        return changes(quoted(self.keyspace), self.name, self.cql, wanted, existing)


@dataclass(frozen=True, slots=True)
class StoredTable:
    """A table that stands in Cassandra, as its comment tells."""

    keyspace: str
    name: str
    project: str
    view: str
    version: int

    def drop(self) -> str:
        return f"DROP TABLE IF EXISTS {quoted(self.keyspace)}.{quoted(self.name)}"


def stored_tables(session: Any, keyspace: str) -> list[StoredTable]:
    """The tables of feature views in a keyspace, whatever their project."""
    rows = session.execute("SELECT table_name, comment FROM system_schema.tables WHERE keyspace_name = %s", (keyspace,))
    tables = []
    for name, comment in rows:
        try:
            told = json.loads(comment)
            tables.append(StoredTable(keyspace, name, told["project"], told["feature_view"], told["version"]))
        except (ValueError, TypeError, KeyError):
            continue  # somebody else's table
    return sorted(tables, key=lambda table: (table.project, table.view, table.version))


def table_name(project: str, view: str, version: int = 0) -> str:
    """A name that Cassandra takes and that nothing else has: readable, then a digest of project, view and version."""
    whose = f"{project}\0{view}\0{version}" if version else f"{project}\0{view}"
    digest = hashlib.blake2b(whose.encode(), digest_size=DIGEST_CHARACTERS // 2).hexdigest()
    readable = re.sub(r"[^a-z0-9]+", "_", f"{project}_{view}".lower()).strip("_") or "view"
    return f"{readable[: LONGEST_NAME - DIGEST_CHARACTERS - 1]}_{digest}"


def quoted(identifier: str) -> str:
    """An identifier in CQL, case kept."""
    return '"' + identifier.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
