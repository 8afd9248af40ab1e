"""Histories for tests: a feature store in a folder, views of several kinds, and a slow join to compare with."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pyarrow as pa
from feast import Entity, FeatureStore, FeatureView, Field, FileSource
from feast.credentials import ConnectionRef
from feast.data_format import ParquetFormat
from feast.types import Array, Float32, Int64, String
from feast.value_type import ValueType

from feature_repo.offline_store import EmbeddingOfflineStore, ensure_readable

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
OURS = "feature_repo.offline_store.EmbeddingOfflineStore"
STOCK = "duckdb"


def open_store(folder: Path, offline_store: str = OURS, **settings: object) -> FeatureStore:
    """A feature store with its registry in `folder`; its offline store ours, or `duckdb`."""
    more = "".join(f", {name}: {value}" for name, value in settings.items())
    name = "ours" if offline_store == OURS else "stock"
    config, written = folder / f"{name}.yaml", folder / f"{name}.{os.getpid()}"
    written.write_text(
        "project: history\nprovider: local\nregistry: {path: registry.db, cache_ttl_seconds: 0}\n"
        "online_store: {type: sqlite, path: online.db}\n"
        f"offline_store: {{type: {offline_store}{more}}}\n"
        "entity_key_serialization_version: 3\n"
    )
    written.replace(config)  # at once: other processes open a store of the same folder
    return FeatureStore(repo_path=str(folder), fs_yaml_file=config)


def item_view(
    folder: Path | str,
    name: str = "items",
    *,
    keys: Sequence[str] = ("item",),
    types: Sequence[ValueType] = (ValueType.STRING,),
    ttl: timedelta = timedelta(0),
    created: bool = True,
    mapping: dict[str, str] | None = None,
    s3_endpoint: str | None = None,
    connection_ref: ConnectionRef | None = None,
) -> tuple[list[Entity], FeatureView]:
    """A view of a vector and a number, whose parts lie in `folder / name`."""
    entities = [Entity(name=k, join_keys=[k], value_type=t) for k, t in zip(keys, types, strict=True)]
    dtypes = {ValueType.STRING: String, ValueType.INT64: Int64}
    view = FeatureView(
        name=name,
        entities=entities,
        ttl=ttl,
        schema=[
            *(Field(name=k, dtype=dtypes[t]) for k, t in zip(keys, types, strict=True)),
            Field(name="vector", dtype=Array(Float32)),
            Field(name="number", dtype=Int64),
        ],
        source=FileSource(
            name=f"{name}_source",
            path=f"{folder}/{name}",
            file_format=ParquetFormat(),
            timestamp_field="event_timestamp",
            created_timestamp_column="created_timestamp" if created else "",
            field_mapping=mapping or {},
            s3_endpoint_override=s3_endpoint,
            connection_ref=connection_ref,
        ),
    )
    return entities, view


@dataclass(frozen=True, slots=True)
class Row:
    """A row of history; times in minutes after noon, None a null."""

    key: tuple[object, ...]
    event: int | None
    created: int | None
    number: int | None


def table_of(view: FeatureView, rows: Sequence[Row]) -> pa.Table:
    """The rows with the columns of the view; a row's vector tells its number."""
    keys = [c.name for c in view.entity_columns]
    columns: dict[str, pa.Array] = {
        name: pa.array([row.key[i] for row in rows], type=pa.int64() if "int" in str(kind) else pa.string())
        for i, (name, kind) in enumerate(zip(keys, (str(c.dtype).lower() for c in view.entity_columns), strict=True))
    }
    vectors = [None if row.number is None else [float(row.number), 0.5] for row in rows]
    columns["vector"] = pa.array(vectors, type=pa.list_(pa.float32()))
    columns["number"] = pa.array([row.number for row in rows], type=pa.int64())
    columns["event_timestamp"] = pa.array([at(row.event) for row in rows], type=pa.timestamp("us", tz="UTC"))
    if view.batch_source.created_timestamp_column:
        columns["created_timestamp"] = pa.array([at(row.created) for row in rows], type=pa.timestamp("us", tz="UTC"))
    return pa.table(columns)


def at(minutes: int | None) -> datetime | None:
    return None if minutes is None else NOON + timedelta(minutes=minutes)


def push(store: FeatureStore, view: FeatureView, rows: Sequence[Row], *, zone: str | None = "UTC") -> None:
    """Appends the rows as one part; their times told in that zone, or in UTC without saying so."""
    table = table_of(view, rows)
    for place, name in enumerate(table.column_names):
        if pa.types.is_timestamp(table.schema.field(name).type):
            table = table.set_column(place, name, table[name].cast(pa.timestamp("us", tz=zone)))
    EmbeddingOfflineStore.offline_write_batch(store.config, view, table, None)


def apply(store: FeatureStore, *views: tuple[list[Entity], FeatureView]) -> None:
    for _, view in views:
        ensure_readable(view)
    store.apply([each for entities, view in views for each in (*entities, view)])


def entity_rows(keys: Sequence[str], asked: Sequence[tuple[object, ...]]) -> pd.DataFrame:
    """Entity rows from (key, …, minutes after noon)."""
    frame = pd.DataFrame([row[:-1] for row in asked], columns=list(keys))
    frame["event_timestamp"] = pd.Series([at(row[-1]) for row in asked], dtype="datetime64[us, UTC]")  # type: ignore[arg-type]
    return frame


def standing(
    rows: Sequence[Row], key: tuple[object, ...], moment: int, *, ttl: int | None = None, as_served: bool = False
) -> set[int | None]:
    """What a slow reading of the rules answers: the numbers that may be found, one where the rules leave no choice."""
    visible = [
        row
        for row in rows
        if None not in row.key
        and row.key == key
        and row.event is not None
        and row.event <= moment
        and (ttl is None or row.event + ttl >= moment)
        and (not as_served or (row.created is not None and row.created <= moment))
    ]
    if not visible:
        return {None}

    def rank(row: Row) -> tuple[int, bool, int]:
        return row.event or 0, row.created is not None, row.created or 0

    best = max(map(rank, visible))
    return {row.number for row in visible if rank(row) == best}
