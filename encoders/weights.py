"""What declared weights stand for: settled once, at apply, and verified whenever they are loaded. Free of torch."""

import hashlib
import http.client
import os
import re
import shutil
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from httpcore import default_ssl_context

from encoders.spec import SEEDED, EncoderSpec, SpecError

FILE_DIGITS = 16  # of the SHA-256 of a file, in `pinned`
DIGEST_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.")  # torchvision's file names end in a prefix of their SHA-256
SOCKET_SECONDS = 30.0  # without a byte; a download as a whole may take as long as it takes

Download = Callable[[str], Path]


class WeightsUnavailable(Exception):
    """The weights cannot be had here and now: no connection, or no such file on this machine."""


def pin_weights(spec: EncoderSpec, announce: Callable[[str], None], *, download: Download | None = None) -> EncoderSpec:
    """The spec with what its weights stand for written down in `pinned`.

    `DEFAULT` and names of torchvision weights: `<class>.<member>#<digest in the file's name>`, once the file is here
    and verified. A path: `file:<absolute path>#<16 digits of its SHA-256>`, once it was seen to fit the network.
    `seeded:<n>`: itself. Where torchvision's cannot be had, the declared `fallback_weights`, aloud.

    Args:
        spec: as declared.
        announce: takes a line for the person who applies.
        download: URL → verified local file; `cached_download` unless another is given.

    Raises:
        SpecError: unknown network or weights, a `dim` that the network does not have, a file that does not fit, or
            weights that cannot be had and no fallback.
    """
    member = _torchvision_weights(spec) if spec.modality == "image" else None
    if SEEDED.fullmatch(spec.weights):
        return spec.pin(spec.weights)
    if member is not None:
        return _pin_torchvision(spec, member, announce, download or cached_download)
    path = Path(spec.weights)
    if not path.is_file():
        raise SpecError(
            f"encoder {spec.view!r}: weights={spec.weights!r} is not allowed: no such file; "
            f"{'allowed are ' + _allowed_names(spec) if spec.modality == 'image' else 'allowed are seeded:<n>'}"
            " or the path of a state dict"
        )
    return _pin_file(spec, path.resolve())


def _torchvision_weights(spec: EncoderSpec) -> Any:
    """The torchvision weights that are declared, None for other ones; checks network and dim on the way."""
    from torchvision.models import get_model_weights

    from encoders.image import PREFIX, embedding_dim, model_names

    name = spec.network.removeprefix(PREFIX)
    if name not in model_names():
        raise SpecError(
            f"encoder {spec.view!r}: network={spec.network!r} is not allowed: {PREFIX} and one of "
            + ", ".join(model_names())
        )
    members = get_model_weights(name)
    member = members.__members__.get(spec.weights)  # DEFAULT is an alias among them
    dim = embedding_dim(name, member or members.DEFAULT)
    if dim != spec.dim:
        raise SpecError(f"encoder {spec.view!r}: dim={spec.dim} is not allowed: {name} has {dim} pooled features")
    return member


def _allowed_names(spec: EncoderSpec) -> str:
    from torchvision.models import get_model_weights

    members = get_model_weights(spec.network.partition(":")[2])
    return ", ".join([*members.__members__, "seeded:<n>"])


def _pin_torchvision(
    spec: EncoderSpec, member: Any, announce: Callable[[str], None], download: Download
) -> EncoderSpec:
    name = f"{type(member).__name__}.{member.name}"
    if not cache_path(member.url).exists():
        announce(f"{spec.view}: downloading {name}, {member.meta['_file_size']:.0f} MB")
    try:
        file = download(member.url)
    except WeightsUnavailable as error:
        if not spec.fallback_weights:
            raise SpecError(
                f"encoder {spec.view!r}: weights={spec.weights!r} cannot be had ({error}). Apply where there is "
                f"internet, or put the file at {cache_path(member.url)}, or declare fallback_weights='seeded:0'"
            ) from error
        announce(
            f"{spec.view}: {name} cannot be downloaded ({error}): pinned to {spec.fallback_weights}, "
            "which is NOT pretrained"
        )
        return spec.pin(spec.fallback_weights)
    digest = digest_in_name(member.url)
    if not digest:
        with file.open("rb") as opened:
            digest = sha256(opened)[:FILE_DIGITS]
    return spec.pin(f"{name}#{digest}")


def _pin_file(spec: EncoderSpec, path: Path) -> EncoderSpec:
    from encoders.loading import load_encoder

    with path.open("rb") as opened:
        pinned = spec.pin(f"file:{path}#{sha256(opened)[:FILE_DIGITS]}")
    load_encoder(pinned, device="cpu")  # a file that does not fit is found out now, not by the first request
    return pinned


def cached_download(url: str) -> Path:
    """The file of torchvision weights, in torch's cache; downloaded first where it is not there.

    Raises:
        WeightsUnavailable: it cannot be downloaded, or has another SHA-256 than its name says.
    """
    path = cache_path(url)
    if not path.exists():
        try:
            _download(url, path)
        except (OSError, http.client.HTTPException) as error:
            raise WeightsUnavailable(f"{urlsplit(url).hostname}: {error}") from error
    else:
        _verify(path, url)  # torch itself would trust whatever lies in its cache
    return path


def cache_path(url: str) -> Path:
    """Where torch itself would keep the file of a URL."""
    from torch.hub import get_dir

    return Path(get_dir(), "checkpoints", Path(urlsplit(url).path).name)


def digest_in_name(url: str) -> str:
    """The prefix of its SHA-256 that a file name carries; empty for none."""
    found = DIGEST_IN_NAME.search(Path(urlsplit(url).path).name)
    return found[1] if found else ""


def sha256(file: IO[bytes]) -> str:
    """64 hex digits of an open file, which is read to its end."""
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _download(url: str, path: Path) -> None:
    # Not torch's own download: it waits for ever for a server that does not answer.
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    request = urllib.request.Request(url, headers={"User-Agent": "EmbArk"})  # noqa: S310  # torchvision's own URL
    try:
        with (
            part.open("wb") as file,
            urllib.request.urlopen(request, timeout=SOCKET_SECONDS, context=default_ssl_context()) as answer,  # noqa: S310
        ):
            shutil.copyfileobj(answer, file)
        _verify(part, url)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _verify(path: Path, url: str) -> None:
    with path.open("rb") as file:
        digest = sha256(file)
    if not digest.startswith(digest_in_name(url)):
        raise WeightsUnavailable(f"{path} is not the file of {url}: its SHA-256 is {digest}; delete it")
