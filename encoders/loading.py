"""Encoders from their specs: built, and filled with the pinned weights."""

from collections.abc import Collection
from functools import partial
from typing import cast

import torch

from encoders import image, sentences, text, timm_image
from encoders.checkpoint import CheckpointError, load_checkpoint
from encoders.compute import choose_device
from encoders.conv import picture_input
from encoders.downloads import Download, WeightsUnavailable, cached_download, digest_of, sha256
from encoders.encoder import Encoder
from encoders.folding import fold
from encoders.own_network import load_own_encoder
from encoders.parameters import FILE_DIGITS, load_state, located, read_state, set_parameters
from encoders.spec import EncoderSpec, SpecError


def load_encoder(
    spec: EncoderSpec,
    device: str = "auto",
    *,
    download: Download = cached_download,
    allowed_modules: Collection[str] = (),
) -> Encoder:
    """The encoder of a spec whose weights are pinned.

    Its own `spec` says in `pinned` what was really loaded: a file's digest is taken from the bytes that were read. So
    its fingerprint differs from the registered one where a file has changed.

    Args:
        spec: with `pinned`.
        device: as of `choose_device`.
        download: address → verified local file.
        allowed_modules: Python modules whose factories may run, for `python:<module>:<factory>`.

    Raises:
        WeightsUnavailable: a file that is not here, or not enough memory for the network.
        SpecError: weights that do not fit the network, or another `dim`; a library or module that is missing or not
            allowed here.
        DeviceUnavailable: no such device here.
    """
    chosen = choose_device(device)
    try:
        match spec.family:
            case "torchvision":
                return _torchvision(spec, chosen, download)
            case "timm":
                return _timm(spec, chosen, download)
            case "text_lstm":
                return _text_lstm(spec, chosen, download)
            case "sentence-transformers":
                return _sentences(spec, chosen, download)
            case "checkpoint":
                return _checkpoint(spec, chosen, download)
            case "python":
                return load_own_encoder(spec, chosen, download, allowed_modules)
    except RuntimeError as error:  # out of memory: another encoder may leave some
        raise WeightsUnavailable(f"encoder {spec.view!r} cannot be set up on {chosen}: {error}") from error
    raise SpecError(f"encoder {spec.view!r}: network={spec.network!r} is not known to this release")


def _torchvision(spec: EncoderSpec, device: torch.device, download: Download) -> Encoder:
    network = image.torchvision_network(spec)
    weights = image.weights_of(spec)
    if spec.pinned.startswith(f"{type(weights).__name__}."):
        path = download(weights.url)
        state, digest = read_state(spec, path)
        load_state(network, spec, image.without_head(network, state), path)
        digits = len(digest_of(weights.url)) or FILE_DIGITS
        pinned = f"{spec.pinned.partition('#')[0]}#{digest[:digits]}"
    else:
        pinned = set_parameters(network, spec, spec.pinned, download, image.without_head)
    fold(network, weights.transforms().crop_size[0])
    return image.ImageEncoder(spec.pin(pinned), network, image.torchvision_preprocessing(weights), device)


def _timm(spec: EncoderSpec, device: torch.device, download: Download) -> Encoder:
    timm_image.require_timm(spec)
    network, pinned = timm_image.timm_network(spec, spec.pinned, download)
    return image.ImageEncoder(spec.pin(pinned), network, timm_image.timm_preprocessing(network), device)


def _text_lstm(spec: EncoderSpec, device: torch.device, download: Download) -> Encoder:
    network = text.TextNetwork(spec.dim)
    pinned = set_parameters(network, spec, spec.pinned, download)
    preprocessing = text.TextPreprocessing()
    if spec.preprocessing != "default":
        preprocessing = text.TextPreprocessing(tokens=int(spec.preprocessing.removeprefix("tokens:")))
    return text.TextEncoder(spec.pin(pinned), network, preprocessing, device)


def _sentences(spec: EncoderSpec, device: torch.device, download: Download) -> Encoder:
    folder, pinned_as = located(spec.pinned, download)
    if not folder.is_dir():
        raise WeightsUnavailable(f"encoder {spec.view!r}: there is no folder {folder}")
    model, digest = sentences.load_model(spec, folder)
    return sentences.SentenceEncoder(spec.pin(pinned_as(digest)), model, device)


def _checkpoint(spec: EncoderSpec, device: torch.device, download: Download) -> Encoder:
    path, pinned_as = located(spec.pinned, download)
    try:
        with path.open("rb") as file:
            digest = sha256(file)
            file.seek(0)
            checkpoint = load_checkpoint(file)
    except OSError as error:
        raise WeightsUnavailable(f"encoder {spec.view!r}: {error}") from error
    except CheckpointError as error:
        raise SpecError(f"encoder {spec.view!r}: {path}: {error}") from error
    for field, declared, held in (
        ("modality", spec.modality, checkpoint.modality),
        ("dim", spec.dim, checkpoint.dim),
    ):
        if declared != held:
            raise SpecError(f"encoder {spec.view!r}: {field}={declared!r} is not allowed: {path} has {held!r}")
    loaded = spec.pin(pinned_as(digest))
    network, preprocessing = checkpoint.network, checkpoint.preprocessing
    if isinstance(preprocessing, text.TextPreprocessing):
        return text.TextEncoder(loaded, cast(text.TextNetwork, network), preprocessing, device)
    apply = partial(picture_input, preprocessing=preprocessing)
    return image.ImageEncoder(loaded, network, image.Preprocessing(side=preprocessing.size, apply=apply), device)
