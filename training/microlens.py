"""Reads the MicroLens_1M multimodal CTR challenge (WWW 2025, MM-CTR) as it is handed out.

    MicroLens_1M_x1/{train,valid,test}.parquet   user_id, item_seq, item_id, likes_level, views_level, label
    MicroLens_1M_x1/item_info.parquet            item_id, item_tags (5 numbers), item_emb_d128
    item_feature.parquet                         item_id, item_title, …: beside the folder, or in it; for titles
    item_emb.parquet                             item_id, item_emb_d128_v1, …: embeddings of others

The challenge hands out no times. Impressions get the order of their rows for one, a second apart, training before
validation before test: good for a split, not for anything that asks how old an item was.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from numpy.typing import NDArray

from training.impressions import CLICKED, TIME, UTC_MICROS, Impressions, ImpressionsError

SPLITS = ("train", "valid", "test")
TAGS = 5
PADDING = 0  # the item that fills up a user's sequence
START = 1_735_689_600_000_000  # µs: 2025-01-01, when nothing happened


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroLens:
    """The challenge's click log.

    Attributes:
        train, valid, test: with `image_url` and `text` of the item, `likes_level`, `views_level`, `tag_1` to `tag_5`,
            and `item_seq`, the items that the user saw before, padded with 0. `clicked` is null where the label is
            withheld.
        item_ids: (M,) the items, ascending, without the padding.
        embeddings: name of a column (`item_emb_d128`, …) → (M, dim) float32, the embeddings that were handed out.
    """

    train: Impressions
    valid: Impressions
    test: Impressions
    item_ids: NDArray[np.int64]
    embeddings: Mapping[str, NDArray[np.float32]]


def read_microlens(folder: Path | str, base_url: str = "http://127.0.0.1:8000/item_images") -> MicroLens:
    """The challenge's files in `folder`.

    Args:
        folder: holds `train.parquet` and the others, or `MicroLens_1M_x1` with them.
        base_url: where the covers are served: `<base_url>/<item_id>.jpg` becomes `image_url`.

    Raises:
        FileNotFoundError: a file is missing.
        ImpressionsError: a file lacks a column.
    """
    home = Path(folder)
    if (home / "MicroLens_1M_x1").is_dir():
        home = home / "MicroLens_1M_x1"
    items = _items(home)
    ids = items["item_id"].to_numpy()
    order = np.argsort(ids)
    order = order[ids[order] != PADDING]
    items = items.take(pa.array(order))
    read, start = {}, START
    for split in SPLITS:
        read[split] = _impressions(_found(home, f"{split}.parquet"), items, base_url, start)
        start += len(read[split]) * 1_000_000
    return MicroLens(**read, item_ids=items["item_id"].to_numpy(), embeddings=_embeddings(home, items))


def _items(home: Path) -> pa.Table:
    """item_id, item_tags and, where they were handed out, item_title."""
    info = _columns(_found(home, "item_info.parquet"), ["item_id", "item_tags"])
    try:
        features = _columns(_found(home, "item_feature.parquet"), ["item_id", "item_title"])
    except FileNotFoundError:
        return info
    # An item without a title has null: arrow's own join takes no lists.
    places = pc.index_in(info["item_id"], features["item_id"].combine_chunks())
    return info.append_column("item_title", features["item_title"].take(places))


def _impressions(path: Path, items: pa.Table, base_url: str, start: int) -> Impressions:
    table = _columns(path, ["user_id", "item_id", "item_seq", "likes_level", "views_level"], optional=["label"])
    shown = table["item_id"].to_numpy()
    known = items["item_id"].to_numpy()
    if len(known) == 0 or not np.isin(shown, known).all():
        raise ImpressionsError(f"{path} shows items that item_info.parquet does not have")
    rows = pa.array(np.searchsorted(known, shown))
    columns = {
        TIME: pa.array(start + np.arange(len(shown)) * 1_000_000).cast(UTC_MICROS),
        CLICKED: table["label"].cast(pa.int8()) if "label" in table.column_names else pa.nulls(len(shown), pa.int8()),
        "item_id": table["item_id"],
        "user_id": table["user_id"],
        "image_url": pa.array([f"{base_url.rstrip('/')}/{item}.jpg" for item in shown.tolist()], pa.string()),
    }
    if "item_title" in items.column_names:
        columns["text"] = items["item_title"].take(rows)
    tags = items["item_tags"].take(rows)
    columns |= {f"tag_{i + 1}": pc.list_element(tags, i) for i in range(TAGS)}
    columns |= {name: table[name] for name in ("likes_level", "views_level", "item_seq")}
    return Impressions(pa.table(columns))


def _embeddings(home: Path, items: pa.Table) -> dict[str, NDArray[np.float32]]:
    """The vectors of every embedding column, in the order of `items`."""
    found: dict[str, NDArray[np.float32]] = {}
    for file in ("item_info.parquet", "item_emb.parquet"):
        try:
            path = _found(home, file)
        except FileNotFoundError:
            continue
        names = [name for name in pq.read_schema(path).names if name.startswith("item_emb")]
        table = _columns(path, ["item_id", *names])
        ids = table["item_id"].to_numpy()
        order = np.argsort(ids)
        place = np.searchsorted(ids, items["item_id"].to_numpy(), sorter=order)
        if len(ids) == 0 or not np.array_equal(
            ids[order[np.minimum(place, len(ids) - 1)]], items["item_id"].to_numpy()
        ):
            raise ImpressionsError(f"{path} lacks items that item_info.parquet has")
        for name in names:
            vectors = np.stack(table[name].to_numpy()).astype(np.float32)
            found[name] = vectors[order[place]]
    return found


def _found(home: Path, name: str) -> Path:
    """A file of the challenge, in its folder or beside it."""
    for path in (home / name, home.parent / name):
        if path.is_file():
            return path
    raise FileNotFoundError(f"the challenge's {name} is neither in {home} nor beside it")


def _columns(path: Path, names: list[str], optional: list[str] | None = None) -> pa.Table:
    dataset = ds.dataset(path, format="parquet")
    missing = sorted(set(names) - set(dataset.schema.names))
    if missing:
        raise ImpressionsError(f"{path} lacks the columns {missing}; it has {dataset.schema.names}")
    return dataset.to_table(columns=[*names, *(n for n in optional or [] if n in dataset.schema.names)])
