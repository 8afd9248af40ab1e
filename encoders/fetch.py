"""Guarded download of strangers' URLs: the boundary to the network.

The address that is checked is the address that is connected to: a name is resolved once a connection, and a second
answer of its name server (DNS rebinding) is never asked for. Proxy variables are ignored: through a proxy, nobody would
know where a name leads.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self
from urllib.parse import quote, urljoin, urlsplit
from weakref import WeakValueDictionary

import httpcore

from encoders.addresses import Network, may_connect
from encoders.connections import Connections
from encoders.encoder import Blocked, FetchError, NotFound, ServerFailed, Timeout, TooLarge
from encoders.keys import MAX_KEY_BYTES

USER_AGENT = b"EmbArk-Retina/0.1"
MAX_BYTES = 20 << 20
SECONDS = 10.0
CONNECT_SECONDS = 4.0  # an address; < SECONDS, so that a name's second address has its turn
MAX_ADDRESSES = 3  # of one name
MAX_REDIRECTS = 5
CONCURRENCY = 64
PER_HOST = 8
RESOLVING_THREADS = 16  # `getaddrinfo` cannot be cut short, and a slow name server must not hold up all others
REDIRECTS = (301, 302, 303, 307, 308)
BUSY = (408, 425, 429)
# Which answers of `getaddrinfo` say that there is no such name; EAI_NODATA is not defined everywhere
NO_SUCH_NAME = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}
PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))

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
        raise Timeout(f"no answer in time from {_host(url)}{_because(error)}") from error
    except socket.gaierror as error:
        if error.errno in NO_SUCH_NAME:
            raise NotFound(f"there is no host {_host(url)!r}") from error
        raise ServerFailed(f"the name {_host(url)!r} cannot be resolved now{_because(error)}") from error
    except UnicodeError as error:
        raise NotFound(f"{_host(url)!r} is no valid name of a host{_because(error)}") from error
    except httpcore.UnsupportedProtocol as error:
        raise Blocked(f"only http and https are allowed{_because(error)}") from error
    except (
        httpcore.NetworkError,
        httpcore.ProtocolError,
        httpcore.ProxyError,
        httpcore.ConnectionNotAvailable,
        OSError,
    ) as error:
        raise ServerFailed(f"{_host(url)} failed: {type(error).__name__}{_because(error)}") from error


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
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._threads, self._resolve, host, port)
        usable = [address for address in dict.fromkeys(found) if may_connect(address, self._allowed)]
        if not usable:
            raise Blocked(f"{host!r} leads to {', '.join(found) or 'no address'}, which may not be fetched from")
        *others, last = usable[:MAX_ADDRESSES]
        for address in others:
            with contextlib.suppress(httpcore.ConnectError, httpcore.ConnectTimeout):  # the next one may answer
                return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
        return await self._network.connect_tcp(last, port, timeout, local_address, socket_options)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


class Fetcher:
    """Downloads files of limited size in limited time; belongs to one event loop.

    Args:
        allowed_networks: networks that are not public and may be downloaded from all the same.
        max_bytes: of one file.
        seconds: for one file with all its redirects, once it is its turn.
        concurrency: downloads at a time; times `max_bytes` is the most memory that they take.
        per_host: downloads at a time from one host.
        resolve: host and port → addresses; called once a connection, on a thread.
        tls: certificates to trust; the system's and certifi's unless given.
    """

    def __init__(
        self,
        *,
        allowed_networks: Iterable[Network] = (),
        max_bytes: int = MAX_BYTES,
        seconds: float = SECONDS,
        concurrency: int = CONCURRENCY,
        per_host: int = PER_HOST,
        resolve: Resolve = system_addresses,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._per_host = per_host
        self._slots = asyncio.Semaphore(concurrency)
        self._host_slots: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._network = PinnedNetwork(tuple(allowed_networks), resolve)
        self._pool = Connections(
            ssl_context=tls or httpcore.default_ssl_context(),
            network_backend=self._network,
            max_idle=concurrency,
            idle_seconds=5.0,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes all connections."""
        await self._pool.aclose()
        self._network.close()

    async def fetch(self, url: str) -> bytes:
        """The file at a URL.

        Raises:
            FetchError: one of its kinds; see `encoders.encoder`.
        """
        left = self._seconds
        loop = asyncio.get_running_loop()
        for _ in range(1 + MAX_REDIRECTS):
            target = checked(url)
            # The host's turn first: whoever waits for a slow host must not keep a slot from the others.
            async with self._host_slot(target.host.decode()), self._slots:
                began = loop.time()
                with translated(url):
                    async with asyncio.timeout(left):
                        answer = await self._get(target)
                left -= loop.time() - began
            if isinstance(answer, bytes):
                return answer
            url = _redirected(url, answer)
        raise NotFound(f"more than {MAX_REDIRECTS} redirects")

    def _host_slot(self, host: str) -> asyncio.Semaphore:
        return self._host_slots.setdefault(host, asyncio.Semaphore(self._per_host))

    async def _get(self, target: httpcore.URL) -> bytes | str:
        """The file, or where it is said to be."""
        headers = [
            (b"Host", _host_header(target)),
            (b"User-Agent", USER_AGENT),
            (b"Accept", b"image/*, */*;q=0.1"),
            (b"Accept-Encoding", b"identity"),  # nothing is inflated, so nothing can burst
        ]
        timeouts = {"connect": CONNECT_SECONDS}
        async with self._pool.stream("GET", target, headers=headers, extensions={"timeout": timeouts}) as response:
            fields = {name.lower(): value for name, value in response.headers}
            if response.status in REDIRECTS and b"location" in fields:
                return fields[b"location"].decode("utf-8", "surrogateescape")
            _check_status(response.status)
            encoding = fields.get(b"content-encoding", b"identity").lower()
            if encoding not in (b"identity", b""):
                raise NotFound(f"the server offers the file in encoding {encoding.decode('latin-1')!r} only, unasked")
            if int(fields.get(b"content-length", b"0")) > self._max_bytes:
                raise TooLarge(f"the file has {int(fields[b'content-length'])} bytes, {self._max_bytes} are allowed")
            return await self._read(response.aiter_stream())

    async def _read(self, stream: AsyncIterator[bytes]) -> bytes:
        content = bytearray()
        async for chunk in stream:
            content += chunk
            if len(content) > self._max_bytes:
                raise TooLarge(f"the file has more than the {self._max_bytes} bytes that are allowed")
        return bytes(content)


def checked(url: str) -> httpcore.URL:
    """A URL that may be asked for; where it leads is checked when it is connected to.

    Raises:
        Blocked: no http(s) URL, or one that carries a password.
        NotFound: no URL at all.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        if not host.isascii():
            host = host.encode("idna").decode()
    except ValueError as error:  # UnicodeError is one
        raise NotFound(f"no valid URL{_because(error)}: {url[:80]!r}") from None
    if parts.scheme.lower() not in ("http", "https"):
        raise Blocked(f"only http and https are allowed: {url[:80]!r}")
    if parts.username is not None or parts.password is not None:
        raise Blocked("the URL carries a user name or password")
    if not host or len(url) > 4 * MAX_KEY_BYTES:
        raise NotFound(f"the URL names no host, or is too long: {url[:80]!r}")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return httpcore.URL(
        scheme=parts.scheme.lower(),
        host=host,
        port=port,
        target=quote(target, safe=PRINTABLE, errors="surrogateescape"),
    )


def _redirected(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise NotFound(f"redirected to no valid URL{_because(error)}: {location[:80]!r}") from None


def _check_status(status: int) -> None:
    if 200 <= status < 300:
        return
    if status in BUSY or status >= 500:
        raise ServerFailed(f"the server answers {status}")
    raise NotFound(f"the server answers {status}")


def _host_header(target: httpcore.URL) -> bytes:
    host = b"[%b]" % target.host if b":" in target.host else target.host
    return host if target.port is None else b"%b:%d" % (host, target.port)


def _host(url: str) -> str:
    return urlsplit(url).netloc[:80]


def _because(error: Exception) -> str:
    return f": {error}" if str(error) else ""
