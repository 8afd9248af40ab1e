"""The page of `embark duplicates`: groups side by side, in one HTML file with nothing outside it."""

import asyncio
import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from encoders.encoder import EncoderError
from encoders.spec import EncoderSpec

TEMPLATES = Path(__file__).with_name("templates")
SIDE = 240  # pixels of a thumbnail's longer side
SHOWN_MEMBERS = 24  # of a group
AT_ONCE = 16  # downloads


class Source(Protocol):
    async def fetch(self, url: str) -> bytes:
        """Raises:
        FetchError: it cannot be had.
        """
        ...


def shown_groups(table: pa.Table, count: int) -> list[pa.Table]:
    """The first rows of the first groups of a table in which groups stand together."""
    number = table["group"].to_numpy()
    starts = np.flatnonzero(np.diff(number, prepend=0))[:count].tolist()  # numbers begin at 1
    return [table.slice(start, min(SHOWN_MEMBERS, table["size"][start].as_py())) for start in starts]


async def thumbnails(source: Source, keys: Sequence[str]) -> dict[str, bytes]:
    """Key → a small JPEG; without those that cannot be downloaded or decoded."""
    from PIL import Image

    from encoders.pixels import decode

    room = asyncio.Semaphore(AT_ONCE)

    def small(content: bytes) -> bytes:
        picture = decode(content, at_least=SIDE)
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        picture.save(out, "JPEG", quality=80)
        return out.getvalue()

    async def one(key: str) -> bytes | None:
        async with room:
            try:
                return await asyncio.to_thread(small, await source.fetch(key))
            except EncoderError:
                return None

    made = await asyncio.gather(*map(one, dict.fromkeys(keys)))
    return {key: jpeg for key, jpeg in zip(dict.fromkeys(keys), made, strict=True) if jpeg is not None}


def write_page(
    path: Path, spec: EncoderSpec, summary: Mapping[str, Any], groups: Sequence[pa.Table], pictures: Mapping[str, bytes]
) -> None:
    """Writes the page; of a key without a picture it shows the key alone."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    numbered = {key: f"p{number}" for number, key in enumerate(pictures, 1)}  # CSS classes
    page = environment.get_template("duplicates.html.j2").render(
        spec=spec,
        summary=summary,
        groups=[group.to_pylist() for group in groups],
        classes=numbered,
        pictures={numbered[key]: base64.b64encode(jpeg).decode() for key, jpeg in pictures.items()},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
