"""The page of `embark duplicates`: groups side by side, in one HTML file with nothing outside it."""

import asyncio
import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from embark.duplicates_folder import Asked
from embark.html import templates
from embark.thumbnail import Source, small
from encoders.encoder import EncoderError

TEMPLATES = Path(__file__).with_name("templates")
SHOWN_MEMBERS = 24  # of a group
AT_ONCE = 16  # downloads


def shown_groups(table: pa.Table, count: int) -> list[pa.Table]:
    """The first rows of the first groups of a table in which groups stand together."""
    number = table["group"].to_numpy()
    starts = np.flatnonzero(np.diff(number, prepend=0))[:count].tolist()  # numbers begin at 1
    return [table.slice(start, min(SHOWN_MEMBERS, table["size"][start].as_py())) for start in starts]


async def thumbnails(source: Source, keys: Sequence[str]) -> dict[str, bytes]:
    """Key → a small JPEG; without those that cannot be downloaded or decoded."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(key: str) -> bytes | None:
        async with room:
            try:
                return await asyncio.to_thread(small, await source.fetch(key))
            except EncoderError:
                return None

    made = await asyncio.gather(*map(one, dict.fromkeys(keys)))
    return {key: jpeg for key, jpeg in zip(dict.fromkeys(keys), made, strict=True) if jpeg is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """What stands on the page.

    Attributes:
        views: that were searched, with their thresholds.
        search: how, as a run tells it: `exact`, `recall`, `recall_from_pairs`, `recall_from_planted`.
        tiles: figures at the top, by name.
        groups: the first rows of the first groups, of `count` in all.
        headings: columns that are shown of each item, the first one large.
        cosines: columns of similarities, by what they are called.
        picture: the column whose values have pictures.
        pictures: small JPEG files by that column's values, of those that there are.
    """

    views: Sequence[Asked]
    search: Mapping[str, Any]
    tiles: Mapping[str, int]
    groups: Sequence[pa.Table]
    count: int
    headings: Sequence[str]
    cosines: Mapping[str, str]
    picture: str
    pictures: Mapping[str, bytes]


def write_page(path: Path, shown: Shown) -> None:
    """Writes the page; of an item without a picture it shows the headings alone."""
    environment = templates(TEMPLATES)
    numbered = {key: f"p{number}" for number, key in enumerate(shown.pictures, 1)}  # CSS classes
    page = environment.get_template("duplicates.html.j2").render(
        {field.name: getattr(shown, field.name) for field in fields(shown)}
        | {
            "groups": [group.to_pylist() for group in shown.groups],
            "classes": numbered,
            "pictures": {numbered[key]: base64.b64encode(jpeg).decode() for key, jpeg in shown.pictures.items()},
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
