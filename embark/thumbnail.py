"""A small picture of a stranger's one, for pages of ours: decoded and encoded anew, so that it is nothing else."""

import io
from typing import Protocol

from PIL import Image

from encoders.pixels import decode

SIDE = 240  # pixels of the longer side


class Source(Protocol):
    """What downloads: `encoders.fetch.Fetcher`."""

    async def fetch(self, url: str) -> bytes:
        """Raises:
        FetchError: it cannot be had.
        """
        ...


def small(content: bytes) -> bytes:
    """A file's picture as a small JPEG.

    Raises:
        DecodeError: there is none in it.
    """
    picture = decode(content, at_least=SIDE)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=80)
    return out.getvalue()
