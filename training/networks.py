"""The networks that are learned with the model, and what they are fed: the very modules that Retina runs later."""

from torch import Tensor

from encoders.conv import ConvArchitecture, ConvNetwork, PicturePreprocessing, picture_input
from encoders.pixels import decode
from encoders.text import TextArchitecture, TextNetwork, TextPreprocessing, text_input
from training.config import Model

Preprocessing = PicturePreprocessing | TextPreprocessing


def learned_network(part: str, config: Model) -> ConvNetwork | TextNetwork:
    """The network of `image` or `text`, with initial weights."""
    if part == "image":
        return ConvNetwork(config.conv.dim, ConvArchitecture(channels=config.conv.channels))
    lstm = config.lstm
    return TextNetwork(lstm.dim, TextArchitecture(buckets=lstm.buckets, width=lstm.width, heads=lstm.heads))


def learned_dim(part: str, config: Model) -> int:
    """Of the embedding of `image` or `text`."""
    return config.conv.dim if part == "image" else config.lstm.dim


def preprocessing(part: str, config: Model) -> Preprocessing:
    """What lies between content and network; exported with it."""
    return (
        PicturePreprocessing(size=config.conv.size) if part == "image" else TextPreprocessing(tokens=config.lstm.tokens)
    )


def picture_tensor(content: bytes, config: Model) -> Tensor:
    """The picture (3, S, S) float32 in the bytes of an image file.

    Raises:
        DecodeError: no picture, or one beyond the limits.
    """
    return picture_input(decode(content), PicturePreprocessing(size=config.conv.size))


def token_tensor(text: str, config: Model) -> Tensor:
    """Token indices (T,) int64 of a text."""
    return text_input(text, TextPreprocessing(tokens=config.lstm.tokens), config.lstm.buckets)
