"""Guarded download of strangers' URLs: the boundary to the web, and to what else may be read.

Proxy variables are ignored: through a proxy, nobody would know where a name leads.
"""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType, TracebackType
from typing import Self
from urllib.parse import quote, urljoin, urlsplit
from weakref import WeakValueDictionary

import httpcore

from encoders.addresses import Network
from encoders.connections import Connections
from encoders.encoder import Blocked, NotFound, ServerFailed, Timeout, TooLarge
from encoders.keys import MAX_KEY_BYTES
from encoders.network import PinnedNetwork, Resolve, because, system_addresses, translated
from encoders.signing import HostSecret, Signer
from encoders.sources import Source

USER_AGENT = "EmbArk-Retina/0.1"
MAX_BYTES = 20 << 20
SECONDS = 10.0
CONNECT_SECONDS = 4.0  # an address; < SECONDS, so that a name's second address has its turn
READ_SECONDS = 5.0  # without a byte
TRICKLE_BYTES = 4096  # a second: at less, no picture comes to its end in SECONDS, so its place is given to another
TRICKLE_CHUNKS = (
    8  # and TRICKLE_SECONDS, before that is judged: a busy process finds few and large chunks, not many small
)
TRICKLE_SECONDS = 2.0
MAX_REDIRECTS = 5
CONCURRENCY = 64
IDLE_SECONDS = 5.0  # for which a connection is kept
PER_HOST = 8  # an eighth of all: eight hosts must be slow at once before others wait
READING_THREADS = 8  # of sources beside the web
REDIRECTS = (301, 302, 303, 307, 308)
BUSY = (408, 425, 429)
NOTHING_ELSE: Mapping[str, Source] = MappingProxyType({})
NO_SECRETS: Mapping[str, HostSecret] = MappingProxyType({})
PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))


class Fetcher:
    """Downloads files of limited size in limited time; belongs to one event loop.

    Args:
        allowed_networks: networks that are not public and may be downloaded from all the same.
        max_bytes: of one file.
        seconds: for one file with all its redirects, once it is its turn.
        concurrency: downloads at a time; times `max_bytes` is the most memory that they take.
        per_host: downloads at a time from one host.
        user_agent: what it says it is.
        sources: scheme → what reads its URLs; http(s) alone otherwise. The web never leads to them by a redirect.
        secrets: host → the header that it is to be shown, as of `Signer`.
        resolve: host and port → addresses; called once a connection, on a thread.
        tls: certificates to trust; the system's and certifi's unless given.
        clock: seconds since 1970, for signatures.

    Raises:
        ValueError: a secret's host is none.
    """

    def __init__(
        self,
        *,
        allowed_networks: Iterable[Network] = (),
        max_bytes: int = MAX_BYTES,
        seconds: float = SECONDS,
        concurrency: int = CONCURRENCY,
        per_host: int = PER_HOST,
        user_agent: str = USER_AGENT,
        sources: Mapping[str, Source] = NOTHING_ELSE,
        secrets: Mapping[str, HostSecret] = NO_SECRETS,
        resolve: Resolve = system_addresses,
        tls: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._user_agent = user_agent.encode()
        self._sources = sources
        self._signer = Signer(secrets)
        self._clock = clock
        self._reading = ThreadPoolExecutor(READING_THREADS, thread_name_prefix="read")
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._per_host = per_host
        self._slots = asyncio.Semaphore(concurrency)
        self._host_slots: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._network = PinnedNetwork(tuple(allowed_networks), resolve)
        self._connections = Connections(
            ssl_context=tls or httpcore.default_ssl_context(),
            network_backend=self._network,
            max_idle=concurrency,
            idle_seconds=IDLE_SECONDS,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes all connections."""
        await self._connections.aclose()
        self._network.close()
        self._reading.shutdown(wait=False, cancel_futures=True)

    async def fetch(self, url: str) -> bytes:
        """The file at a URL.

        Raises:
            FetchError: one of its kinds; see `encoders.encoder`.
        """
        source = self._sources.get(url.partition(":")[0].lower())
        if source is not None:
            return await self._read_from(source, url)
        left = self._seconds
        loop = asyncio.get_running_loop()
        first, trusted = checked(url), True
        for _ in range(1 + MAX_REDIRECTS):
            target = checked(url)
            # Who was once led to another host is no more shown what the first may see: the other chose the path.
            trusted = trusted and target.origin == first.origin
            # The host's turn first: whoever waits for a slow host must not keep a slot from the others.
            async with self._host_slot(target.host.decode()), self._slots:
                began = loop.time()
                with translated(url):
                    async with asyncio.timeout(left):
                        answer = await self._get(target, trusted)
                left -= loop.time() - began
            if isinstance(answer, bytes):
                return answer
            url = _redirected(url, answer)
        raise NotFound(f"more than {MAX_REDIRECTS} redirects")

    async def _read_from(self, source: Source, url: str) -> bytes:
        async with self._slots:
            try:
                async with asyncio.timeout(self._seconds):
                    loop = asyncio.get_running_loop()
                    return await loop.run_in_executor(self._reading, source, url, self._max_bytes)
            except TimeoutError as error:
                raise Timeout(f"not read in {self._seconds:g} s: {url[:80]!r}") from error

    def _host_slot(self, host: str) -> asyncio.Semaphore:
        return self._host_slots.setdefault(host, asyncio.Semaphore(self._per_host))

    async def _get(self, target: httpcore.URL, trusted: bool) -> bytes | str:
        """The file, or where it is said to be. Only a trusted host is shown its secret."""
        host = _host_header(target)
        headers = [
            (b"Host", host),
            (b"User-Agent", self._user_agent),
            (b"Accept", b"image/*, */*;q=0.1"),
            (b"Accept-Encoding", b"identity"),  # nothing is inflated, so nothing can burst
        ]
        if trusted:
            headers += self._signer.headers(target, host, int(self._clock()))
        timeouts = {"connect": CONNECT_SECONDS, "read": READ_SECONDS}
        streamed = self._connections.stream("GET", target, headers=headers, extensions={"timeout": timeouts})
        async with streamed as response:
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
        loop = asyncio.get_running_loop()
        began = loop.time()
        chunks: list[bytes] = []
        size = 0
        async for chunk in stream:
            chunks.append(chunk)
            size += len(chunk)
            if size > self._max_bytes:
                raise TooLarge(f"the file has more than the {self._max_bytes} bytes that are allowed")
            seconds = loop.time() - began
            if seconds > TRICKLE_SECONDS and len(chunks) > TRICKLE_CHUNKS and size < TRICKLE_BYTES * seconds:
                raise Timeout(f"only {size} bytes came in {seconds:.1f} s")
        return b"".join(chunks)


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
        raise NotFound(f"no valid URL{because(error)}: {url[:80]!r}") from None
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
        raise NotFound(f"redirected to no valid URL{because(error)}: {location[:80]!r}") from None


def _check_status(status: int) -> None:
    if 200 <= status < 300:
        return
    if status in BUSY or status >= 500:
        raise ServerFailed(f"the server answers {status}")
    raise NotFound(f"the server answers {status}")


def _host_header(target: httpcore.URL) -> bytes:
    host = b"[%b]" % target.host if b":" in target.host else target.host
    return host if target.port is None else b"%b:%d" % (host, target.port)
