"""The network that strangers' URLs lead to: which addresses are connected to, and what its failures are called.

The address that is checked is the address that is connected to: a name is resolved once a connection, and a second
answer of its name server (DNS rebinding) is never asked for.
"""

import asyncio
import contextlib
import select
import socket
import ssl
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import httpcore

from encoders.addresses import Network, may_connect
from encoders.encoder import Blocked, FetchError, NotFound, ServerFailed, Timeout

MAX_ADDRESSES = 3  # of one name
RESOLVING_THREADS = 64  # one a download: `getaddrinfo` cannot be cut short, and a slow name server must not hold up all
# Which answers of `getaddrinfo` say that there is no such name; EAI_NODATA is not defined everywhere
NO_SUCH_NAME = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}

Resolve = Callable[[str, int], Sequence[str]]


def system_addresses(host: str, port: int) -> list[str]:
    """The addresses of a name, in the system's order of preference. Blocks.

    Raises:
        OSError, UnicodeError: there are none.
    """
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


@contextlib.contextmanager
def translated(url: str) -> Iterator[None]:
    """Every error of the network as a `FetchError`; one that is no such error is a bug and stays what it is."""
    try:
        yield
    except FetchError:
        raise
    except (TimeoutError, httpcore.TimeoutException) as error:
        raise Timeout(f"no answer in time from {host_of(url)}{because(error)}") from error
    except socket.gaierror as error:
        if error.errno in NO_SUCH_NAME:
            raise NotFound(f"there is no host {host_of(url)!r}") from error
        raise ServerFailed(f"the name {host_of(url)!r} cannot be resolved now{because(error)}") from error
    except UnicodeError as error:
        raise NotFound(f"{host_of(url)!r} is no valid name of a host{because(error)}") from error
    except httpcore.UnsupportedProtocol as error:
        raise Blocked(f"only http and https are allowed{because(error)}") from error
    except (
        httpcore.NetworkError,
        httpcore.ProtocolError,
        httpcore.ProxyError,
        httpcore.ConnectionNotAvailable,
        OSError,
    ) as error:
        raise ServerFailed(f"{host_of(url)} failed: {type(error).__name__}{because(error)}") from error


class Stream(httpcore.AsyncNetworkStream):
    """A connection that quickly tells whether its other end has hung up.

    The pool asks that of all idle connections with each request, and httpcore's own stream takes 0.1 ms to find its
    socket: with 16 connections that was a third of what a download took.
    """

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._socket = stream.get_extra_info("socket")
        self._poll = select.poll()
        self._poll.register(self._socket.fileno(), select.POLLIN)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return await self._stream.read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        return Stream(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        """As of httpcore; `is_readable` between two requests means that the other end has hung up."""
        if info == "is_readable":
            return self._socket.fileno() < 0 or bool(self._poll.poll(0))
        return self._stream.get_extra_info(info)


class PinnedNetwork(httpcore.AsyncNetworkBackend):
    """Connects to addresses that were checked, never to a name."""

    def __init__(self, allowed: Sequence[Network], resolve: Resolve) -> None:
        self._allowed = allowed
        self._resolve = resolve
        self._network = httpcore.AnyIOBackend()
        self._threads = ThreadPoolExecutor(RESOLVING_THREADS, thread_name_prefix="resolve")

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        found = await self._addresses(host, port)
        usable = [address for address in dict.fromkeys(found) if may_connect(address, self._allowed)]
        if not usable:
            raise Blocked(f"{host!r} leads to {', '.join(found) or 'no address'}, which may not be fetched from")
        *others, last = usable[:MAX_ADDRESSES]
        for address in others:
            with contextlib.suppress(httpcore.ConnectError, httpcore.ConnectTimeout):  # the next one may answer
                return Stream(await self._network.connect_tcp(address, port, timeout, local_address, socket_options))
        return Stream(await self._network.connect_tcp(last, port, timeout, local_address, socket_options))

    async def _addresses(self, host: str, port: int) -> Sequence[str]:
        with contextlib.suppress(ValueError):  # an address needs no name server, and so no thread
            return [str(ip_address(host))]
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._resolve, host, port)

    def close(self) -> None:
        """Lets no name be resolved any more; does not wait for those that are being resolved."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def host_of(url: str) -> str:
    """For messages."""
    return urlsplit(url).netloc[:80]


def because(error: Exception) -> str:
    """The end of a message: why, where the error says so."""
    return f": {error}" if str(error) else ""
