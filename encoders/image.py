"""Image encoders: torchvision's networks, cut at their pooled features."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision import models

from encoders.compute import Forward
from encoders.pixels import decode
from encoders.spec import EncoderSpec

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


class ImageEncoder:
    """A torchvision network as an encoder.

    Args:
        spec: what it is, with the weights that were really loaded as `pinned`.
        network: as of `pooled_network`, with its parameters set.
        device: where it computes.
    """

    def __init__(self, spec: EncoderSpec, network: nn.Module, device: torch.device) -> None:
        self.spec = spec
        self._preprocess = weights_of(spec).transforms()
        self._forward = Forward(network, device, spec.dtype)

    def prepare(self, content: bytes) -> Tensor:
        """The picture (3, H, W) float32 in an image file: decoded, resized, cropped, normalised as the weights want it.

        Raises:
            DecodeError: no picture, or one beyond the limits.
        """
        picture_3HW: Tensor = self._preprocess(within_aspect(decode(content)))
        return picture_3HW

    def encode(self, batch: Sequence[Tensor]) -> NDArray[np.float32]:
        """Embeddings (B, dim) of B prepared pictures.

        Raises:
            EncodeError: the network failed.
        """
        vectors = self._forward(torch.stack(list(batch)))
        return vectors.reshape(len(batch), self.spec.dim)


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
