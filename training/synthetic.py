"""A realistic click log with a known truth: real photographs, titles of a grammar, users, publishers, time of day.

    items           parts of real photographs in other light, each with a title, a publisher and a time of publication
    train           impressions of the first 70 % of the time; valid: of the next 15 %; test: of the last
    split           no photograph is the source of items of two splits: what is learned is seen in new pictures
    arrival         items are published all the time, are shown most when they are new, and some far more than others
    true_ctr        the probability that `clicked` was drawn from (`training.truth`): the best that any model can score

The same seed gives the same log, byte for byte, on one version of Pillow and numpy.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from rich.console import Console
from rich.progress import track

from training.impressions import CLICKED, TIME, TRUE_CTR, UTC_MICROS, Impressions, read_impressions
from training.photographs import pictures
from training.titles import draw_titles
from training.truth import DEVICES, PUBLISHERS, SEGMENTS, Measured, click_probability

SPLITS = {"train": 0.7, "valid": 0.15, "test": 0.15}  # of time, items and impressions
START = 1_767_225_600_000_000  # µs: 2026-01-01 UTC
DAY = 86_400_000_000  # µs
LIFE_DAYS = 2.0  # after which an item is shown a third as often
USERS_PER_ITEM = 2
SIDE = 96  # pixels of an item's picture
QUALITY = 85
GREY = 2.0  # colourfulness of a photograph without colours


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticLog:
    """A log and its truth.

    Attributes:
        folder: holds `items.parquet`, `train.parquet`, `valid.parquet`, `test.parquet` and `images/<item_id>.jpg`.
        items: one row an item: `item_id`, `image_url`, `text`, `publisher`, `category`, `published_at`, `split`,
            `source` (the photograph), `path` (of the JPEG, below the folder), and what was measured: `colourfulness`,
            `edge_density`, `brightness`.
        train, valid, test: impressions with `publisher`, `category`, `user_segment`, `device`, `hour` and `true_ctr`.
    """

    folder: Path
    items: pd.DataFrame
    train: Impressions
    valid: Impressions
    test: Impressions

    @classmethod
    def open(cls, folder: Path | str) -> Self:
        """A log that was made before.

        Raises:
            FileNotFoundError: there is none in the folder.
        """
        home = Path(folder)
        read = {split: read_impressions(home / f"{split}.parquet") for split in SPLITS}
        return cls(folder=home, items=pd.read_parquet(home / "items.parquet"), **read)

    def jpeg(self, item_id: int) -> bytes:
        """The picture of an item."""
        return (self.folder / "images" / f"{item_id}.jpg").read_bytes()


def make_log(
    seed: int,
    items: int,
    impressions: int,
    folder: Path | str,
    *,
    base_url: str = "http://127.0.0.1:8000/images",
    side: int = SIDE,
    days: float = 28.0,
    progress: bool = False,
) -> SyntheticLog:
    """Makes a log in `folder`.

    Args:
        items: how many; 20 at least.
        impressions: how many in all splits together.
        base_url: `<base_url>/<item_id>.jpg` becomes an item's `image_url`.
        side: pixels of a picture's side.
        days: how long the log is.
        progress: shows a bar on standard error.

    Raises:
        ValueError: too few items.
        ModuleNotFoundError: a package with photographs is not installed.
    """
    if items < 20:
        raise ValueError(f"a log needs 20 items at least, {items} were asked for")
    home = Path(folder)
    (home / "images").mkdir(parents=True, exist_ok=True)
    of_items, of_context = map(np.random.default_rng, np.random.SeedSequence(seed).spawn(2))
    catalogue = _items(of_items, items, home, base_url.rstrip("/"), side, days, progress)
    catalogue.drop(columns=["picture_effect", "title_effect"]).to_parquet(home / "items.parquet", index=False)
    begin = 0.0
    for split, share in SPLITS.items():
        end = begin + share * days * DAY
        rows = catalogue[catalogue["split"] == split].reset_index(drop=True)
        shown = _impressions(of_context, rows, round(impressions * share), end, items * USERS_PER_ITEM)
        shown.write(home / f"{split}.parquet")
        begin = end
    return SyntheticLog.open(home)


def _items(
    random: np.random.Generator, count: int, home: Path, base_url: str, side: int, days: float, progress: bool
) -> pd.DataFrame:
    sources = pictures()
    of_split = _sources_of(random, sources)
    published = np.sort(random.random(count)) * days * DAY  # µs since the start
    split_ends = np.cumsum(list(SPLITS.values())) * days * DAY
    split = np.array(list(SPLITS))[np.minimum(np.searchsorted(split_ends, published, side="right"), len(SPLITS) - 1)]
    titles = draw_titles(random, count)
    publisher = random.choice(list(PUBLISHERS), size=count)
    rows = []
    bar = track(range(count), "items", console=Console(stderr=True), transient=True, disable=not progress)
    for item in bar:
        source = str(random.choice(of_split[str(split[item])]))
        jpeg = _jpeg(_part(random, sources[source], side))
        (home / "images" / f"{item}.jpg").write_bytes(jpeg)
        with Image.open(io.BytesIO(jpeg)) as seen:  # what Retina will see, not what it was before compression
            measured = Measured.of(seen)
        rows.append(
            {
                "item_id": item,
                "image_url": f"{base_url}/{item}.jpg",
                "text": titles[item].text,
                "publisher": publisher[item],
                "category": titles[item].category,
                "split": split[item],
                "source": source,
                "path": f"images/{item}.jpg",
                "colourfulness": measured.colourfulness,
                "edge_density": measured.edge_density,
                "brightness": measured.brightness,
                "picture_effect": measured.effect,
                "title_effect": titles[item].effect,
                "colourful": measured.standardised("colourfulness"),
            }
        )
    frame = pd.DataFrame(rows)
    frame.insert(5, "published_at", pd.to_datetime((START + published.astype(np.int64)) * 1000, utc=True).as_unit("us"))
    return frame


def _sources_of(random: np.random.Generator, sources: Mapping[str, Image.Image]) -> dict[str, list[str]]:
    """Split → names of its photographs: a share of those in colour and of those in grey, at least two of each."""
    of_split: dict[str, list[str]] = {split: [] for split in SPLITS}
    grey = {name: Measured.of(picture.resize((SIDE, SIDE))).colourfulness < GREY for name, picture in sources.items()}
    for kind in (False, True):
        names = [str(name) for name in random.permutation([name for name in sources if grey[name] == kind])]
        for split in ("valid", "test"):
            few = max(2, round(SPLITS[split] * len(names)))
            of_split[split] += names[:few]
            names = names[few:]
        of_split["train"] += names
    return of_split


def _part(random: np.random.Generator, picture: Image.Image, side: int) -> Image.Image:
    """A square part of a photograph, mirrored or not, in other light and colour."""
    shorter = min(picture.size)
    size = int(shorter * random.uniform(0.25, 0.9))
    left, top = (int(random.integers(extent - size + 1)) for extent in picture.size)
    part = picture.crop((left, top, left + size, top + size)).resize(
        (side, side), Image.Resampling.BILINEAR, reducing_gap=2.0
    )
    if random.random() < 0.5:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    part = Image.fromarray((np.asarray(part) * random.uniform(0.55, 1.0, size=3)).astype(np.uint8))  # coloured light
    part = ImageEnhance.Color(part).enhance(random.uniform(0.1, 1.9))
    part = ImageEnhance.Brightness(part).enhance(random.uniform(0.6, 1.8))
    return ImageEnhance.Contrast(part).enhance(random.uniform(0.6, 1.4))


def _jpeg(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def _impressions(random: np.random.Generator, items: pd.DataFrame, count: int, end: float, users: int) -> Impressions:
    """`count` impressions of one split's items, in the order of their times, none after `end` (µs since the start)."""
    published = (items["published_at"].astype("int64").to_numpy() - START).astype(np.float64)
    popularity = random.lognormal(sigma=0.8, size=len(items))
    popularity *= 1 - np.exp(-(end - published) / (LIFE_DAYS * DAY))  # one that has just arrived was hardly shown yet
    item, at = _shown(random, published, popularity / popularity.sum(), count, end)
    order = np.argsort(at, kind="stable")
    item, at = item[order], at[order]
    hour = (at // (DAY // 24) % 24).astype(np.int64)
    # A user has one segment and mostly one device; user ids are dense, their segments follow from the id.
    user = random.integers(users, size=count)
    segment = np.array(list(SEGMENTS))[user * 7919 % 9973 % len(SEGMENTS)]
    usual = user * 104_729 % 9973 % len(DEVICES)
    device = np.array(list(DEVICES))[
        np.where(random.random(count) < 0.8, usual, random.integers(len(DEVICES), size=count))
    ]
    columns = {
        name: items[name].to_numpy()[item] for name in ("picture_effect", "title_effect", "colourful", "publisher")
    }
    true_ctr = click_probability(
        picture=columns["picture_effect"],
        colourfulness=columns["colourful"],
        title=columns["title_effect"],
        publisher=columns["publisher"].astype(str),
        segment=segment,
        device=device,
        hour=hour,
    )
    return Impressions(
        pa.table(
            {
                TIME: pa.array(START + at.astype(np.int64)).cast(UTC_MICROS),
                CLICKED: pa.array((random.random(count) < true_ctr).astype(np.int8)),
                TRUE_CTR: pa.array(true_ctr),
                "item_id": pa.array(items["item_id"].to_numpy()[item]),
                "user_id": pa.array(user),
                **{n: pa.array(items[n].to_numpy()[item], pa.string()) for n in ("image_url", "text")},
                **{n: pa.array(items[n].to_numpy()[item], pa.string()) for n in ("publisher", "category")},
                "user_segment": pa.array(segment),
                "device": pa.array(device),
                "hour": pa.array(hour.astype(np.int8)),
            }
        )
    )


def _shown(
    random: np.random.Generator, published: NDArray[np.float64], share: NDArray[np.float64], count: int, end: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Items and times (µs since the start) of `count` impressions: most when an item is new, few by night."""
    items, times, have = [], [], 0
    while have < count:
        item = random.choice(len(published), size=2 * count, p=share)
        room = 1 - np.exp(-(end - published[item]) / (LIFE_DAYS * DAY))
        at = published[item] - np.log1p(-random.random(2 * count) * room) * LIFE_DAYS * DAY
        hour = at / DAY % 1 * 24
        awake = 0.55 - 0.45 * np.cos((hour - 4) / 24 * 2 * np.pi)  # least at 04:00 UTC
        kept = random.random(2 * count) < awake
        items.append(item[kept])
        times.append(at[kept])
        have += int(kept.sum())
    return np.concatenate(items)[:count], np.concatenate(times)[:count]
