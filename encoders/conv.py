"""A small convolutional image network: what training learns from scratch, and a checkpoint brings into Retina.

The same module and the same preprocessing serve both sides, so that a component computes in Retina what it computed
while it was trained.
"""

from dataclasses import dataclass

from PIL import Image
from torch import Tensor, nn

from encoders.image import RGB, central_square

GROUPS = 8  # of GroupNorm: the widths are multiples of it


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvArchitecture:
    """Sizes of a `ConvNetwork`.

    Attributes:
        channels: width of each stage, multiples of 8; each stage halves the sides of the picture.
    """

    channels: tuple[int, ...] = (32, 64, 128, 256)

    def __post_init__(self) -> None:
        if not self.channels or any(type(c) is not int or c < GROUPS or c % GROUPS for c in self.channels):
            raise ValueError(f"channels={self.channels!r} is not allowed: one or more multiples of {GROUPS}")


@dataclass(frozen=True, kw_only=True, slots=True)
class PicturePreprocessing:
    """From a decoded picture to a network's input.

    Attributes:
        size: the shorter side is resized to it, and the central square kept; pixels.
        mean: subtracted from red, green and blue between 0 and 1; ImageNet's unless another is given.
        std: divided by afterwards.
    """

    size: int = 96
    mean: RGB = (0.485, 0.456, 0.406)
    std: RGB = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if type(self.size) is not int or not 8 <= self.size <= 1024:
            raise ValueError(f"size={self.size!r} is not allowed: a whole number of pixels from 8 to 1024")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3 or not all(isinstance(value, float) for value in values):
                raise ValueError(f"{name}={values!r} is not allowed: three floats, of red, green and blue")
        if min(self.std) <= 0:
            raise ValueError(f"std={self.std!r} is not allowed: three positive floats")


def picture_input(picture: Image.Image, preprocessing: PicturePreprocessing) -> Tensor:
    """The input (3, size, size) float32 of a decoded RGB picture: as torchvision's presets, in their order."""
    size = preprocessing.size
    return central_square(picture, side=size, crop=size, mean=preprocessing.mean, std=preprocessing.std)


class ConvNetwork(nn.Module):
    """Pictures (B, 3, H, W) → embeddings (B, dim).

    Each stage is a 3 x 3 convolution of stride 2, GroupNorm and ReLU; then the mean over all places and one linear
    layer. GroupNorm and not BatchNorm: an embedding does not depend on its batch, in training neither.

    Raises:
        ValueError: `dim` is no positive number.
    """

    def __init__(self, dim: int, architecture: ConvArchitecture | None = None) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim={dim!r} is not allowed: a positive number")
        self.dim = dim
        self.architecture = architecture or ConvArchitecture()
        stages: list[nn.Module] = []
        width_before = 3
        for width in self.architecture.channels:
            stages += [
                nn.Conv2d(width_before, width, 3, stride=2, padding=1, bias=False),
                nn.GroupNorm(GROUPS, width),
                nn.ReLU(inplace=True),
            ]
            width_before = width
        self.stages = nn.Sequential(*stages)
        self.out = nn.Linear(width_before, dim)

    def forward(self, picture_B3HW: Tensor) -> Tensor:
        feature_BCHW = self.stages(picture_B3HW)
        embedding_BD: Tensor = self.out(feature_BCHW.mean((2, 3)))
        return embedding_BD
