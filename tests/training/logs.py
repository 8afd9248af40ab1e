"""A tiny click log whose truth is known, and a config to learn it with: what the tests of training share."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from training.config import Config, load_config
from training.impressions import Impressions

TITLES = ("a red bicycle", "a cup of coffee", "ten secrets of cats", "the moon at night")
COLOURS = ((230, 40, 40), (40, 40, 230))
CONFIG = """
[data]
train = "train.parquet"
valid = "valid.parquet"
test = "test.parquet"
images = "images"

[model]
image = "learned"
text = "learned"
item = ["publisher"]
context = ["hour"]
width = 16
layers = 1
components = 2

[model.conv]
size = 8
channels = [8]
dim = 6

[model.lstm]
buckets = 64
width = 4
heads = 2
dim = 5

[training]
epochs = 3
batch_size = 64
learning_rate = 0.01
"""


def picture(colour: tuple[int, int, int]) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (10, 10), colour).save(out, "PNG")
    return out.getvalue()


def impressions(count: int, seed: int = 0, items: int = 16) -> Impressions:
    """Reds and the third title are clicked more, mornings less; the last item's picture does not exist."""
    draw = np.random.default_rng(seed)
    item = draw.integers(0, items, count)
    hour = draw.integers(0, 3, count)
    logit = -1.5 + 1.2 * (item % 2 == 0) + 0.8 * (item % 4 == 2) - 0.7 * (hour == 0)
    ctr: NDArray[np.float64] = 1 / (1 + np.exp(-logit))
    start = pd.Timestamp("2026-01-01", tz="UTC")
    return Impressions.of(
        pd.DataFrame(
            {
                "event_timestamp": start + pd.to_timedelta(np.arange(count), unit="s"),
                "clicked": (draw.random(count) < ctr).astype(int),
                "item_id": item,
                "image_url": [f"https://shop.example/{i}.png" for i in item],
                "text": [TITLES[i % len(TITLES)] for i in item],
                "publisher": [f"p{i % 3}" for i in item],
                "hour": hour,
                "true_ctr": ctr,
            }
        )
    )


def write_log(folder: Path, count: int = 600, items: int = 16) -> Config:
    """Impressions in three files, image files, and the config `ctr.toml` beside them."""
    (folder / "images").mkdir(parents=True)
    for i in range(items - 1):
        (folder / "images" / f"{i}.png").write_bytes(picture(COLOURS[i % 2]))
    for seed, name in enumerate(("train", "valid", "test")):
        impressions(count, seed, items).write(folder / f"{name}.parquet")
    (folder / "ctr.toml").write_text(CONFIG)
    return load_config(folder / "ctr.toml")
