"""The canonical form of a key: what is stored, logged, requested and compared, on every path.

A key is the input itself (decision 1 of the design): an image's URL or a text. Free of torch.
"""

import unicodedata
from urllib.parse import quote, unquote, unquote_plus, urlsplit, urlunsplit

from encoders.spec import EncoderSpec

MAX_KEY_BYTES = 8192  # of UTF-8, after canonicalisation; a Cassandra partition key may hold 64 KiB
UNRESERVED_IN_PATH = "/:@!$&'()*+,;=-._~%"


class KeyRefused(ValueError):
    """A key can name no input of its view; the message says why and what is allowed."""


def canonical_key(spec: EncoderSpec, key: str) -> str:
    """The one form of `key` that names its input in the view of `spec`.

    Text: Unicode NFC, stripped of white space around it. URL: scheme and host in lower case, IDNA host, no default
    port, no fragment, no empty path, no dot segments, upper-case percent escapes, none of the parameters that the view
    drops. Idempotent.

    Raises:
        KeyRefused: empty, longer than 8 KiB of UTF-8, with a NUL or a lone surrogate; or no http(s) URL.
    """
    if not key or not key.strip():
        raise KeyRefused("the key is empty")
    if "\0" in key:
        raise KeyRefused("the key holds a NUL character")
    if len(key) > 4 * MAX_KEY_BYTES:  # before any work on a stranger's string
        raise KeyRefused(f"the key is longer than {MAX_KEY_BYTES} bytes of UTF-8")
    try:
        key.encode()  # first: what takes a URL apart does not say whose fault it is
    except UnicodeEncodeError:
        raise KeyRefused("the key holds a lone surrogate: it is no valid Unicode text") from None
    canonical = (
        _canonical_url(spec, key.strip()) if spec.modality == "image" else unicodedata.normalize("NFC", key.strip())
    )
    size = len(canonical.encode())
    if size > MAX_KEY_BYTES:
        raise KeyRefused(f"the key has {size} bytes of UTF-8, {MAX_KEY_BYTES} are allowed")
    return canonical


def _canonical_url(spec: EncoderSpec, url: str) -> str:
    if any(ord(c) < 0x21 or ord(c) == 0x7F for c in url):
        raise KeyRefused("the URL holds white space or a control character: escape it")
    try:
        parts = urlsplit(url)
        port = parts.port
        host = parts.hostname or ""
    except ValueError as error:
        raise KeyRefused(f"no valid URL: {error}") from None
    scheme = parts.scheme.lower()
    if scheme not in ("http", "https"):
        raise KeyRefused(f"no http(s) URL: {url[:80]!r}")
    if not host:
        raise KeyRefused(f"the URL names no host: {url[:80]!r}")
    if parts.username is not None or parts.password is not None:
        raise KeyRefused("the URL carries a user name or password")
    if not host.isascii():
        try:
            host = host.encode("idna").decode()
        except UnicodeError:
            raise KeyRefused(f"the URL's host is no valid name: {host[:80]!r}") from None
    netloc = f"[{host}]" if ":" in host else host
    if port is not None and port != {"http": 80, "https": 443}[scheme]:
        netloc += f":{port}"
    query = parts.query
    if spec.drop_query_params and query:
        query = "&".join(p for p in query.split("&") if unquote_plus(p.partition("=")[0]) not in spec.drop_query_params)
    return urlunsplit((scheme, netloc, _canonical_path(parts.path), _escaped(query), ""))


def _canonical_path(path: str) -> str:
    segments: list[str] = []
    for segment in path.split("/")[1:]:
        if segment == "..":
            if segments:
                segments.pop()
        elif segment != ".":
            segments.append(segment)
    if path.endswith(("/.", "/..")):
        segments.append("")
    return _escaped("/" + "/".join(segments))


def _escaped(part: str) -> str:
    """`part` of a URL with every escape in upper case, and unescaped what needs none (RFC 3986, 6.2.2)."""
    out: list[str] = []
    rest = part
    while rest:
        head, mark, rest = rest.partition("%")
        out.append(quote(head, safe=UNRESERVED_IN_PATH + "?[]"))
        if not mark:
            break
        code, rest = rest[:2], rest[2:]
        try:
            value = int(code, 16) if len(code) == 2 and code.isalnum() else None
        except ValueError:
            value = None
        if value is None:
            out.append("%25")
            rest = code + rest
        elif chr(value).isascii() and (chr(value).isalnum() or chr(value) in "-._~"):
            out.append(unquote(f"%{code}"))
        else:
            out.append(f"%{value:02X}")
    return "".join(out)
