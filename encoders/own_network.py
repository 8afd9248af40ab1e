"""A team's own network: a factory in a Python module that the operator allowed.

The factory takes the spec and returns either an `Encoder` (`prepare` and `encode`), or an object with

    prepare(content: bytes) -> Tensor    the input of an image file or of a text in UTF-8; all of one shape
    network: nn.Module                   inputs (B, ...) → embeddings (B, dim)

which Retina runs in the spec's dtype on its device. The module's source is part of what is pinned: an encoder whose
source has changed is not run. What the module imports is not covered.
"""

import hashlib
import io
import sys
from collections.abc import Collection, Sequence
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from encoders.compute import Forward
from encoders.downloads import Download
from encoders.encoder import EncodeError, Encoder
from encoders.own_module import MODULE, changed, check_allowed, module_source
from encoders.parameters import FILE_DIGITS, set_parameters
from encoders.spec import EncoderSpec, SpecError


class OwnNetwork:
    """What a factory returned with a network of its own, as an encoder; the factory's object prepares."""

    def __init__(self, spec: EncoderSpec, made: Any, device: torch.device) -> None:
        self.spec = spec
        self._made = made
        self._forward = Forward(made.network, device, spec.dtype)

    def prepare(self, content: bytes) -> Tensor:
        """Raises:
        DecodeError: the factory's object says so, or raised anything else.
        """
        prepared: Tensor = self._made.prepare(content)
        return prepared

    def encode(self, batch: Sequence[Tensor]) -> NDArray[np.float32]:
        """Raises:
        EncodeError: the network failed, or inputs are of different shapes.
        """
        try:
            stacked = torch.stack(list(batch))
        except (RuntimeError, TypeError) as error:
            raise EncodeError(f"the prepared inputs cannot be stacked: {error}") from error
        return self._forward(stacked)


class OwnEncoder:
    """What a factory returned as an encoder; its answers are held to their shape, its failures to the error tree."""

    def __init__(self, spec: EncoderSpec, made: Encoder) -> None:
        self.spec = spec
        self._made = made

    def prepare(self, content: bytes) -> Any:
        """Raises:
        DecodeError: the factory's object says so.
        """
        return self._made.prepare(content)

    def encode(self, batch: Sequence[Any]) -> NDArray[np.float32]:
        """Raises:
        EncodeError: it failed, or answered no (B, dim) values.
        """
        try:
            vectors = np.ascontiguousarray(self._made.encode(batch), dtype=np.float32)
        except EncodeError:
            raise
        except Exception as error:
            raise EncodeError(f"{self.spec.network} failed: {type(error).__name__}: {error}") from error
        if vectors.shape != (len(batch), self.spec.dim):
            raise EncodeError(f"{self.spec.network} answered {vectors.shape}, not {(len(batch), self.spec.dim)}")
        return vectors


def load_own_encoder(
    spec: EncoderSpec, device: torch.device, download: Download, allowed_modules: Collection[str]
) -> Encoder:
    """The encoder that a factory makes, once it has embedded a first input.

    Args:
        spec: `pinned` is weights, `;module:`, the module's name, `#` and the digest of its source; without a digest any
            source is taken.
        device: where a network computes.
        download: as of `set_parameters`.
        allowed_modules: names of modules; those below one are allowed too.

    Raises:
        WeightsUnavailable: as of `set_parameters`.
        SpecError: the module is not allowed, is not there, has other source than was pinned, or fails.
    """
    name, factory_name = spec.network.split(":")[1:]
    weights, _, pinned_module = spec.pinned.partition(MODULE)
    check_allowed(spec, allowed_modules)
    source, origin = module_source(spec)
    digest = hashlib.sha256(source).hexdigest()[:FILE_DIGITS]
    pinned_digest = pinned_module.partition("#")[2]
    if pinned_digest and pinned_digest != digest:
        raise SpecError(changed(spec, f"the source of {name} has digest {digest} now, {pinned_digest} was pinned"))
    try:
        factory = getattr(_run(name, source, origin), factory_name)
        made = factory(spec)
    except Exception as error:
        raise SpecError(f"encoder {spec.view!r}: {spec.network} failed: {type(error).__name__}: {error}") from error
    if hasattr(made, "prepare") and hasattr(made, "encode"):
        if weights != "DEFAULT":
            raise SpecError(
                f"encoder {spec.view!r}: weights={spec.weights!r} is not allowed: {factory_name} returns an Encoder, "
                "whose weights are its own: DEFAULT"
            )
        encoder: Encoder = OwnEncoder(spec.pin(f"DEFAULT{MODULE}{name}#{digest}"), made)
    elif hasattr(made, "prepare") and isinstance(getattr(made, "network", None), nn.Module):
        if weights != "DEFAULT":
            weights = set_parameters(made.network, spec, weights, download)
        encoder = OwnNetwork(spec.pin(f"{weights}{MODULE}{name}#{digest}"), made, device)
    else:
        raise SpecError(
            f"encoder {spec.view!r}: {spec.network} returned a {type(made).__name__}: allowed are an object with "
            "prepare(content) and network (an nn.Module), or an Encoder with prepare(content) and encode(batch)"
        )
    _try(encoder)
    return encoder


def _run(name: str, source: bytes, origin: str) -> ModuleType:
    """The module made of these very bytes, whatever was imported under its name before: they are what was digested."""
    found = find_spec(name)
    if found is None:
        raise ImportError(f"no module named {name!r}")
    module = module_from_spec(found)
    sys.modules[name] = module  # dataclasses look their module up
    exec(compile(source, origin, "exec"), module.__dict__)  # noqa: S102 - allowed by the operator, and pinned
    return module


def _try(encoder: Encoder) -> None:
    """One input goes all the way: a wrong `dim` is found out now, not by the first request."""
    spec = encoder.spec
    try:
        vectors = encoder.encode([encoder.prepare(_sample(spec))])
    except Exception as error:
        raise SpecError(
            f"encoder {spec.view!r}: {spec.network} cannot embed a first input: {type(error).__name__}: {error}"
        ) from error
    if vectors.shape != (1, spec.dim):
        raise SpecError(
            f"encoder {spec.view!r}: dim={spec.dim} is not allowed: {spec.network} answers {vectors.shape[1:]}"
        )


def _sample(spec: EncoderSpec) -> bytes:
    if spec.modality == "text":
        return b"a text"
    file = io.BytesIO()
    Image.new("RGB", (64, 48), "grey").save(file, "PNG")
    return file.getvalue()
