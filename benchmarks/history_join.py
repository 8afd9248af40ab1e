"""Claim: our point-in-time join answers what stock Feast answers, in less time and memory.

    uv run python -m benchmarks.history_join [--json] [--fast] [--check]

20,000 to 200,000 impressions are joined to 60,000 embeddings of 512 floats: 10,000 items with 6 events each, in 60
parts. Ours: `get_historical_features(...).to_arrow()`; the peer: the same call with Feast's duckdb store on the same
parts; the limit: one `ASOF LEFT JOIN` of DuckDB on the same files, without Feast and without a rule for ties.
Each is run in a process of its own, interleaved; seconds are the median without imports, peak RSS is the process's
largest less what it held before the join. Four minutes, or 50 s with --fast (20,000 only).
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
from feast import Entity, FeatureStore, FeatureView, Field, FileSource
from feast.data_format import ParquetFormat
from feast.types import Array, Float32, Int64, String
from feast.value_type import ValueType
from rich.console import Console
from rich.progress import track
from rich.table import Table

from feature_repo.offline.columns import part_schema
from feature_repo.offline.folder import Folder
from feature_repo.offline.parts import append, ensure_schema

DIM = 512
ITEMS = 10_000
EVENTS = 6
PARTS = 60
SIZES = (20_000, 200_000)
OURS, STOCK, LIMIT = "ours", "Feast, duckdb", "limit: DuckDB ASOF"
SPAN = 30 * 86_400_000_000  # µs


def view(folder: Path) -> FeatureView:
    return FeatureView(
        name="items",
        entities=[Entity(name="item", join_keys=["item"], value_type=ValueType.STRING)],
        schema=[
            Field(name="item", dtype=String),
            Field(name="embedding", dtype=Array(Float32)),
            Field(name="embedding_id", dtype=Int64),
        ],
        source=FileSource(
            path=str(folder / "history"),
            file_format=ParquetFormat(),
            timestamp_field="event_timestamp",
            created_timestamp_column="created_timestamp",
        ),
    )


def times(micros: np.ndarray) -> pa.Array:
    return pa.array(1_750_000_000_000_000 + micros, type=pa.timestamp("us", tz="UTC"))


def make(folder: Path) -> None:
    """The feature stores, ours and stock, over one history; impressions of every size."""
    draw = np.random.default_rng(0)
    items = view(folder)
    home = Folder.at(items.batch_source.path)
    schema = part_schema(items)
    ensure_schema(home, schema)
    keys = draw.permutation(np.repeat(np.arange(ITEMS), EVENTS))
    for part in np.array_split(keys, PARTS):
        vectors = draw.standard_normal((len(part), DIM), dtype=np.float32)
        events = draw.integers(SPAN, size=len(part))
        offsets = np.arange(0, (len(part) + 1) * DIM, DIM, dtype=np.int32)
        table = pa.table(
            {
                "item": [f"https://shop.example/{key}.jpg" for key in part],
                "embedding": pa.ListArray.from_arrays(offsets, vectors.ravel()),
                "embedding_id": draw.integers(2**62, size=len(part)),
                "event_timestamp": times(events),
                "created_timestamp": times(events + 2_000_000),
            }
        )
        append(home, schema, "event_timestamp", table)
    for name, offline_store in ((OURS, "feature_repo.offline_store.EmbeddingOfflineStore"), (STOCK, "duckdb")):
        repo = folder / name
        repo.mkdir()
        (repo / "feature_store.yaml").write_text(
            "project: bench\nprovider: local\nregistry: registry.db\nonline_store: {type: sqlite, path: online.db}\n"
            f"offline_store: {{type: {offline_store}}}\nentity_key_serialization_version: 3\n"
        )
        FeatureStore(repo_path=str(repo)).apply(
            [Entity(name="item", join_keys=["item"], value_type=ValueType.STRING), items]
        )
    for size in SIZES:
        shown = draw.integers(ITEMS, size=size)
        frame = pd.DataFrame({"item": [f"https://shop.example/{key}.jpg" for key in shown]})
        frame["event_timestamp"] = times(draw.integers(SPAN, size=size)).to_pandas()
        frame.to_parquet(folder / f"impressions{size}.parquet")


def join(folder: Path, way: str, size: int) -> dict[str, float]:
    """One join, in this process: seconds, MiB, and two numbers that tell the answer."""
    frame = pd.read_parquet(folder / f"impressions{size}.parquet")
    if way == LIMIT:
        import duckdb

        connection = duckdb.connect()
        connection.register("impressions", frame)
        query = (
            "SELECT i.*, h.embedding, h.embedding_id FROM impressions i ASOF LEFT JOIN "  # noqa: S608 - of our own folder
            f"read_parquet('{folder}/history/2*.parquet') h "
            "ON i.item = h.item AND i.event_timestamp >= h.event_timestamp"
        )

        def ask() -> pa.Table:
            return connection.sql(query).to_arrow_table()
    else:
        store = FeatureStore(repo_path=str(folder / way))
        store.get_feature_view("items")

        def ask() -> pa.Table:
            return store.get_historical_features(frame, ["items:embedding", "items:embedding_id"]).to_arrow()

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    table = ask()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    ids = table["embedding_id"].to_numpy(zero_copy_only=False)
    return {
        "seconds": seconds,
        "peak_mib": peak / 1024,
        "rows": table.num_rows,
        "ids": float(np.nansum(np.asarray(ids, dtype=np.float64) % 9973)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--fast", action="store_true", help="a smoke run")
    parser.add_argument("--check", action="store_true", help="exit with 1 where the claim does not hold")
    parser.add_argument("--one", nargs=3, metavar=("FOLDER", "WAY", "SIZE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(join(Path(options.one[0]), options.one[1], int(options.one[2]))))
        return
    sizes = SIZES[:1] if options.fast else SIZES
    rounds = 1 if options.fast else 5
    found: dict[tuple[int, str], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="history-join-") as folder:
        make(Path(folder))
        for _ in track(range(rounds), description="rounds", console=Console(stderr=True), transient=True):
            for size in sizes:
                for way in (OURS, STOCK, LIMIT):
                    command = [
                        sys.executable,
                        "-W",
                        "ignore",
                        "-m",
                        "benchmarks.history_join",
                        "--one",
                        folder,
                        way,
                        str(size),
                    ]
                    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
                    found.setdefault((size, way), []).append(json.loads(done.stdout.splitlines()[-1]))
    rows = []
    for (size, way), runs in found.items():
        seconds = float(np.median([run["seconds"] for run in runs]))
        peak = float(np.median([run["peak_mib"] for run in runs]))
        base = float(np.median([run["seconds"] for run in found[size, LIMIT]]))
        rows.append(
            {
                "impressions": size,
                "way": way,
                "seconds": round(seconds, 2),
                "peak_mib": round(peak),
                "times_limit": round(seconds / base, 2),
            }
        )
    alike = all(
        len({(run["rows"], run["ids"]) for way in (OURS, STOCK, LIMIT) for run in found[size, way]}) == 1
        for size in sizes
    )
    machine = f"{psutil.cpu_count()} cores, {psutil.virtual_memory().total >> 30} GiB, {platform.platform()}"
    if options.json:
        print(
            json.dumps(
                {"machine": machine, "dim": DIM, "items": ITEMS, "events": EVENTS, "alike": alike, "rows": rows},
                indent=2,
            )
        )
    else:
        table = Table(
            title=f"Impressions joined to {ITEMS * EVENTS} x {DIM} floats on {machine}; same answers: {alike}"
        )
        for column in rows[0]:
            table.add_column(column, justify="left" if column == "way" else "right")
        for row in rows:
            table.add_row(*map(str, row.values()))
        Console(width=120).print(table)
    by = {(row["impressions"], row["way"]): row for row in rows}
    holds = alike and all(
        float(str(by[size, OURS][what])) < float(str(by[size, STOCK][what]))
        for size in sizes
        for what in ("seconds", "peak_mib")
    )
    if options.check and not holds:
        sys.exit(f"the claim does not hold: {rows}")


if __name__ == "__main__":
    main()
