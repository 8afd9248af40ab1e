"""Kept connections to web servers, one download at a time each.

httpcore's own pool gives one idle connection to all requests that wait, of which all but one then come back to ask
again: with eight downloads from a host, nine tries a download. Here a connection is taken out before it is used.
"""

import ssl
from collections.abc import AsyncIterator, MutableMapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpcore

Origin = tuple[bytes, bytes, int]


class Connections:
    """Opens and keeps connections; belongs to one event loop. How many are open, its user bounds.

    Args:
        ssl_context: certificates to trust.
        network_backend: connects.
        max_idle: connections that are kept; the longest unused are closed.
        idle_seconds: for which one is kept.
    """

    def __init__(
        self,
        *,
        ssl_context: ssl.SSLContext,
        network_backend: httpcore.AsyncNetworkBackend,
        max_idle: int,
        idle_seconds: float,
    ) -> None:
        self._ssl_context = ssl_context
        self._network = network_backend
        self._max_idle = max_idle
        self._idle_seconds = idle_seconds
        self._idle: dict[httpcore.AsyncHTTPConnection, Origin] = {}  # the longest unused first
        self._of: dict[Origin, list[httpcore.AsyncHTTPConnection]] = {}  # the same, the last used last

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        url: httpcore.URL,
        *,
        headers: Sequence[tuple[bytes, bytes]],
        extensions: MutableMapping[str, Any],
    ) -> AsyncIterator[httpcore.Response]:
        """The response, whose body may then be read; what is not read to its end costs the connection.

        Raises:
            httpcore's errors.
        """
        origin = url.origin
        key = (origin.scheme, origin.host, origin.port)
        connection = await self._taken(key) or httpcore.AsyncHTTPConnection(
            origin,
            ssl_context=self._ssl_context,
            keepalive_expiry=self._idle_seconds,
            network_backend=self._network,
        )
        try:
            async with connection.stream(method, url, headers=headers, extensions=extensions) as response:
                yield response
        finally:
            if connection.is_idle():
                self._idle[connection] = key
                self._of.setdefault(key, []).append(connection)
                await self._close_old()
            else:
                await connection.aclose()

    async def aclose(self) -> None:
        """Closes those that are kept."""
        while self._idle:
            await self._close(next(iter(self._idle)))

    async def _taken(self, key: Origin) -> httpcore.AsyncHTTPConnection | None:
        while connections := self._of.get(key):
            connection = connections[-1]
            if not connection.has_expired():
                self._forget(connection)
                return connection
            await self._close(connection)
        return None

    async def _close_old(self) -> None:
        while self._idle:
            oldest = next(iter(self._idle))
            if len(self._idle) <= self._max_idle and not oldest.has_expired():
                return
            await self._close(oldest)

    async def _close(self, connection: httpcore.AsyncHTTPConnection) -> None:
        self._forget(connection)
        await connection.aclose()

    def _forget(self, connection: httpcore.AsyncHTTPConnection) -> None:
        key = self._idle.pop(connection)
        self._of[key].remove(connection)
        if not self._of[key]:
            del self._of[key]
