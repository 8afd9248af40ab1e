"""Image encoders, and torchvision's networks cut at their pooled features."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision import models
from torchvision.transforms import functional as F

from encoders.compute import Forward
from encoders.pixels import decode
from encoders.spec import EncoderSpec, SpecError

RGB = tuple[float, float, float]
PREFIX = "torchvision:"
HEADS = ("fc", "classifier", "heads", "head")
AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")  # heads that only training uses
# torchvision's DenseNet files of 2017 name `denselayer1.norm.1` what is now `denselayer1.norm1`
OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.((?:[12])\.\w+)$")
MAX_ASPECT = 8  # the preset resizes the shorter side, then keeps the central square: it sees 1.15 of the longer one


def model_names() -> list[str]:
    """torchvision's classification networks, each of which has weights."""
    names: list[str] = models.list_models(module=models)
    return names


def weights_of(spec: EncoderSpec) -> Any:
    """The torchvision weights whose architecture and preprocessing an encoder has.

    The pinned ones where they are torchvision's; the model's DEFAULT for seeded weights and for a state dict's file.
    """
    members = models.get_model_weights(spec.network.removeprefix(PREFIX))
    name = spec.pinned.partition("#")[0]
    if name.startswith(f"{members.__name__}."):
        return members[name.partition(".")[2]]
    return members.DEFAULT


def pooled_network(name: str, weights: Any) -> nn.Module:
    """The network without its classifier: pictures (B, 3, H, W) → pooled features (B, dim). Parameters are arbitrary.

    Pooled features are what global pooling puts out, with the normalisation that belongs to it, before any linear layer
    of the head: MobileNetV3-small's 576, not the 1024 of its hidden layer; a ViT's class token. AlexNet and VGG pool
    into a grid of more values than an embedding may have: they are cut before the last linear layer, at 4096.
    """
    build = models.get_model_builder(name)
    with torch.random.fork_rng(devices=[]):  # initialisers draw numbers: not those of the caller
        if name in ("inception_v3", "googlenet"):
            # as torchvision builds them for its weights, which expect another scale; heads of training left out
            network: nn.Module = build(weights=None, transform_input=True, aux_logits=False, init_weights=False)
        elif name.startswith("vit_"):
            network = build(weights=None, image_size=weights.meta["min_size"][0])
        else:
            network = build(weights=None)
    head_name = _head_name(network)
    setattr(network, head_name, _before_classifier(network, getattr(network, head_name)))
    return network


def _head_name(network: nn.Module) -> str:
    return next(name for name in HEADS if hasattr(network, name))


def _before_classifier(network: nn.Module, head: nn.Module) -> nn.Module:
    if isinstance(network, models.SqueezeNet):  # its head classifies each place, then pools
        return nn.AdaptiveAvgPool2d(1)
    if not isinstance(head, nn.Sequential):
        return nn.Identity()
    if isinstance(network, models.AlexNet | models.VGG):
        return head[:-1]
    first_linear = next(i for i, layer in enumerate(head) if isinstance(layer, nn.Linear))
    return head[:first_linear]


def embedding_dim(name: str, weights: Any) -> int:
    """How many pooled features a network has: seen by running it without data, on torch's `meta` device."""
    try:
        with torch.device("meta"):
            network = pooled_network(name, weights)
    except NotImplementedError:  # RegNet computes its widths with tensors, which have no values there
        network = pooled_network(name, weights).to("meta")
    side = weights.transforms().crop_size[0]
    with torch.inference_mode():
        features_1D: Tensor = network.eval()(torch.empty(1, 3, side, side, device="meta"))
    return features_1D.shape[1]


def without_head(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A whole network's state dict reduced to what is left after the cut; names as torchvision has them now."""
    own = network.state_dict().keys()
    heads = (f"{_head_name(network)}.", *AUXILIARY)
    named = {OLD_DENSENET.sub(r"\1\2", name): tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in named.items() if name in own or not name.startswith(heads)}


def torchvision_network(spec: EncoderSpec) -> nn.Module:
    """The cut network of a spec, its parameters arbitrary.

    Raises:
        SpecError: this release of torchvision has no such network, or it has another `dim`.
    """
    name = spec.network.removeprefix(PREFIX)
    if name not in model_names():
        raise SpecError(
            f"encoder {spec.view!r}: network={spec.network!r} is not allowed: {PREFIX} and one of "
            + ", ".join(model_names())
        )
    weights = weights_of(spec)
    dim = embedding_dim(name, weights)
    if dim != spec.dim:
        raise SpecError(f"encoder {spec.view!r}: dim={spec.dim} is not allowed: {name} has {dim} pooled features")
    return pooled_network(name, weights)


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """From a decoded picture to a network's input.

    Attributes:
        side: pixels that the shorter side is resized to; a larger picture may be decoded reduced, but not below it.
        apply: RGB picture → (3, H, W) float32.
    """

    side: int
    apply: Callable[[Image.Image], Tensor]


class ImageEncoder:
    """A network for pictures as an encoder.

    Args:
        spec: what it is, with the weights that were really loaded as `pinned`.
        network: pictures (B, 3, H, W) → (B, dim) or (B, dim, 1, 1), with its parameters set.
        preprocessing: the one that the weights were trained with.
        device: where it computes.
    """

    def __init__(
        self, spec: EncoderSpec, network: nn.Module, preprocessing: Preprocessing, device: torch.device
    ) -> None:
        self.spec = spec
        self._preprocessing = preprocessing
        self._forward = Forward(network, device, spec.dtype)

    def prepare(self, content: bytes) -> Tensor:
        """The picture (3, H, W) float32 in an image file: decoded, resized, cropped, normalised as the weights want it.

        Raises:
            DecodeError: no picture, or one beyond the limits.
        """
        return self._preprocessing.apply(decode(content, self._preprocessing.side))

    def encode(self, batch: Sequence[Tensor]) -> NDArray[np.float32]:
        """Embeddings (B, dim) of B prepared pictures.

        Raises:
            EncodeError: the network failed.
        """
        vectors = self._forward(self._forward.stacked(batch))
        return vectors[: len(batch)].reshape(len(batch), self.spec.dim)


def torchvision_preprocessing(weights: Any) -> Preprocessing:
    """What torchvision's weights were evaluated with, to the last bit, for pictures of any aspect."""
    preset = weights.transforms()
    (side,), (crop,) = preset.resize_size, preset.crop_size
    mean, std = tuple(preset.mean), tuple(preset.std)
    return Preprocessing(
        side=side,
        apply=partial(central_square, side=side, crop=crop, mean=mean, std=std, interpolation=preset.interpolation),
    )


def central_square(
    picture: Image.Image,
    *,
    side: int,
    crop: int,
    mean: RGB,
    std: RGB,
    interpolation: F.InterpolationMode = F.InterpolationMode.BILINEAR,
) -> Tensor:
    """The input (3, crop, crop) float32 of an RGB picture: its shorter side resized, the middle kept, normalised; as
    torchvision's presets, to the last bit."""
    resized = F.resize(within_aspect(picture), [side], interpolation)
    return _normalized(F.center_crop(resized, [crop]), mean, std)


def _normalized(picture: Image.Image, mean: RGB, std: RGB) -> Tensor:
    """(3, H, W) float32 of an RGB picture, its channels last in memory: (value / 255 - mean) / std.

    The same operations on each value as torchvision's `convert_image_dtype` and `normalize`, and so the same bits; but
    in place, and over rows of W x 3 values where those go over three channels at a time: a third of their time.
    """
    picture_HW3 = torch.from_numpy(np.array(picture))
    height, width, channels = picture_HW3.shape
    row_HR = picture_HW3.view(height, width * channels).to(torch.float32)
    row_HR.div_(255).sub_(_repeated(mean, width)).div_(_repeated(std, width))
    return row_HR.view(height, width, channels).permute(2, 0, 1)


@cache
def _repeated(values: RGB, times: int) -> Tensor:
    return torch.tensor(values).repeat(times)


def within_aspect(picture: Image.Image) -> Image.Image:
    """The middle of a very long picture.

    The preset would first enlarge its shorter side to some 256 pixels: 256 x 16 million for a line of 65,000 pixels.
    What is left out is far from the central square that the preset keeps in the end.
    """
    width, height = picture.size
    most = MAX_ASPECT * min(width, height)
    if max(width, height) <= most:
        return picture
    cut = (max(width, height) - most) // 2
    box = (cut, 0, cut + most, height) if width > height else (0, cut, width, cut + most)
    return picture.crop(box)
