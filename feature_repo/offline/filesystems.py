"""Opens the file system in which a history lies: a disk, S3, or whatever else pyarrow or fsspec knows by its URI."""

import functools
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

# The names under which Feast's `ConnectionRef` resolves credentials → those of pyarrow.
S3_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "access_key",
    "AWS_SECRET_ACCESS_KEY": "secret_key",
    "AWS_SESSION_TOKEN": "session_token",
    "AWS_DEFAULT_REGION": "region",
}


def open_filesystem(
    path: str, *, s3_endpoint: str | None = None, credentials: Mapping[str, str] | None = None
) -> tuple[fs.FileSystem, str]:
    """The file system of a local path or a URI (`file://`, `s3://`, `gs://`, `memory://`, …), and the path in it.

    Args:
        s3_endpoint: URL of a server that speaks S3, in the place of Amazon's.
        credentials: of S3, as Feast's `ConnectionRef` resolves them; None: the environment's, or the machine's.

    Raises:
        ValueError: nobody knows the URI's scheme.
        ImportError: fsspec knows the scheme, and the package that speaks it is not installed.
    """
    if "://" not in path:
        return fs.LocalFileSystem(), str(Path(path))
    if path.startswith("file://"):
        return fs.LocalFileSystem(), str(Path(path.removeprefix("file://")))
    if path.startswith("s3://"):
        given = tuple(sorted((S3_CREDENTIALS[k], v) for k, v in (credentials or {}).items() if k in S3_CREDENTIALS))
        return _s3(s3_endpoint or None, given), path.removeprefix("s3://").rstrip("/")
    try:
        filesystem, inner = fs.FileSystem.from_uri(path)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        import fsspec  # type: ignore[import-untyped]  # only where it is needed: it is slow to start

        # A listing that is kept would hide what other processes wrote since.
        known, inner = fsspec.core.url_to_fs(path, use_listings_cache=False)
        filesystem = fs.PyFileSystem(fs.FSSpecHandler(known))
    return filesystem, inner.rstrip("/")


def put(filesystem: fs.FileSystem, path: str, content: pa.Buffer) -> None:
    """Writes an object of an object store: there whole when this returns, and not at all before.

    Raises:
        OSError: it cannot be written.
    """
    if isinstance(filesystem, fs.PyFileSystem) and isinstance(filesystem.handler, fs.FSSpecHandler):
        filesystem.handler.fs.pipe_file(path, content.to_pybytes())  # a stream of fsspec may be seen while it is open
        return
    with filesystem.open_output_stream(path) as stream:
        stream.write(content)


@functools.lru_cache(maxsize=16)  # each opens connections of its own, and may ask who it is
def _s3(endpoint: str | None, given: tuple[tuple[str, str], ...]) -> fs.S3FileSystem:
    # Delayed: up to 5 MiB are one request, not the three of an upload in pieces.
    return fs.S3FileSystem(endpoint_override=endpoint, allow_delayed_open=True, **dict(given))
