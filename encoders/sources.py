"""What may be read beside the web, where the operator allows it: inline data, files below a folder, objects on S3.

A source takes a URL and the most bytes, answers the content, and blocks: it is called on a thread. Its errors are
those of `FetchError`, as over HTTP.
"""

import base64
import binascii
import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from encoders.encoder import Blocked, NotFound, ServerFailed, TooLarge

Source = Callable[[str, int], bytes]

S3_SECONDS = 5.0  # of one request to S3, of which a read takes two


def sources(roots: Iterable[str] = (), *, data_urls: bool = False, s3_endpoint: str = "") -> dict[str, Source]:
    """What is allowed, by scheme.

    Args:
        roots: folders (`file:///srv/pictures`) and prefixes on S3 (`s3://bucket/pictures`) with all below them.
        data_urls: whether URLs may carry their content.
        s3_endpoint: URL of a server that speaks S3, in the place of Amazon's; credentials are the environment's, or the
            machine's.

    Raises:
        ValueError: a root is of another form.
    """
    files, objects = [], []
    for root in roots:
        parts = urlsplit(root)
        if parts.query or parts.fragment or ".." in parts.path.split("/"):
            raise ValueError(f"no folder or prefix: {root!r}")
        if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/"):
            files.append(_names(parts.path))
        elif parts.scheme == "s3" and parts.netloc:
            objects.append([parts.netloc.encode(), *_names(parts.path)])
        else:
            raise ValueError(f"{root!r} is no root: file:///<folder> or s3://<bucket>/<prefix> is expected")
    found: dict[str, Source] = {}
    if data_urls:
        found["data"] = read_data_url
    if files:
        found["file"] = Files(files)
    if objects:
        found["s3"] = Objects(objects, s3_endpoint)
    return found


def read_data_url(url: str, max_bytes: int) -> bytes:
    """The content that a `data:` URL carries.

    Raises:
        NotFound: it is malformed.
        TooLarge: more than allowed.
    """
    head, comma, data = url.partition(":")[2].partition(",")
    if not comma:
        raise NotFound("the data URL has no comma before its data")
    content = unquote_to_bytes(data)
    if head.lower().endswith(";base64"):
        try:
            content = base64.b64decode(content, validate=True)
        except binascii.Error as error:
            raise NotFound(f"the data URL is no valid base64: {error}") from None
    return _within(content, max_bytes)


class Files:
    """Files below some folders.

    No symbolic link is followed below a root, not even one that stays there: each folder on the way is opened by
    itself, so nobody can put a link in its place between a check and the use.

    Args:
        roots: each the names of the folders down to it.
    """

    def __init__(self, roots: Sequence[Sequence[bytes]]) -> None:
        self._roots = roots

    def __call__(self, url: str, max_bytes: int) -> bytes:
        """The file at a `file:` URL.

        Raises:
            Blocked: it lies below no root, or a link leads to it.
            NotFound: there is no such file, or it is no ordinary one, or may not be read.
            TooLarge: more than allowed.
            ServerFailed: the disk failed.
        """
        parts = urlsplit(url)
        if parts.netloc:
            raise Blocked("a file URL names no host")
        names = _names(parts.path)
        root = _root_of(names, self._roots, url)
        below = names[len(root) :]
        if not below:
            raise NotFound("the file URL names a folder")
        try:
            with contextlib.ExitStack() as opened:
                folder = _open(b"/" + b"/".join(root), os.O_DIRECTORY, None, opened)
                for name in below[:-1]:
                    folder = _open(name, os.O_DIRECTORY | os.O_NOFOLLOW, folder, opened)
                # Without O_NONBLOCK a named pipe would wait for whoever writes into it.
                file = _open(below[-1], os.O_NOFOLLOW | os.O_NONBLOCK, folder, opened)
                if not stat.S_ISREG(os.fstat(file).st_mode):
                    raise NotFound("the file URL names no ordinary file")
                with os.fdopen(os.dup(file), "rb") as content:
                    return _within(content.read(max_bytes + 1), max_bytes)
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
            raise NotFound(f"the file cannot be read: {error.strerror}") from None
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise NotFound("the file cannot be read: its name is too long") from None
            raise ServerFailed(f"the file cannot be read now: {error.strerror}") from error


def _open(name: bytes, flags: int, folder: int | None, opened: contextlib.ExitStack) -> int:
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC | flags, dir_fd=folder)
    except OSError as error:
        # Which error a link gives depends on the system and on what else was asked of it.
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EMLINK) and flags & os.O_NOFOLLOW:
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                    raise Blocked("a symbolic link leads to the file, and none is followed") from None
        raise
    opened.callback(os.close, descriptor)
    return descriptor


class Objects:
    """Objects on S3 below some prefixes.

    Args:
        roots: each a bucket and the names down to the prefix.
        endpoint: URL of a server that speaks S3; empty: Amazon's.
    """

    def __init__(self, roots: Sequence[Sequence[bytes]], endpoint: str) -> None:
        from pyarrow import fs  # only where it is wanted: it starts Amazon's SDK

        self._roots = roots
        self._s3: Any = fs.S3FileSystem(
            endpoint_override=endpoint or None,
            connect_timeout=S3_SECONDS,
            request_timeout=S3_SECONDS,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=2),
        )

    def __call__(self, url: str, max_bytes: int) -> bytes:
        """The object at an `s3:` URL, whose path is escaped as any URL's.

        Raises:
            Blocked: it lies below no prefix.
            NotFound: there is no such object, or it may not be read.
            TooLarge: more than allowed.
            ServerFailed: S3 does not answer, or fails.
        """
        parts = urlsplit(url)
        names = [parts.netloc.encode(), *_names(parts.path)]
        root = _root_of(names, self._roots, url)
        if len(names) == len(root):
            raise NotFound("the s3 URL names a prefix, not an object")
        try:
            with self._s3.open_input_file(b"/".join(names).decode()) as content:
                if content.size() > max_bytes:
                    raise TooLarge(f"the object has {content.size()} bytes, {max_bytes} are allowed")
                return bytes(content.read(max_bytes))
        except (FileNotFoundError, UnicodeDecodeError):
            raise NotFound("there is no such object") from None
        except OSError as error:
            if "ACCESS_DENIED" in str(error):
                raise NotFound("the object may not be read with the credentials at hand") from error
            raise ServerFailed(f"S3 failed: {str(error)[:200]}") from error


def _names(path: str) -> list[bytes]:
    """The names in a path, each unescaped by itself: a slash in one cannot lead elsewhere."""
    return [unquote_to_bytes(name) for name in path.strip("/").split("/")] if path.strip("/") else []


def _root_of(names: Sequence[bytes], roots: Sequence[Sequence[bytes]], url: str) -> Sequence[bytes]:
    if any(name in (b"", b".", b"..") or b"/" in name or b"\0" in name for name in names):
        raise Blocked(f"no name in {url[:80]!r} may be empty, of dots alone, or hold a slash")
    for root in roots:
        if list(names[: len(root)]) == list(root):
            return root
    raise Blocked(f"{url[:80]!r} lies below none of the folders and prefixes that may be read")


def _within(content: bytes, max_bytes: int) -> bytes:
    if len(content) > max_bytes:
        raise TooLarge(f"the file has more than the {max_bytes} bytes that are allowed")
    return content
