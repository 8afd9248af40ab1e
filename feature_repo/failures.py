"""Marks of keys that are known not to be embeddable, beside the online rows that they must never replace.

One small Cassandra table a project, a row a view and key, each with its own time to live: a mark that has run out is as
if it had never been, and the key is asked for again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

from cassandra.concurrent import execute_concurrent, execute_concurrent_with_args
from feast import FeatureStore

from feature_repo.online.statements import list_of, prepare
from feature_repo.online.table import quoted, table_name
from feature_repo.session import connect, store_errors

MARK_SECONDS = 24 * 3600  # a permanent failure is tried again a day later: pictures get repaired
CONCURRENCY = 64
KEYS_A_QUERY = 50
FAILURES = "\0failures"  # no feature view has such a name: the table is nobody else's
WHY_CHARACTERS = 500  # a reason may quote a stranger's input


class FailureMarks(Protocol):
    """Reads and writes failure marks; every method raises StoreUnavailable where the store does not answer."""

    def mark(self, view: str, failures: Mapping[str, str], seconds: int = MARK_SECONDS) -> None:
        """Marks keys as failed, key → "reason: detail", for `seconds`."""
        ...

    def read(self, view: str, keys: Sequence[str]) -> dict[str, str]:
        """Those of `keys` that are marked, with why."""
        ...

    def clear(self, view: str, keys: Sequence[str]) -> None:
        """Removes marks: the keys are asked for again."""
        ...


class CassandraFailureMarks:
    """Failure marks in the keyspace of the online store.

    Args:
        session: a connected Cassandra session.
        keyspace, project: where the table stands; it is created if missing.

    Raises:
        StoreUnavailable: the table could not be created.
    """

    @classmethod
    def of(cls, store: FeatureStore) -> Self:
        """Those of a feature store, by its own session.

        Raises:
            StoreUnavailable: Cassandra does not answer.
        """
        return cls(connect(store), store.config.online_store.keyspace, store.project)

    def __init__(self, session: Any, keyspace: str, project: str) -> None:
        self._session = session
        table = f"{quoted(keyspace)}.{quoted(table_name(project, FAILURES))}"
        with store_errors("failure marks"):
            session.execute(
                f"CREATE TABLE IF NOT EXISTS {table}"
                " (feature_view text, key text, why text, PRIMARY KEY ((feature_view, key)))"
            )
            self._insert = session.prepare(f"INSERT INTO {table} (feature_view, key, why) VALUES (?, ?, ?) USING TTL ?")  # noqa: S608
            # Raw: the driver makes each key of a list by itself, which took twice the rest of the read.
            self._select = prepare(session, f"SELECT key, why FROM {table} WHERE feature_view = ? AND key IN ?")  # noqa: S608
            self._delete = session.prepare(f"DELETE FROM {table} WHERE feature_view = ? AND key = ?")  # noqa: S608

    def mark(self, view: str, failures: Mapping[str, str], seconds: int = MARK_SECONDS) -> None:
        self._execute(self._insert, [(view, key, why[:WHY_CHARACTERS], seconds) for key, why in failures.items()])

    def read(self, view: str, keys: Sequence[str]) -> dict[str, str]:
        named, stored = view.encode(), [key.encode() for key in keys]
        chunks = (list_of(stored[i : i + KEYS_A_QUERY]) for i in range(0, len(stored), KEYS_A_QUERY))
        asked = [(self._select.bind_raw([named, chunk], None), None) for chunk in chunks]
        if not asked:
            return {}
        with store_errors("failure marks"):
            if len(asked) == 1:  # as of most look-ups: what counts many at a time takes longer than one
                results = [self._session.execute(asked[0][0])]
            else:
                results = [result for _, result in execute_concurrent(self._session, asked, concurrency=CONCURRENCY)]
        return {key.decode(): why.decode() for result in results for key, why in result}

    def clear(self, view: str, keys: Sequence[str]) -> None:
        self._execute(self._delete, [(view, key) for key in keys])

    def _execute(self, statement: Any, rows: list[tuple[Any, ...]]) -> None:
        with store_errors("failure marks"):
            execute_concurrent_with_args(self._session, statement, rows, concurrency=CONCURRENCY)


@dataclass(frozen=True, slots=True)
class MemoryFailureMarks:
    """Failure marks in memory, which never run out: for tests without a server."""

    marks: dict[tuple[str, str], str]

    def mark(self, view: str, failures: Mapping[str, str], seconds: int = MARK_SECONDS) -> None:
        self.marks.update({(view, key): why for key, why in failures.items()})

    def read(self, view: str, keys: Sequence[str]) -> dict[str, str]:
        return {key: self.marks[view, key] for key in keys if (view, key) in self.marks}

    def clear(self, view: str, keys: Sequence[str]) -> None:
        for key in keys:
            self.marks.pop((view, key), None)
