"""The Cassandra session of a feature store, and what it means when Cassandra does not answer."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cassandra import DriverException, InvalidRequest
from cassandra.cluster import NoHostAvailable
from cassandra.connection import ConnectionBusy, ConnectionException, ProtocolError
from cassandra.protocol import ErrorMessage
from feast import FeatureStore

CONNECT_SECONDS = 3.0
# The driver's errors have no common ancestor.
NOT_ANSWERED = (
    NoHostAvailable,
    DriverException,
    ConnectionException,
    ConnectionBusy,
    ProtocolError,
    ErrorMessage,
    OSError,
)
ATTEMPTS = 3  # the driver gives a busy server 5 s to answer its first question


class StoreUnavailable(Exception):
    """The online store did not answer; the message says which part of it and what to do."""


class NotApplied(StoreUnavailable):
    """The online store has no such table or column (yet): `feast apply` makes it."""


@contextmanager
def store_errors(part: str) -> Iterator[None]:
    """The one place where the driver's errors become ours."""
    try:
        yield
    except InvalidRequest as error:
        raise NotApplied(
            f"{part}: Cassandra refuses the statement; `feast apply` brings its tables up to date: {error}"
        ) from error
    except NOT_ANSWERED as error:
        told = "no node is up" if isinstance(error, NoHostAvailable) and not error.errors else repr(error)
        raise StoreUnavailable(f"{part}: the online store did not answer: {told}") from error


def connect(store: FeatureStore) -> Any:
    """The Cassandra session of a feature store's online store, opened if need be.

    Raises:
        StoreUnavailable: it cannot be reached.
    """
    config = store.config.online_store
    hosts, port = config.hosts or [], config.port or 9042
    try:
        # Asked before the driver is, which tells of a server that is not there in fifty lines.
        if hosts and not any(_listens(host, port) for host in hosts):
            raise StoreUnavailable("nothing listens there")
        return _opened(store)
    except StoreUnavailable as error:
        raise StoreUnavailable(
            f"Cassandra does not answer at {', '.join(hosts)}:{port} (keyspace {config.keyspace!r}): "
            "start the servers with `embark up`"
        ) from error


def _opened(store: FeatureStore) -> Any:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with store_errors("connecting"):
                return store._get_provider().online_store._get_session(store.config)
        except StoreUnavailable:
            if attempt == ATTEMPTS:
                raise
    raise AssertionError("unreachable")


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), CONNECT_SECONDS).close()
    except OSError:
        return False
    return True
