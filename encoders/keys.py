"""The canonical form of a key: what is stored, logged, requested and compared, on every path.

A key is the input itself (decision 1 of the design): an image's URL or a text. Free of torch.
"""

import re
import unicodedata
from urllib.parse import SplitResult, quote, unquote, unquote_plus, urlsplit

from encoders.spec import EncoderSpec

MAX_KEY_BYTES = 8192  # of UTF-8, after canonicalisation; a Cassandra partition key may hold 64 KiB
DEFAULT_PORTS = {"http": 80, "https": 443}
BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
UNRESERVED_IN_PATH = "/:@!$&'()*+,;=-._~%"
# Most URLs are canonical as they come, and to see that takes a tenth of what taking them apart does.
PLAIN_URL = re.compile(
    r"https?://[a-z0-9.-]+(?::(?!(?:80|443)/)(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}))?"
    r"(?:/(?!\.\.?(?:[/?]|\Z))[a-zA-Z0-9:@!$&'()*+,;=._~-]*)+(?:\?[a-zA-Z0-9/?:@!$&'()*+,;=._~-]+)?"
)


class KeyRefused(ValueError):
    """A key can name no input of its view; the message says why and what is allowed."""


def canonical_key(spec: EncoderSpec, key: str) -> str:
    """The one form of `key` that names its input in the view of `spec`.

    Text: Unicode NFC, stripped of white space around it. URL: scheme and host in lower case, IDNA host, no default
    port, no fragment, no empty path, no dot segments, upper-case percent escapes, none of the parameters that the view
    drops. URLs of files, of objects on S3 and of inline data are keys too: whether they may be read is for Retina to
    say, which answers `Blocked` unless it was told so. Idempotent.

    Raises:
        KeyRefused: empty, longer than 8 KiB of UTF-8, with a NUL or a lone surrogate; or no URL of a scheme that could
            be read.
    """
    if _is_plain_url(spec, key) if spec.modality == "image" else _is_plain_text(key):
        return key
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


def _is_plain_text(text: str) -> bool:
    return text.isascii() and 0 < len(text) <= MAX_KEY_BYTES and "\0" not in text and text == text.strip()


def _is_plain_url(spec: EncoderSpec, url: str) -> bool:
    dropped = bool(spec.drop_query_params) and "?" in url
    return not dropped and len(url) <= MAX_KEY_BYTES and PLAIN_URL.fullmatch(url) is not None


def _canonical_url(spec: EncoderSpec, url: str) -> str:
    if any(ord(c) < 0x21 or ord(c) == 0x7F for c in url):
        raise KeyRefused("the URL holds white space or a control character: escape it")
    try:
        parts = urlsplit(url)
        scheme = parts.scheme.lower()
        if scheme in DEFAULT_PORTS:
            netloc = _canonical_host(parts, url)
        elif scheme in ("file", "s3"):
            netloc = _canonical_place(parts, scheme)
        elif scheme == "data":
            return _canonical_data(url)
        else:
            raise KeyRefused(f"no http(s) URL, nor one of file, s3 or data: {url[:80]!r}")
    except UnicodeError:
        raise KeyRefused(f"the URL's host is no valid name: {url[:80]!r}") from None
    except KeyRefused:
        raise
    except ValueError as error:
        raise KeyRefused(f"no valid URL: {error}") from None
    query = parts.query
    if spec.drop_query_params and query:
        query = "&".join(p for p in query.split("&") if unquote_plus(p.partition("=")[0]) not in spec.drop_query_params)
    # By hand: where there is no host, urllib's makes one of the first segment of a path that begins with two slashes.
    return f"{scheme}://{netloc}{_canonical_path(parts.path)}" + (f"?{_escaped(query)}" if query else "")


def _canonical_host(parts: SplitResult, url: str) -> str:
    host = parts.hostname or ""
    if not host:
        raise KeyRefused(f"the URL names no host: {url[:80]!r}")
    if parts.username is not None or parts.password is not None:
        raise KeyRefused("the URL carries a user name or password")
    if not host.isascii():
        host = host.encode("idna").decode()
    netloc = f"[{host}]" if ":" in host else host
    return netloc if parts.port in (None, DEFAULT_PORTS[parts.scheme.lower()]) else f"{netloc}:{parts.port}"


def _canonical_place(parts: SplitResult, scheme: str) -> str:
    """The bucket of an s3 URL; nothing for a file, which lies where Retina runs."""
    if parts.query:
        raise KeyRefused(f"a URL of {scheme} has no query: write a question mark as %3F")
    if scheme == "s3":
        if BUCKET.fullmatch(parts.netloc) is None:
            raise KeyRefused(f"no valid name of a bucket: {parts.netloc[:80]!r}")
        return parts.netloc
    if parts.netloc.lower() not in ("", "localhost"):
        raise KeyRefused(f"a file URL names no host, as in file:///folder/a.jpg: {parts.netloc[:80]!r}")
    if not parts.path.startswith("/"):
        raise KeyRefused("a file URL has a whole path, as in file:///folder/a.jpg")
    return ""


def _canonical_data(url: str) -> str:
    content = url.partition(":")[2].partition("#")[0]
    if "," not in content:
        raise KeyRefused("a data URL has a comma before its data, as in data:image/png;base64,iVBORw0K…")
    return "data:" + _escaped(content)


def _canonical_path(path: str) -> str:
    segments: list[str] = []
    path = _escaped(path)  # first: an escaped dot is a dot
    for segment in path.split("/")[1:]:
        if segment == "..":
            if segments:
                segments.pop()
        elif segment != ".":
            segments.append(segment)
    if path.endswith(("/.", "/..")):
        segments.append("")
    return "/" + "/".join(segments)


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
