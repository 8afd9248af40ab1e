"""Items that have a picture and a text: which keys of two views belong together, as a file of the user says."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa

from training.duplicates import DuplicatesError

ITEM = "item"


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemTable:
    """N items, each once.

    Attributes:
        names: (N,) what the items are called.
        images, texts: (N,) keys of the two views, as they stand in the file; null where an item has none.
    """

    names: pa.Array
    images: pa.Array
    texts: pa.Array

    def __len__(self) -> int:
        return len(self.names)


def read_item_table(path: Path, *, item: str, image: str, text: str) -> ItemTable:
    """Reads a csv or parquet file with a column for the item and one for each key.

    Raises:
        DuplicatesError: it cannot be read, lacks a column, or names an item twice or not at all.
    """
    try:
        frame = pd.read_parquet(path) if path.suffix.lower() in (".parquet", ".pq") else pd.read_csv(path, dtype=str)
    except (OSError, ValueError) as error:
        raise DuplicatesError(f"{path} cannot be read: {error}") from error
    lacking = [name for name in (item, image, text) if name not in frame.columns]
    if lacking:
        raise DuplicatesError(
            f"{path} lacks the column {', '.join(lacking)}; it has {', '.join(map(str, frame.columns))}:"
            " name yours by --item-column, --image-column and --text-column"
        )
    names = frame[item].astype("string")
    if names.isna().any():
        raise DuplicatesError(f"{path}: row {int(names.isna().argmax()) + 1} has no {item}")
    if names.duplicated().any():
        raise DuplicatesError(f"{path}: {item} {names[names.duplicated()].iloc[0]!r} stands there more than once")
    return ItemTable(names=_strings(names), images=_strings(frame[image]), texts=_strings(frame[text]))


def _strings(column: pd.Series) -> pa.Array:
    return pa.array(column.astype("string"), pa.string())
