"""Files of weights from elsewhere: downloaded once, verified, and kept. Free of torch.

Three kinds of address: torchvision's own URLs, whose file names end in a prefix of their SHA-256; any URL that ends in
`#sha256=<64 hex digits>`; and `hf://<owner>/<model>[@<commit>][/<file>]` for a file, or the whole, of a repository on
the Hugging Face Hub.
"""

import hashlib
import http.client
import os
import re
import urllib.request
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from httpcore import default_ssl_context

from encoders.spec import URL_WEIGHTS

DIGEST_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.")  # torchvision's file names end in a prefix of their SHA-256
CHECKSUM = "#sha256="
HUB = "hf://"
SOCKET_SECONDS = 30.0  # without a byte; a download as a whole may take as long as it takes
MAX_BYTES = 16 << 30  # of one file: the largest encoders have 8 GB of float32, and a disk is soon full
CHUNK = 1 << 20

Download = Callable[[str], Path]


class WeightsUnavailable(Exception):
    """The weights cannot be had here and now: no connection, or no such file on this machine."""


def cached_download(url: str, *, max_bytes: int = MAX_BYTES) -> Path:
    """The file at an address, in torch's cache or the hub's; downloaded first where it is not there.

    A repository on the hub without a file's name is answered as a folder; its path holds the commit.

    Args:
        url: one of the kinds above.
        max_bytes: of a file from a web server.

    Raises:
        WeightsUnavailable: it cannot be downloaded, is larger than allowed, or has another SHA-256 than it should.
    """
    if url.startswith(HUB):
        return _from_hub(url)
    path = cache_path(url)
    if not path.exists():
        try:
            _download(url, path, max_bytes)
        except (OSError, http.client.HTTPException) as error:
            raise WeightsUnavailable(f"{urlsplit(url).hostname}: {error}") from error
    else:
        _verify(path, url)  # torch itself would trust whatever lies in its cache
    return path


def cache_path(url: str) -> Path:
    """Where the file of a URL is kept: where torch itself would keep it, or under its checksum."""
    from torch.hub import get_dir

    _, mark, checksum = url.partition(CHECKSUM)
    return Path(get_dir(), "checkpoints", checksum if mark else Path(urlsplit(url).path).name)


def digest_of(url: str) -> str:
    """The SHA-256, or a prefix of it, that the file of a URL is to have; empty for none."""
    if URL_WEIGHTS.fullmatch(url):
        return url.partition(CHECKSUM)[2]
    found = DIGEST_IN_NAME.search(Path(urlsplit(url).path).name)
    return found[1] if found else ""


def sha256(file: IO[bytes]) -> str:
    """64 hex digits of an open file, which is read to its end."""
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def folder_sha256(folder: Path) -> str:
    """64 hex digits over names and contents of all files of a folder but hidden ones, in order of name."""
    digest = hashlib.sha256()
    for path in sorted(_visible(folder)):
        with path.open("rb") as file:
            digest.update(f"{path.relative_to(folder).as_posix()}\0{sha256(file)}\0".encode())
    return digest.hexdigest()


def _visible(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


def _download(url: str, path: Path, max_bytes: int) -> None:
    # Not torch's own download: it waits for ever for a server that does not answer.
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    request = urllib.request.Request(url, headers={"User-Agent": "EmbArk"})  # noqa: S310  # declared, with a digest
    try:
        with (
            part.open("wb") as file,
            urllib.request.urlopen(request, timeout=SOCKET_SECONDS, context=default_ssl_context()) as answer,  # noqa: S310
        ):
            left = max_bytes
            while chunk := answer.read(CHUNK):
                left -= len(chunk)
                if left < 0:
                    raise WeightsUnavailable(f"{url} has more than the {max_bytes} bytes that are allowed")
                file.write(chunk)
        _verify(part, url)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _verify(path: Path, url: str) -> None:
    with path.open("rb") as file:
        digest = sha256(file)
    if not digest.startswith(digest_of(url)):
        raise WeightsUnavailable(f"{path} is not the file of {url}: its SHA-256 is {digest}; delete it")


def _from_hub(url: str) -> Path:
    if find_spec("huggingface_hub") is None:
        raise WeightsUnavailable(f"{url} needs huggingface_hub, which is not installed: `uv sync --extra timm`")
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    owner, name, *file = url.removeprefix(HUB).split("/", 2)
    model, _, commit = f"{owner}/{name}".partition("@")
    try:
        if file:
            return Path(hf_hub_download(model, file[0], revision=commit or None))
        return Path(snapshot_download(model, revision=commit or None, ignore_patterns=IGNORED_ON_HUB))
    except (OSError, HfHubHTTPError, ValueError) as error:
        raise WeightsUnavailable(f"{url}: {str(error).splitlines()[0]}") from error


IGNORED_ON_HUB = [
    "*.onnx",
    "onnx/*",
    "openvino/*",
    "*.h5",
    "*.ot",
    "*.msgpack",
    "*.md",
]  # the same for other frameworks
