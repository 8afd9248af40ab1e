"""Encoders from their specs: built, and filled with the pinned weights."""

import pickle
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from encoders import image, text
from encoders.compute import choose_device
from encoders.encoder import Encoder
from encoders.seeded import seed_parameters
from encoders.spec import SEEDED, EncoderSpec, SpecError
from encoders.weights import (
    FILE_DIGITS,
    Download,
    WeightsUnavailable,
    cached_download,
    digest_in_name,
    sha256,
)

FILE_PREFIX = "file:"
# What torch raises for bytes that are no state dict; it has no error class of its own
UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError)


def load_encoder(spec: EncoderSpec, device: str = "auto", *, download: Download = cached_download) -> Encoder:
    """The encoder of a spec whose weights are pinned.

    Its own `spec` says in `pinned` what was really loaded: a file's digest is taken from the bytes that were read. So
    its fingerprint differs from the registered one where a file has changed.

    Args:
        spec: with `pinned`.
        device: as of `choose_device`.
        download: URL → verified local file, for torchvision's weights.

    Raises:
        WeightsUnavailable: a file that is not here, or not enough memory for the network.
        SpecError: weights that do not fit the network, or another `dim`.
        DeviceUnavailable: no such device here.
    """
    chosen = choose_device(device)
    network = _network(spec)
    loaded = spec.pin(_fill(network, spec, download))
    try:
        if isinstance(network, text.TextNetwork):
            return text.TextEncoder(loaded, network, chosen)
        return image.ImageEncoder(loaded, network, chosen)
    except RuntimeError as error:  # out of memory: another encoder may leave some
        raise WeightsUnavailable(f"the network cannot be moved to {chosen}: {error}") from error


def _network(spec: EncoderSpec) -> nn.Module:
    if spec.modality == "text":
        return text.TextNetwork(spec.dim)
    name = spec.network.removeprefix(image.PREFIX)
    if name not in image.model_names():
        raise SpecError(f"encoder {spec.view!r}: this release of torchvision has no network {name!r}")
    weights = image.weights_of(spec)
    dim = image.embedding_dim(name, weights)
    if dim != spec.dim:
        raise SpecError(f"encoder {spec.view!r}: {name} has {dim} pooled features, dim={spec.dim} is declared")
    return image.pooled_network(name, weights)


def _fill(network: nn.Module, spec: EncoderSpec, download: Download) -> str:
    """Sets the parameters; the identity of what was loaded."""
    if SEEDED.fullmatch(spec.pinned):
        seed_parameters(network, int(spec.pinned.partition(":")[2]))
        return spec.pinned
    if spec.pinned.startswith(FILE_PREFIX):
        path = Path(spec.pinned.removeprefix(FILE_PREFIX).rpartition("#")[0])
        return f"{FILE_PREFIX}{path}#{_fill_from(network, spec, path)[:FILE_DIGITS]}"
    url = image.weights_of(spec).url
    digest = _fill_from(network, spec, download(url))
    return f"{spec.pinned.partition('#')[0]}#{digest[: len(digest_in_name(url)) or FILE_DIGITS]}"


def _fill_from(network: nn.Module, spec: EncoderSpec, path: Path) -> str:
    """Sets the parameters from a state dict; the SHA-256 of the file, 64 hex digits."""
    try:
        with path.open("rb") as file:
            digest = sha256(file)
            file.seek(0)
            state = _state_dict(file, spec, path)
    except OSError as error:
        raise WeightsUnavailable(f"encoder {spec.view!r}: {error}") from error
    if spec.modality == "image":
        state = image.without_head(network, state)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise SpecError(f"encoder {spec.view!r}: {path} does not fit {spec.network}: {error}") from error
    return digest


def _state_dict(file: IO[bytes], spec: EncoderSpec, path: Path) -> dict[str, torch.Tensor]:
    try:
        state: Any = torch.load(file, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise SpecError(f"encoder {spec.view!r}: {path} is no state dict: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        holds = (
            f"its keys begin with {list(state)[:3]}"
            if isinstance(state, dict)
            else f"it holds a {type(state).__name__}"
        )
        raise SpecError(f"encoder {spec.view!r}: {path} is no state dict (name → tensor): {holds}")
    return state
