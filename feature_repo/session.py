"""The Cassandra session of a feature store, and what it means when Cassandra does not answer."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cassandra import DriverException
from cassandra.cluster import NoHostAvailable
from cassandra.connection import ConnectionException
from feast import FeatureStore


class StoreUnavailable(Exception):
    """The online store did not answer; the message says which part of it and what to do."""


@contextmanager
def store_errors(part: str) -> Iterator[None]:
    """The one place where the driver's errors become ours."""
    try:
        yield
    except (NoHostAvailable, DriverException, ConnectionException, OSError) as error:
        raise StoreUnavailable(f"{part}: the online store did not answer: {error!r}") from error


def connect(store: FeatureStore) -> Any:
    """The Cassandra session of a feature store's online store, opened if need be.

    Raises:
        StoreUnavailable: it cannot be reached.
    """
    config = store.config.online_store
    try:
        with store_errors("connecting"):
            return store._get_provider().online_store._get_session(store.config)
    except StoreUnavailable as error:
        raise StoreUnavailable(
            f"Cassandra does not answer at {', '.join(config.hosts or [])}:{config.port or 9042}"
            f" (keyspace {config.keyspace!r}): start the servers with `embark up`"
        ) from error
