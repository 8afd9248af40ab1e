"""What declared weights stand for: settled once, at apply, and verified whenever they are loaded. Free of torch."""

import hashlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from encoders.downloads import (
    CHECKSUM,
    HUB,
    Download,
    cache_path,
    cached_download,
    digest_of,
    folder_sha256,
    sha256,
)
from encoders.downloads import WeightsUnavailable as WeightsUnavailable  # who loads weights looks for it here
from encoders.own_module import MODULE, changed, module_name, module_source
from encoders.spec import SEEDED, EncoderSpec, SpecError, is_url

FILE_DIGITS = 16  # of the SHA-256 of a file, in `pinned`
FILE_PREFIX = "file:"


def pin_weights(
    spec: EncoderSpec,
    announce: Callable[[str], None],
    *,
    download: Download | None = None,
    allowed_modules: Collection[str] = (),
) -> EncoderSpec:
    """The spec with what its weights stand for written down in `pinned`.

    torchvision's names: `<class>.<member>#<digest in the file's name>`. Models of a hub:
    `hf://<model>@<commit>[/<file>]#<digest>`. A path: `file:<absolute path>#<digest>`. URLs, `seeded:<n>`: themselves.
    A team's own network: one of these or `DEFAULT`, then `;module:<name>#<digest of its source>`. A digest is the first
    16 digits of a SHA-256. Whatever is not torchvision's own was loaded once, and so seen to fit. Where weights cannot
    be had, the declared `fallback_weights`, aloud.

    Args:
        spec: as declared.
        announce: takes a line for the person who applies.
        download: address → verified local file; `cached_download` unless another is given.
        allowed_modules: Python modules whose factories may run, for `python:<module>:<factory>`.

    Raises:
        SpecError: unknown network or weights, a `dim` that the network does not have, a file that does not fit, a
            library or module that is missing or not allowed, or weights that cannot be had and no fallback.
    """
    fetch = download or cached_download
    match spec.family:
        case "torchvision":
            member = _torchvision_weights(spec)
            if member is not None:
                return _pin_torchvision(spec, member, announce, fetch)
            return _pin(spec, spec.weights, _torchvision_names(spec), announce, fetch)
        case "timm":
            from encoders.timm_image import check_dim, hub_address, require_timm

            require_timm(spec)
            check_dim(spec)
            own = hub_address(spec) if spec.weights == "DEFAULT" else spec.weights
            return _pin(spec, own, "DEFAULT, seeded:<n>", announce, fetch)
        case "sentence-transformers":
            from encoders.sentences import require_sentence_transformers

            require_sentence_transformers(spec)
            own = f"{HUB}{_hub_model(spec)}" if spec.weights == "DEFAULT" else spec.weights
            return _pin(spec, own, "DEFAULT", announce, fetch, folder=True)
        case "checkpoint":
            return _pin(spec, spec.network.partition(":")[2], "", announce, fetch)
        case "python":
            return _pin_own(spec, announce, fetch, allowed_modules)
        case _:
            return _pin(spec, spec.weights, "seeded:<n>", announce, fetch)


def check_unchanged(spec: EncoderSpec) -> None:
    """Looks whether what a registered encoder was pinned to is still what lies here; what lies elsewhere is not asked.

    Raises:
        SpecError: a file, folder or module has changed since; the message names the next version.
    """
    weights, _, module = spec.pinned.partition(MODULE)
    file, _, pinned = weights.rpartition("#")
    path = Path(file.removeprefix(FILE_PREFIX))
    if weights.startswith(FILE_PREFIX) and path.exists():
        digest = _digest(path)[:FILE_DIGITS]
        if digest != pinned:
            raise SpecError(changed(spec, f"{path} has digest {digest} now, {pinned} was pinned"))
    if module:
        name, _, pinned = module.partition("#")
        digest = hashlib.sha256(module_source(spec)[0]).hexdigest()[:FILE_DIGITS]
        if digest != pinned:
            raise SpecError(changed(spec, f"the source of {name} has digest {digest} now, {pinned} was pinned"))


def _pin(
    spec: EncoderSpec,
    weights: str,
    names: str,
    announce: Callable[[str], None],
    download: Download,
    *,
    folder: bool = False,
) -> EncoderSpec:
    """Weights that are no name of torchvision's, as they are pinned once they were loaded."""
    if SEEDED.fullmatch(weights) and not folder:
        return spec.pin(weights)
    if is_url(weights) and not folder:
        located = weights
        announce_download(spec, weights, announce)
    elif weights.startswith(HUB):
        located = f"{weights}#"
        announce(f"{spec.view}: looking for {weights.removeprefix(HUB)} on its hub")
    else:
        path = Path(weights)
        if not (path.is_dir() if folder else path.is_file()):
            kind = "folder of a model" if folder else "checkpoint" if spec.family == "checkpoint" else "state dict"
            field = "network" if spec.family == "checkpoint" else "weights"
            allowed = f"{names}, " if names else ""
            raise SpecError(
                f"encoder {spec.view!r}: {field}={getattr(spec, field)!r} is not allowed: no such file; allowed are "
                f"{allowed}the path of a {kind}"
                + ("" if folder else f", or a URL that ends in {CHECKSUM}<64 hex digits>")
            )
        located = f"{FILE_PREFIX}{path.resolve()}#"
    return _loaded(spec, located, announce, download)


def announce_download(spec: EncoderSpec, url: str, announce: Callable[[str], None]) -> None:
    """A download may take minutes."""
    if not cache_path(url).exists():
        announce(f"{spec.view}: downloading {url.partition(CHECKSUM)[0]}")


def _loaded(
    spec: EncoderSpec,
    located: str,
    announce: Callable[[str], None],
    download: Download,
    allowed_modules: Collection[str] = (),
) -> EncoderSpec:
    # What does not fit is found out now, not by the first request
    from encoders.loading import load_encoder

    try:
        encoder = load_encoder(spec.pin(located), "cpu", download=download, allowed_modules=allowed_modules)
    except WeightsUnavailable as error:
        return _fallback(spec, f"weights={spec.weights!r}", error, announce)
    return encoder.spec


def _pin_own(
    spec: EncoderSpec, announce: Callable[[str], None], download: Download, allowed_modules: Collection[str]
) -> EncoderSpec:
    weights = spec.weights
    if not (weights == "DEFAULT" or SEEDED.fullmatch(weights) or is_url(weights)):
        if not Path(weights).is_file():
            raise SpecError(
                f"encoder {spec.view!r}: weights={weights!r} is not allowed: no such file; allowed are DEFAULT, "
                f"seeded:<n>, the path of a state dict, or a URL that ends in {CHECKSUM}<64 hex digits>"
            )
        weights = f"{FILE_PREFIX}{Path(weights).resolve()}#"
    return _loaded(spec, f"{weights}{MODULE}{module_name(spec)}#", announce, download, allowed_modules)


def _fallback(
    spec: EncoderSpec, what: str, error: WeightsUnavailable, announce: Callable[[str], None], remedy: str = ""
) -> EncoderSpec:
    can_be_seeded = spec.family in ("torchvision", "timm", "text_lstm")
    if not spec.fallback_weights or not can_be_seeded:
        seeded = ", or declare fallback_weights='seeded:0'" if can_be_seeded else ""
        raise SpecError(
            f"encoder {spec.view!r}: {what} cannot be had ({error}). Apply where there is internet{remedy}{seeded}"
        ) from error
    announce(
        f"{spec.view}: {what} cannot be downloaded ({error}): pinned to {spec.fallback_weights}, "
        "which is NOT pretrained"
    )
    return spec.pin(spec.fallback_weights)


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


def _torchvision_names(spec: EncoderSpec) -> str:
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
        return _fallback(spec, name, error, announce, f", or put the file at {cache_path(member.url)}")
    digest = digest_of(member.url)
    if not digest:
        with file.open("rb") as opened:
            digest = sha256(opened)[:FILE_DIGITS]
    return spec.pin(f"{name}#{digest}")


def _hub_model(spec: EncoderSpec) -> str:
    name = spec.network.partition(":")[2]
    return name if "/" in name else f"sentence-transformers/{name}"  # as the library itself resolves short names


def _digest(path: Path) -> str:
    if path.is_dir():
        return folder_sha256(path)
    with path.open("rb") as file:
        return sha256(file)
