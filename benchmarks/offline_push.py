"""Claim: appending to history costs the same at a million embeddings as at ten thousand (within 1.5 times).

    uv run python -m benchmarks.offline_push [--json] [--fast] [--check]
    uv run --with "deltalake<1" python -m benchmarks.offline_push [--stock-rows N]

Ours: `FeatureStore.push(to=OFFLINE)` of 256 embeddings of 512 floats into a history of parquet parts.
The peers: the same push with Feast's own duckdb store, into one parquet file (which it rewrites), and, where
`deltalake` is installed, into a Delta table (which it appends to).
The limit: the same rows written by pyarrow into a new file and fsynced.
History is as pushing leaves it without a compaction, files of 256 rows, for ours and Delta alike: their worst case.
Ways are interleaved, round by round. Stock holds its history in memory three times over and takes part in few rounds:
`--stock-rows` says up to which length (100,000 unless told; a million takes 8 GB and a minute a push). Three minutes
and 3 GB of disk, or 50 s with --fast (10k to 100k).
"""

import argparse
import importlib.util
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, PushSource
from feast.data_format import DeltaFormat, FileFormat, ParquetFormat
from feast.data_source import PushMode
from feast.types import Array, Float32, Int64, String
from feast.value_type import ValueType
from rich.console import Console
from rich.progress import track
from rich.table import Table

from feature_repo.offline.columns import part_schema
from feature_repo.offline.folder import Folder
from feature_repo.offline.parts import append
from feature_repo.offline_store import ensure_readable, parts_folder

DIM = 512
BATCH = 256
CLAIM = 1.5
SIZES = (10_000, 100_000, 1_000_000)
OURS, STOCK, LIMIT = "ours", "Feast, duckdb, one file", "limit: pyarrow + fsync"


def batch(draw: np.random.Generator, count: int = BATCH) -> pd.DataFrame:
    """`count` embeddings of one view."""
    now = pd.DatetimeIndex([datetime.now(UTC)] * count).as_unit("us")
    return pd.DataFrame(
        {
            "item": [f"https://shop.example/{i}.jpg" for i in draw.integers(10**6, size=count)],
            "embedding": list(draw.standard_normal((count, DIM), dtype=np.float32)),
            "embedding_id": draw.integers(2**62, size=count),
            "event_timestamp": now,
            "created_timestamp": now,
        }
    )


def open_history(
    folder: Path, offline_store: str, path: Path, file_format: FileFormat
) -> tuple[FeatureStore, FeatureView]:
    """A feature store whose one view keeps its history at `path`, where the columns are told already."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "feature_store.yaml").write_text(
        "project: bench\nprovider: local\nregistry: registry.db\nonline_store: {type: sqlite, path: online.db}\n"
        f"offline_store: {{type: {offline_store}}}\nentity_key_serialization_version: 3\n"
    )
    store = FeatureStore(repo_path=str(folder))
    source = FileSource(
        name="history",
        path=str(path),
        file_format=file_format,
        timestamp_field="event_timestamp",
        created_timestamp_column="created_timestamp",
    )
    view = FeatureView(
        name="items",
        entities=[store_entity()],
        schema=[
            Field(name="item", dtype=String),
            Field(name="embedding", dtype=Array(Float32)),
            Field(name="embedding_id", dtype=Int64),
        ],
        source=PushSource(name="push", batch_source=source),
    )
    return store, view


def applied(store: FeatureStore, view: FeatureView) -> Callable[[pd.DataFrame], None]:
    store.apply([store_entity(), view])
    return lambda frame: store.push("push", frame, to=PushMode.OFFLINE)


def store_entity() -> Entity:
    return Entity(name="item", join_keys=["item"], value_type=ValueType.STRING)


def ours(folder: Path, size: int, draw: np.random.Generator) -> Callable[[pd.DataFrame], None]:
    """A history of `size` rows in parts of BATCH: one part, and hard links to it under the names of others."""
    store, view = open_history(
        folder, "feature_repo.offline_store.EmbeddingOfflineStore", folder / "history", ParquetFormat()
    )
    ensure_readable(view)
    home = parts_folder(view)
    assert home is not None  # noqa: S101 - it is one
    schema = part_schema(view)
    name = append(Folder.at(str(home)), schema, "event_timestamp", table(batch(draw), schema))
    for i in range(1, size // BATCH):
        os.link(home / name, home / f"{name.removesuffix('.parquet')}{i:06}.parquet")
    return applied(store, view)


def stock(folder: Path, size: int, draw: np.random.Generator) -> Callable[[pd.DataFrame], None]:
    """One file of `size` rows."""
    store, view = open_history(folder, "duckdb", folder / "history.parquet", ParquetFormat())
    schema = part_schema(view)
    rows = table(batch(draw, 4096), schema)
    with pq.ParquetWriter(folder / "history.parquet", schema, compression="zstd", use_dictionary=False) as writer:
        for start in range(0, size, 4096):
            writer.write_table(rows.slice(0, min(4096, size - start)))
    return applied(store, view)


def delta(folder: Path, size: int, draw: np.random.Generator) -> Callable[[pd.DataFrame], None]:
    """A Delta table of `size` rows in files of BATCH: one file, and entries of its log that add links to it."""
    import deltalake

    store, view = open_history(folder, "duckdb", folder / "delta", DeltaFormat())
    schema = part_schema(view)
    deltalake.write_deltalake(str(folder / "delta"), table(batch(draw), schema))
    log = folder / "delta" / "_delta_log"
    (first,) = (folder / "delta").glob("*.parquet")
    added = next(
        entry for line in (log / f"{0:020}.json").read_text().splitlines() if "add" in (entry := json.loads(line))
    )
    for i in range(1, size // BATCH):
        name = f"part-{i:05}-{first.name}"
        os.link(first, first.with_name(name))
        (log / f"{i:020}.json").write_text(json.dumps({"add": {**added["add"], "path": name}}) + "\n")
    deltalake.DeltaTable(str(folder / "delta")).create_checkpoint()  # as Delta's writers leave one from time to time
    return applied(store, view)


def limit(folder: Path, draw: np.random.Generator) -> Callable[[pd.DataFrame], None]:
    """pyarrow, a new file, fsync."""
    folder.mkdir(parents=True)
    names = iter(range(1_000_000))

    def write(frame: pd.DataFrame) -> None:
        with (folder / f"{next(names)}.parquet").open("wb") as file:
            pq.write_table(
                pa.Table.from_pandas(frame, preserve_index=False), file, compression="zstd", use_dictionary=False
            )
            file.flush()
            os.fsync(file.fileno())

    return write


def table(frame: pd.DataFrame, schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pandas(frame, preserve_index=False).select(schema.names).cast(schema)


def measured(folder: Path, sizes: tuple[int, ...], rounds: int, stock_up_to: int) -> list[dict[str, object]]:
    """Milliseconds of a push, by length of history and way."""
    draw = np.random.default_rng(0)
    ways: dict[tuple[int, str], Callable[[pd.DataFrame], None]] = {}
    for size in track(sizes, description="histories", console=Console(stderr=True), transient=True):
        ways[size, OURS] = ours(folder / f"ours{size}", size, draw)
        if size <= stock_up_to:
            ways[size, STOCK] = stock(folder / f"stock{size}", size, draw)
        if importlib.util.find_spec("deltalake"):
            ways[size, "Feast, duckdb, Delta"] = delta(folder / f"delta{size}", size, draw)
        ways[size, LIMIT] = limit(folder / f"limit{size}", draw)
    found: dict[tuple[int, str], list[float]] = {way: [] for way in ways}
    for i in track(range(rounds + 2), description="rounds", console=Console(stderr=True), transient=True):
        for way, write in ways.items():
            slow = way[1] == STOCK and way[0] > SIZES[0]
            if slow and i > 3:
                continue
            frame = batch(draw)
            start = time.perf_counter()
            write(frame)
            if i >= (1 if slow else 2):  # the first ones warm caches up
                found[way].append((time.perf_counter() - start) * 1000)
    rows: list[dict[str, object]] = []
    for (size, name), milliseconds in found.items():
        if not milliseconds:
            continue
        p50, p90 = np.percentile(milliseconds, [50, 90])
        at_limit = float(np.median(found[size, LIMIT]))
        rows.append(
            {
                "history": size,
                "way": name,
                "pushes": len(milliseconds),
                "p50_ms": round(float(p50), 1),
                "p90_ms": round(float(p90), 1),
                "times_limit": round(float(p50) / at_limit, 1),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--fast", action="store_true", help="a smoke run")
    parser.add_argument("--check", action="store_true", help="exit with 1 where the claim does not hold")
    parser.add_argument("--stock-rows", type=int, default=100_000, help="the longest history for stock Feast")
    options = parser.parse_args()
    sizes = SIZES[:2] if options.fast else SIZES
    folder = Path(tempfile.mkdtemp(prefix="offline-push-"))
    try:
        rows = measured(folder, sizes, 12 if options.fast else 25, SIZES[0] if options.fast else options.stock_rows)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    by_size = {row["history"]: float(str(row["p50_ms"])) for row in rows if row["way"] == OURS}
    growth = by_size[sizes[-1]] / by_size[sizes[0]]
    machine = f"{psutil.cpu_count()} cores, {psutil.virtual_memory().total >> 30} GiB, {platform.platform()}"
    if options.json:
        print(
            json.dumps(
                {"machine": machine, "dim": DIM, "batch": BATCH, "growth": round(growth, 2), "rows": rows}, indent=2
            )
        )
    else:
        shown = Table(title=f"A push of {BATCH} x {DIM} floats on {machine}; ours grows {growth:.2f} times")
        for column in rows[0]:
            shown.add_column(column, justify="left" if column == "way" else "right")
        for row in rows:
            shown.add_row(*map(str, row.values()))
        Console(width=120).print(shown)
    if options.check and growth > CLAIM:
        sys.exit(f"the claim does not hold: {by_size}")


if __name__ == "__main__":
    main()
