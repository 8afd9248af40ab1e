"""What a stranger's URL asks for, and whom: taken apart, and checked as far as that can be without a connection."""

from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

from encoders.encoder import Blocked, NotFound
from encoders.keys import DEFAULT_PORTS, MAX_KEY_BYTES

PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))

Origin = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class Target:
    """An http(s) URL, as a request needs it: nothing in it can end a line of one.

    Attributes:
        scheme: `http` or `https`.
        host: printable ASCII; an IPv6 address without brackets.
        port: None where the URL names none.
        path: with the query; printable ASCII.
    """

    scheme: str
    host: str
    port: int | None
    path: bytes

    @property
    def origin(self) -> Origin:
        return self.scheme, self.host, DEFAULT_PORTS[self.scheme] if self.port is None else self.port

    @property
    def host_header(self) -> bytes:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host.encode() if self.port is None else b"%b:%d" % (host.encode(), self.port)


def checked(url: str) -> Target:
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
    scheme = parts.scheme.lower()
    if scheme not in DEFAULT_PORTS:
        raise Blocked(f"only http and https are allowed: {url[:80]!r}")
    if parts.username is not None or parts.password is not None:
        raise Blocked("the URL carries a user name or password")
    if not host or len(url) > 4 * MAX_KEY_BYTES:
        raise NotFound(f"the URL names no host, or is too long: {url[:80]!r}")
    if host.strip(PRINTABLE):
        raise NotFound(f"{host[:80]!r} is no valid name of a host")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(scheme, host, port, quote(path, safe=PRINTABLE, errors="surrogateescape").encode())


def redirected(url: str, location: str) -> str:
    """Where an answer says that the file of a URL is; as unchecked as any other URL.

    Raises:
        NotFound: no URL.
    """
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise NotFound(f"redirected to no valid URL{because(error)}: {location[:80]!r}") from None


def host_of(url: str) -> str:
    """For messages."""
    return urlsplit(url).netloc[:80]


def because(error: Exception) -> str:
    """The end of a message: why, where the error says so."""
    return f": {error}" if str(error) else ""
