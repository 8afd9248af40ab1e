"""Impressions: what was shown, when, and whether it was clicked. The table that training reads and joins to history.

Columns, of which only `event_timestamp` and one of the two keys must be there:

    event_timestamp       UTC, µs   when it was shown (text in ISO 8601 and times without a zone are taken, as UTC)
    clicked               int8      1, 0, or null where it is not known (a challenge's test set)
    image_url, text       string    the item's keys: the picture's URL, the title
    item_id, user_id      any       who and what; identities, not categories
    <view>__embedding_id  int64     the id that the look-up of this impression answered, where the ranker logged it
    true_ctr              float64   the probability that a synthetic log drew `clicked` from
    all others            any       of text, whole numbers or booleans: categories (publisher, category, device, …);
                                    of anything else: kept, not used
"""

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from numpy.typing import NDArray

TIME = "event_timestamp"
CLICKED = "clicked"
KEYS = ("image_url", "text")
IDENTITIES = ("item_id", "user_id")
TRUE_CTR = "true_ctr"
ID_SUFFIX = "__embedding_id"

UTC_MICROS = pa.timestamp("us", tz="UTC")
BATCH_ROWS = 1_000_000


class ImpressionsError(ValueError):
    """A click log lacks a column or holds a value that is not allowed; the message names it and says what is."""


@dataclass(frozen=True)
class Impressions:
    """N impressions.

    Args:
        table: columns as in the module's docstring; their types are brought to those named there.

    Raises:
        ImpressionsError: a column is missing, or has values that it must not have.
    """

    table: pa.Table

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", _normalised(self.table))

    @classmethod
    def of(cls, frame: pd.DataFrame) -> Self:
        """The impressions of a frame."""
        return cls(pa.Table.from_pandas(frame, preserve_index=False))

    def __len__(self) -> int:
        rows: int = self.table.num_rows
        return rows

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The table as a frame. Embedding ids stay whole numbers: as floats they would lose their last digits."""
        frame: pd.DataFrame = self.table.to_pandas(integer_object_nulls=True)
        return frame

    @property
    def keys(self) -> tuple[str, ...]:
        """Those of `image_url` and `text` that there are."""
        return tuple(key for key in KEYS if key in self.table.column_names)

    @property
    def categorical(self) -> tuple[str, ...]:
        """The categories' columns, in the order of the table."""
        return tuple(f.name for f in self.table.schema if _is_category(f))

    @property
    def logged_views(self) -> tuple[str, ...]:
        """The views whose embedding ids were logged."""
        return tuple(n.removesuffix(ID_SUFFIX) for n in self.table.column_names if n.endswith(ID_SUFFIX))

    @property
    def clicked(self) -> NDArray[np.int8]:
        """Whether each was clicked, (N,) of 0 and 1.

        Raises:
            ImpressionsError: there is no such column, or it has nulls.
        """
        if CLICKED not in self.table.column_names or self.table[CLICKED].null_count:
            raise ImpressionsError(
                f"not all impressions say whether they were {CLICKED!r}: they cannot be learned from"
            )
        clicked: NDArray[np.int8] = self.table[CLICKED].to_numpy()
        return clicked

    @property
    def true_ctr(self) -> NDArray[np.float64] | None:
        """The probabilities that the clicks were drawn from, (N,); None for a log of the real world."""
        return self.table[TRUE_CTR].to_numpy() if TRUE_CTR in self.table.column_names else None

    def values(self, column: str) -> list[object]:
        """A column as Python values, for vocabularies and keys.

        Raises:
            ImpressionsError: there is no such column.
        """
        if column not in self.table.column_names:
            raise ImpressionsError(f"impressions have no column {column!r}; they have {self.table.column_names}")
        values: list[object] = self.table[column].to_pylist()
        return values

    def take(self, rows: NDArray[np.int64]) -> "Impressions":
        """The impressions at `rows`, (M,)."""
        return Impressions(self.table.take(pa.array(rows)))

    def write(self, path: Path) -> None:
        """As parquet, to be read by `read_impressions`."""
        pq.write_table(self.table, path, compression="zstd")


def read_impressions(source: Path | str | pd.DataFrame, columns: Mapping[str, str] | None = None) -> Impressions:
    """A click log.

    Args:
        source: a parquet file, a folder of them, a `.csv` (`.csv.gz`), or a frame.
        columns: name here → name there, for those that are called otherwise: `{"clicked": "is_click"}`.

    Raises:
        FileNotFoundError: there is no such file.
        ImpressionsError: a column is missing, or has values that it must not have.
    """
    if isinstance(source, pd.DataFrame):
        table = pa.Table.from_pandas(source, preserve_index=False)
    elif _is_csv(Path(source)):
        table = csv.read_csv(source, convert_options=_read_as_text(columns))
    else:
        table = _dataset(Path(source)).to_table()
    return Impressions(_renamed(table, columns))


def impression_batches(
    source: Path | str,
    columns: Mapping[str, str] | None = None,
    *,
    only: Container[str] | None = None,
    rows: int = BATCH_ROWS,
) -> Iterator[Impressions]:
    """A click log that does not fit in memory, in its order: a parquet file or a folder of them, `rows` at a time.

    Args:
        columns: as `read_impressions` has them.
        only: the columns to read, as they are called here; None: all.

    Raises:
        FileNotFoundError: there is no such file.
        ImpressionsError: it is no parquet; or as `read_impressions`.
    """
    dataset = _dataset(Path(source))
    ours = {theirs: name for name, theirs in (columns or {}).items()}
    names = [name for name in dataset.schema.names if only is None or ours.get(name, name) in only]
    held: list[pa.RecordBatch] = []
    # Read ahead by a little: as much as pyarrow would is gigabytes.
    for batch in dataset.to_batches(columns=names, batch_size=rows, batch_readahead=1, fragment_readahead=1):
        held.append(batch)
        while sum(len(each) for each in held) >= rows:
            table = pa.Table.from_batches(held)
            yield Impressions(_renamed(table.slice(0, rows), columns))
            held = table.slice(rows).to_batches()
    if any(len(each) for each in held):
        yield Impressions(_renamed(pa.Table.from_batches(held), columns))


def count_impressions(source: Path | str) -> int:
    """How many there are in a parquet file or a folder of them, from their footers alone.

    Raises:
        FileNotFoundError, ImpressionsError: as `impression_batches`.
    """
    rows: int = _dataset(Path(source)).count_rows()
    return rows


def _dataset(path: Path) -> ds.Dataset:
    if not path.exists():
        raise FileNotFoundError(f"no click log at {path}")
    if _is_csv(path):
        raise ImpressionsError(f"{path} is CSV, which only `read_impressions` reads, as a whole: batches want parquet")
    try:
        return ds.dataset(path, format="parquet")
    except pa.ArrowInvalid as error:
        raise ImpressionsError(f"{path} is no click log in parquet: {error}") from error


def _is_csv(path: Path) -> bool:
    return path.name.endswith((".csv", ".csv.gz"))


def _read_as_text(columns: Mapping[str, str] | None) -> csv.ConvertOptions:
    """Keys are text even where all of them look like numbers or dates."""
    names = columns or {}
    return csv.ConvertOptions(
        column_types={names.get(n, n): pa.string() for n in (*KEYS, TIME)}, strings_can_be_null=True
    )


def _renamed(table: pa.Table, columns: Mapping[str, str] | None) -> pa.Table:
    for ours, theirs in (columns or {}).items():
        if theirs not in table.column_names:
            raise ImpressionsError(f"the click log has no column {theirs!r}; it has {table.column_names}")
        if ours != theirs and ours in table.column_names:
            raise ImpressionsError(f"the click log has a column {ours!r} beside {theirs!r}, which is to be it")
    back = {theirs: ours for ours, theirs in (columns or {}).items()}
    return table.rename_columns([back.get(name, name) for name in table.column_names])


def _is_category(field: pa.Field) -> bool:
    kind = field.type
    if field.name in (TIME, CLICKED, TRUE_CTR, *KEYS, *IDENTITIES) or field.name.endswith(ID_SUFFIX):
        return False
    return bool(pa.types.is_string(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind))


def _normalised(table: pa.Table) -> pa.Table:
    table = table.replace_schema_metadata(None)
    if TIME not in table.column_names:
        raise ImpressionsError(f"a click log needs a column {TIME!r}; this one has {table.column_names}")
    if not any(key in table.column_names for key in KEYS):
        raise ImpressionsError(f"a click log needs one of the columns {KEYS}; this one has {table.column_names}")
    for place, field in enumerate(table.schema):
        column = table[field.name]
        if pa.types.is_dictionary(field.type):
            column = column.cast(field.type.value_type)
        if pa.types.is_large_string(column.type):
            column = column.cast(pa.string())
        if field.name == TIME:
            column = _times(column)
        elif field.name == CLICKED:
            column = _clicks(column)
        elif field.name in KEYS:
            column = _fitted(field.name, column, pa.string(), "text")
        elif field.name == TRUE_CTR:
            column = _fitted(field.name, column, pa.float64(), "a probability")
        elif field.name.endswith(ID_SUFFIX):
            if pa.types.is_floating(column.type) and column.null_count < len(column):
                raise ImpressionsError(
                    f"{field.name!r} holds floats, which lose the last digits of an id: read it as Int64"
                )
            column = _fitted(field.name, column, pa.int64(), "ids, whole numbers of 63 bits")
        table = table.set_column(place, field.name, column)
    return table


def _times(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_string(column.type):
        parsed = pd.to_datetime(
            pd.Series(column.to_pylist(), dtype=object), utc=True, errors="coerce", format="ISO8601"
        )
        column = pa.chunked_array([pa.array(parsed.dt.as_unit("us"), type=UTC_MICROS)])
    if not pa.types.is_timestamp(column.type):
        raise ImpressionsError(f"{TIME!r} holds {column.type}: times, or text in ISO 8601, are allowed")
    if column.null_count:
        raise ImpressionsError(f"{TIME!r} is missing or no time (ISO 8601) in {column.null_count} rows")
    return column.cast(UTC_MICROS, safe=False)


def _clicks(column: pa.ChunkedArray) -> pa.ChunkedArray:
    clicks = _fitted(CLICKED, column, pa.int8(), "0 and 1")
    if not pc.all(pc.fill_null(pc.is_in(clicks, pa.array([0, 1, None], pa.int8())), True)).as_py():
        raise ImpressionsError(f"{CLICKED!r} holds others than 0 and 1: {sorted(set(clicks.to_pylist()) - {None})[:5]}")
    return clicks


def _fitted(name: str, column: pa.ChunkedArray, kind: pa.DataType, allowed: str) -> pa.ChunkedArray:
    try:
        return column.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ImpressionsError(f"{name!r} holds {column.type}, allowed are {allowed}: {error}") from error
