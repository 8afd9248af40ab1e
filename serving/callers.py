"""Who calls, and what each caller may: a file of token hashes.

[callers.ranker]
token_sha256 = "9f86d0…"            # `embark token ranker` makes a token and this table
views = ["text_lstm__v1"]           # or ["*"]
announce = true
keys_per_second = 50000
bytes_per_second = 100000000        # of requests and of the vectors in answers
max_keys = 1000                     # of a call
max_bytes = 4000000
"""

import hashlib
import logging
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from serving.limits import MAX_CALL_BYTES, MAX_KEYS
from serving.rates import TokenBucket
from serving.refusals import NotPermitted, RateExceeded, TooManyBytes, TooManyKeys, Unauthenticated

logger = logging.getLogger(__name__)

HEADER = "authorization"
BEARER = "Bearer "
ANY_VIEW = "*"
LOOK_SECONDS = 5.0  # after so long, at most, a token that was taken out of the file is refused
ALLOWED = {"token_sha256", "views", "announce", "keys_per_second", "bytes_per_second", "max_keys", "max_bytes"}


class CallersInvalid(Exception):
    """The file of callers cannot be used; the message names the caller and what is wrong."""


@dataclass(frozen=True, slots=True)
class Caller:
    """What one caller may.

    Attributes:
        name: for logs and metrics.
        views: that it may read; None: all.
        announce: whether it may announce keys.
        max_keys: of one call.
        max_bytes: of one call, its request and the vectors of its answer; of a stream, each answer; None: no limit.
        rate: of keys; None: as many as it likes.
        byte_rate: of bytes; None: as many as it likes.
    """

    name: str
    views: frozenset[str] | None = None
    announce: bool = True
    max_keys: int = MAX_KEYS
    rate: TokenBucket | None = None
    max_bytes: int | None = None
    byte_rate: TokenBucket | None = None

    def check(self, view: str, keys: int, most: int) -> None:
        """Raises:
        NotPermitted, TooManyKeys: the caller may not read `keys` keys of `view` in one call.
        """
        if self.views is not None and view not in self.views:
            raise NotPermitted(f"{self.name} may not read {view}; it may read {', '.join(sorted(self.views))}")
        allowed = min(self.max_keys, most)
        if keys > allowed:
            raise TooManyKeys(f"{keys} keys, {allowed} are allowed in a call")

    def spend(self, keys: int, size: int) -> None:
        """Counts the keys and the bytes of a call that is allowed.

        Raises:
            TooManyBytes: it is larger than this caller's calls may be.
            RateExceeded: there are too many for now; nothing was counted.
        """
        if self.max_bytes is not None and size > self.max_bytes:
            raise TooManyBytes(
                f"{size} bytes of request and vectors, {self.max_bytes} are allowed in a call: fewer keys, or float16"
            )
        for what, bucket, count in (("keys", self.rate, keys), ("bytes", self.byte_rate, size)):
            if bucket is not None and not bucket.has(count):
                raise RateExceeded(f"{self.name} asks for too many {what}: again in {bucket.wait_seconds(count):.2f} s")
        for bucket, count in ((self.rate, keys), (self.byte_rate, size)):
            if bucket is not None:
                bucket.take(count)

    def check_announce(self) -> None:
        """Raises:
        NotPermitted: the caller may not announce keys.
        """
        if not self.announce:
            raise NotPermitted(f"{self.name} may not announce keys")


class Callers(Protocol):
    """Tells who calls."""

    def caller(self, metadata: Iterable[tuple[str, Any]]) -> Caller:
        """The caller of a call with this metadata.

        Raises:
            Unauthenticated: nobody is known by it.
        """
        ...


class Anybody:
    """No tokens: whoever reaches the port may do all."""

    def __init__(self) -> None:
        self._caller = Caller("anybody")

    def caller(self, metadata: Iterable[tuple[str, Any]]) -> Caller:
        return self._caller


class TokenFile:
    """Callers by bearer token; for the thread of the event loop. The file is read again when it has changed.

    Args:
        path: TOML, as above.
        clock: seconds, of any origin.

    Raises:
        CallersInvalid: it cannot be read. Later, the callers known before stay in force.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._looked_at = clock()
        self._version = self._stat()
        self._callers = read_callers(path, clock)

    def caller(self, metadata: Iterable[tuple[str, Any]]) -> Caller:
        self._look()
        token = next((value for name, value in metadata if name == HEADER), "")
        if not token.startswith(BEARER):
            raise Unauthenticated(f"no token: send the metadata `{HEADER}: Bearer <token>`")
        # By the digest of what was sent: how long it takes tells nothing of any token.
        found = self._callers.get(digest(token.removeprefix(BEARER)))
        if found is None:
            raise Unauthenticated("the token is not known")
        return found

    def _look(self) -> None:
        if self._clock() < self._looked_at + LOOK_SECONDS:
            return
        self._looked_at = self._clock()
        try:
            version = self._stat()
            if version != self._version:
                self._callers = read_callers(self._path, self._clock)
                self._version = version
                logger.info("%s was read again: %d callers", self._path, len(self._callers))
        except CallersInvalid as error:
            logger.warning("the callers known before stay in force: %s", error)

    def _stat(self) -> tuple[int, int]:
        try:
            status = self._path.stat()
        except OSError as error:
            raise CallersInvalid(f"{self._path} cannot be read: {error.strerror}") from error
        return status.st_mtime_ns, status.st_ino


def digest(token: str) -> str:
    """What the file holds of a token."""
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()


def read_callers(path: Path, clock: Callable[[], float]) -> dict[str, Caller]:
    """Callers by the digest of their token.

    Raises:
        CallersInvalid: see there.
    """
    try:
        found = tomllib.loads(path.read_text())
    except OSError as error:
        raise CallersInvalid(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CallersInvalid(f"{path} is no TOML: {error}") from error
    tables = found.pop("callers", {})
    if found or not isinstance(tables, Mapping) or not tables:
        raise CallersInvalid(f"{path}: tables [callers.<name>] are expected, and nothing else")
    callers: dict[str, Caller] = {}
    for name, table in tables.items():
        sha, caller = _caller(path, name, table, clock)
        if sha in callers:
            raise CallersInvalid(f"{path}: {name} and {callers[sha].name} have the same token")
        callers[sha] = caller
    return callers


def _caller(path: Path, name: str, table: Any, clock: Callable[[], float]) -> tuple[str, Caller]:
    def fail(why: str) -> CallersInvalid:
        return CallersInvalid(f"{path}: callers.{name}: {why}")

    if not isinstance(table, Mapping) or not table.keys() <= ALLOWED:
        raise fail(f"a table of {', '.join(sorted(ALLOWED))} is expected")
    sha = table.get("token_sha256")
    if not isinstance(sha, str) or len(sha) != 64 or not all(c in "0123456789abcdef" for c in sha):
        raise fail("token_sha256 has to be 64 hex digits in lower case")
    views = table.get("views")
    if not isinstance(views, list) or not views or not all(isinstance(view, str) for view in views):
        raise fail('views has to be a list of views, or ["*"]')
    announce = table.get("announce", False)
    if not isinstance(announce, bool):
        raise fail("announce has to be true or false")
    most = {limit: table.get(limit) for limit in ("max_keys", "max_bytes")}
    rates = {limit: table.get(limit) for limit in ("keys_per_second", "bytes_per_second")}
    for limit, value in most.items():
        if value is not None and (type(value) is not int or value < 1):
            raise fail(f"{limit} has to be a whole number from 1 on")
    for limit, value in rates.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value <= 0):
            raise fail(f"{limit} has to be a positive number")
    max_keys, max_bytes = most["max_keys"] or MAX_KEYS, most["max_bytes"]

    def bucket(rate: float | None, call: float) -> TokenBucket | None:
        # A second's worth at once, and a whole call in any case: a slow caller could otherwise never make one.
        return None if rate is None else TokenBucket(rate, max(float(rate), float(call)), clock)

    return sha, Caller(
        name,
        None if ANY_VIEW in views else frozenset(views),
        announce,
        max_keys,
        bucket(rates["keys_per_second"], min(max_keys, MAX_KEYS)),
        max_bytes,
        bucket(rates["bytes_per_second"], min(max_bytes or MAX_CALL_BYTES, MAX_CALL_BYTES)),
    )
