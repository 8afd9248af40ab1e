"""Kept connections to web servers, one download at a time each: taken out before they are used."""

import asyncio
import ssl

from encoders.exchange import Answer, Connection, HungUp
from encoders.network import PinnedNetwork
from encoders.target import Origin, Target


class Connections:
    """Opens and keeps connections; belongs to one event loop. How many are open, its user bounds.

    Args:
        network: connects.
        tls: certificates to trust.
        connect_seconds: for an address.
        read_seconds: without a byte.
        max_idle: connections that are kept; the longest unused are closed.
        idle_seconds: for which one is kept.
    """

    def __init__(
        self,
        network: PinnedNetwork,
        tls: ssl.SSLContext,
        *,
        connect_seconds: float,
        read_seconds: float,
        max_idle: int,
        idle_seconds: float,
    ) -> None:
        tls.set_alpn_protocols(["http/1.1"])
        self._network = network
        self._tls = tls
        self._connect_seconds = connect_seconds
        self._read_seconds = read_seconds
        self._max_idle = max_idle
        self._idle_seconds = idle_seconds
        self._idle: dict[Connection, Origin] = {}  # the longest unused first
        self._of: dict[Origin, list[Connection]] = {}  # the same, the last used last

    async def ask(self, target: Target, request: bytes, answer: Answer) -> None:
        """Sends a request, and tells `answer` what comes; a content that is not read to its end costs the connection.

        A server may close a connection that it kept for long just when it is used again. Nothing was answered then, so
        the request is sent once more.

        Raises:
            Blocked, BadAnswer, TimeoutError, OSError, and what `answer` raises.
        """
        origin = target.origin
        while connection := self._taken(origin):
            try:
                return await self._ask(connection, origin, request, answer)
            except HungUp:
                continue
        scheme, host, port = origin
        tls = self._tls if scheme == "https" else None
        connection = await self._network.connect(host, port, tls, self._connect_seconds)
        return await self._ask(connection, origin, request, answer)

    async def _ask(self, connection: Connection, origin: Origin, request: bytes, answer: Answer) -> None:
        try:
            await connection.ask(request, answer, self._read_seconds)
        finally:
            if connection.usable:
                connection.idle_since = self._now()
                self._idle[connection] = origin
                self._of.setdefault(origin, []).append(connection)
                self._close_old()
            else:
                connection.close()

    def close(self) -> None:
        """Closes those that are kept."""
        while self._idle:
            self._forget(next(iter(self._idle))).close()

    def _taken(self, origin: Origin) -> Connection | None:
        while connections := self._of.get(origin):
            connection = self._forget(connections[-1])
            if connection.usable and not self._is_old(connection):
                return connection
            connection.close()
        return None

    def _close_old(self) -> None:
        while self._idle:
            oldest = next(iter(self._idle))
            if len(self._idle) <= self._max_idle and not self._is_old(oldest):
                return
            self._forget(oldest).close()

    def _is_old(self, connection: Connection) -> bool:
        return self._now() - connection.idle_since > self._idle_seconds

    def _forget(self, connection: Connection) -> Connection:
        origin = self._idle.pop(connection)
        self._of[origin].remove(connection)
        if not self._of[origin]:
            del self._of[origin]
        return connection

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
