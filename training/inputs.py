"""The inputs of a model's parts: each distinct picture decoded once, each text read once, each vector looked up.

What is learned sees what Retina would see: the same canonical keys, the same decoding, the same preprocessing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from encoders.encoder import DecodeError
from encoders.keys import KeyRefused, canonical_key
from encoders.spec import EncoderSpec, Modality
from training.config import Config, ConfigError, Model
from training.examples import Inputs, Rows, Texts
from training.impressions import Impressions
from training.networks import learned_dim, picture_tensor, token_tensor

COLUMNS = {"image": "image_url", "text": "text"}
Advance = Callable[[int, int], None]  # told how many of how many are done


class MissingPicture(Exception):
    """There is no picture under a URL."""


class Pictures(Protocol):
    """Where a learned image network's pictures come from."""

    def read(self, url: str) -> bytes:
        """The bytes of an image file.

        Raises:
            MissingPicture: there is none.
        """
        ...


@dataclass(frozen=True, slots=True)
class PictureFolder:
    """Image files in a folder, named as the last segment of their URLs: what a crawl or a synthetic log leaves."""

    folder: Path

    def read(self, url: str) -> bytes:
        name = unquote(urlsplit(url).path.rpartition("/")[2])
        if not name or "/" in name or name.startswith("."):
            raise MissingPicture(f"{url!r} names no file")
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise MissingPicture(f"{url!r}: {self.folder / name}: {error.strerror}") from None


class Archived(Protocol):
    """Reads the archived embeddings of impressions, as `training.history` does."""

    def embeddings(self, impressions: Impressions, view: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The distinct vectors (1 + U, D), the first of which is OOV, and the row of each impression, (N,)."""
        ...


def inputs(
    impressions: Impressions,
    config: Config,
    archived: Archived | None,
    advance: Advance = lambda done, of: None,
) -> dict[str, Inputs]:
    """The inputs of each part that the model has.

    Args:
        impressions: N of them.
        config: says where each part comes from.
        archived: reads the views that the config names.
        advance: told how many pictures are decoded.

    Raises:
        ImpressionsError: the column of a part is missing.
        ConfigError: no picture of a learned image can be read, or a view is named and nothing reads the archive.
    """
    found = {}
    for name in config.learned:
        keys = [None if key is None else str(key) for key in impressions.values(COLUMNS[name])]
        if name == "image":
            assert config.data.images is not None  # noqa: S101 - the config was checked
            found[name] = learned_pictures(keys, PictureFolder(config.data.images), config.model, advance)
        else:
            found[name] = learned_texts(keys, config.model)
    for name, view in config.views.items():
        if archived is None:
            raise ConfigError(f"model.{name}={view!r} is a view, and no archive was given to read it from")
        matrix, row_N = archived.embeddings(impressions, view)
        found[name] = Inputs(table=Rows((matrix,)), row_N=row_N.astype(np.int64))
    return found


def learned_pictures(
    urls: Sequence[str | None], pictures: Pictures, config: Model, advance: Advance = lambda done, of: None
) -> Inputs:
    """Pictures as the image network takes them; OOV where there is none, or none that can be decoded.

    They are kept in memory: 12 bytes x size² for each distinct one.

    Raises:
        ConfigError: not one could be read.
    """
    distinct, row_N = _distinct(urls, "image", config)
    size = config.conv.size
    picture_U3SS = np.zeros((1 + len(distinct), 3, size, size), dtype=np.float32)
    row_of = np.zeros(1 + len(distinct), dtype=np.int64)
    reason = ""
    for u, url in enumerate(distinct, 1):
        try:
            picture_U3SS[u] = picture_tensor(pictures.read(url), config).numpy()
            row_of[u] = u
        except (MissingPicture, DecodeError) as error:
            reason = reason or str(error)
        advance(u, len(distinct))
    if len(distinct) and not row_of.any():
        raise ConfigError(f"data.images: none of {len(distinct)} pictures could be read, the first because {reason}")
    return Inputs(table=Rows((picture_U3SS,)), row_N=row_of[row_N])


def learned_texts(texts: Sequence[str | None], config: Model) -> Inputs:
    """Token indices as the text network takes them; OOV where there is no text."""
    distinct, row_N = _distinct(texts, "text", config)
    token_UT = [token_tensor(text, config).numpy() for text in distinct]
    longest = max(map(len, token_UT), default=1)
    index_UT = np.zeros((1 + len(distinct), longest), dtype=np.int64)
    for u, token_T in enumerate(token_UT, 1):
        index_UT[u, : len(token_T)] = token_T
    count_U = np.array([1, *map(len, token_UT)], dtype=np.int64)
    return Inputs(table=Texts(index_UT, count_U), row_N=row_N)


def _distinct(keys: Sequence[str | None], modality: Modality, config: Model) -> tuple[list[str], NDArray[np.int64]]:
    """The distinct canonical keys, and 1 + the place of each key among them; 0 for what is no key."""
    spec = EncoderSpec(  # for its modality alone
        name="learned",
        version="v1",
        modality=modality,
        dim=learned_dim(modality, config),
        network="text_lstm" if modality == "text" else "torchvision:learned",
        weights="seeded:0",
    )
    code_N, values = pd.factorize(np.array(keys, dtype=object))
    canonical: list[str | None] = []
    for key in values:
        try:
            canonical.append(canonical_key(spec, key))
        except KeyRefused:
            canonical.append(None)
    code_V, distinct = pd.factorize(np.array(canonical, dtype=object))
    row_of = np.append(code_V + 1, 0)  # a missing key has the code -1: the last, which is 0
    return [str(key) for key in distinct], row_of[code_N].astype(np.int64)
