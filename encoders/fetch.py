"""Guarded download of strangers' URLs: the boundary to the web, and to what else may be read.

Proxy variables are ignored: through a proxy, nobody would know where a name leads.
"""

import asyncio
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType, TracebackType
from typing import Self
from weakref import WeakValueDictionary

from httpcore import default_ssl_context

from encoders.addresses import Network
from encoders.connections import Connections
from encoders.encoder import NotFound, ServerFailed, Timeout, TooLarge
from encoders.network import PinnedNetwork, Resolve, system_addresses, translated
from encoders.signing import HostSecret, Signer
from encoders.sources import Source
from encoders.target import PRINTABLE, Target, checked, redirected

USER_AGENT = "EmbArk-Retina/0.1"
MAX_BYTES = 20 << 20
SECONDS = 10.0
CONNECT_SECONDS = 4.0  # an address, with its TLS; < SECONDS, so that a name's second address has its turn
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
        ValueError: a secret's host is none, or the user agent no value of a header.
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
        if user_agent.strip(PRINTABLE + " "):
            raise ValueError(f"user_agent={user_agent!r} is not allowed: printable ASCII alone")
        self._common = (
            b"User-Agent: %b\r\n"
            b"Accept: image/*, */*;q=0.1\r\n"
            b"Accept-Encoding: identity\r\n"  # nothing is inflated, so nothing can burst
        ) % user_agent.encode()
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
            self._network,
            tls or default_ssl_context(),
            connect_seconds=CONNECT_SECONDS,
            read_seconds=READ_SECONDS,
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
        self._connections.close()
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
        first = target = checked(url)
        trusted = True
        for redirects in range(1 + MAX_REDIRECTS):
            if redirects:
                target = checked(url)
                # Who was once led to another host is no more shown what the first may see: the other chose the path.
                trusted = trusted and target.origin == first.origin
            # The host's turn first: whoever waits for a slow host must not keep a slot from the others.
            async with self._host_slot(target.host), self._slots:
                began = loop.time()
                with translated(url):
                    async with asyncio.timeout(left):
                        answer = await self._get(target, trusted)
                left -= loop.time() - began
            if isinstance(answer, bytes):
                return answer
            url = redirected(url, answer)
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

    async def _get(self, target: Target, trusted: bool) -> bytes | str:
        """The file, or where it is said to be. Only a trusted host is shown its secret."""
        host = target.host_header
        request = b"GET %b HTTP/1.1\r\nHost: %b\r\n%b" % (target.path, host, self._common)
        if trusted:
            for name, value in self._signer.headers(target, host, int(self._clock())):
                request += b"%b: %b\r\n" % (name, value)
        file = _File(self._max_bytes)
        await self._connections.ask(target, request + b"\r\n", file)
        return file.content if file.location is None else file.location


class _File:
    """A file on its way, judged at every step.

    Attributes:
        location: where it is said to be instead.
    """

    def __init__(self, max_bytes: int) -> None:
        self.location: str | None = None
        self._max_bytes = max_bytes
        self._chunks: list[bytes] = []
        self._size = 0
        self._now = asyncio.get_running_loop().time
        self._began = 0.0

    @property
    def content(self) -> bytes:
        return b"".join(self._chunks)

    def begins(self, status: int, fields: Mapping[bytes, bytes]) -> bool:
        if status in REDIRECTS and b"location" in fields:
            self.location = fields[b"location"].decode("utf-8", "surrogateescape")
            return False
        _check_status(status)
        encoding = fields.get(b"content-encoding", b"identity").lower()
        if encoding not in (b"identity", b""):
            raise NotFound(f"the server offers the file in encoding {encoding.decode('latin-1')!r} only, unasked")
        size = int(fields.get(b"content-length", b"0"))
        if size > self._max_bytes:
            raise TooLarge(f"the file has {size} bytes, {self._max_bytes} are allowed")
        self._began = self._now()
        return True

    def comes(self, content: bytes) -> None:
        self._chunks.append(content)
        self._size += len(content)
        if self._size > self._max_bytes:
            raise TooLarge(f"the file has more than the {self._max_bytes} bytes that are allowed")
        seconds = self._now() - self._began
        if seconds > TRICKLE_SECONDS and len(self._chunks) > TRICKLE_CHUNKS and self._size < TRICKLE_BYTES * seconds:
            raise Timeout(f"only {self._size} bytes came in {seconds:.1f} s")


def _check_status(status: int) -> None:
    if 200 <= status < 300:
        return
    if status in BUSY or status >= 500:
        raise ServerFailed(f"the server answers {status}")
    raise NotFound(f"the server answers {status}")
