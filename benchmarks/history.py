"""Claim: a click log gets the embeddings that stock Feast gives it, in a fraction of the time and memory.

    uv run python -m benchmarks.history [--json] [--fast] [--check]

Embeddings of 512 floats, read as of each impression's time, to torch tensors. Ours: `historical_embeddings`; the peer:
Feast's duckdb store on the same parts, `get_historical_features(...).to_arrow()`, its lists made one (N, 512) tensor as
fast as arrow and numpy allow. Each run is a process of its own; seconds are without imports, peak RSS is the process's
largest less what it held before; every process answers a checksum of all rows, which must agree.

    1,000,000 impressions of 20,000 items with 2 versions    ours 5 times faster, a fifth of the memory
    60,000 impressions of 2,000 items with 100 versions      ours 10 times faster: stock joins all versions of a key
    10,000,000 impressions in a parquet folder, ours alone   within 8 GB of the whole process

Stock joins each impression to all versions of its key with their vectors, 100 kB an impression in the second case: at
200,000 impressions it was killed for want of memory on 23 GiB. Of the third case stock's answer alone would be 20 GB.
Ten minutes; 40 s with --fast.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from feast import Entity, FeatureStore
from feast.value_type import ValueType
from rich.console import Console
from rich.progress import track

from benchmarks.comparison import publish
from encoders.spec import EncoderSpec
from feature_repo.embeddings import embedding_id
from feature_repo.offline.columns import part_schema
from feature_repo.offline.parts import append, ensure_schema, folder_of
from feature_repo.views import feature_view

SPEC = EncoderSpec(
    name="bench", version="v1", modality="image", dim=512, network="torchvision:resnet18", pinned="seeded:0"
)
START, SPAN = 1_767_225_600_000_000, 30 * 86_400_000_000  # µs
PART_ROWS = 20_000
LOG_ROWS = 1_000_000  # of one file of a log
OURS, STOCK = "ours", "Feast, duckdb"
LIMIT_GB = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """One comparison: `faster` and `smaller` are what is claimed, None where stock is not run."""

    impressions: int
    items: int
    versions: int
    rounds: int
    faster: float | None
    smaller: float | None

    @property
    def name(self) -> str:
        return f"{self.impressions}-{self.items}-{self.versions}"


FULL = (
    Size(impressions=1_000_000, items=20_000, versions=2, rounds=2, faster=5, smaller=5),
    Size(impressions=60_000, items=2_000, versions=100, rounds=2, faster=10, smaller=None),
    Size(impressions=10_000_000, items=20_000, versions=2, rounds=1, faster=None, smaller=None),
)
FAST = (
    Size(impressions=20_000, items=1_000, versions=2, rounds=1, faster=1, smaller=None),
    Size(impressions=50_000, items=1_000, versions=2, rounds=1, faster=None, smaller=None),
)


def url(item: int) -> str:
    return f"http://shop.example/catalogue/images/{item}.jpg"


def times(micros: np.ndarray) -> pa.Array:
    return pa.array(START + micros).cast(pa.timestamp("us", tz="UTC"))


def make(folder: Path, size: Size) -> None:
    """Two feature stores, ours and stock, over one history; and a click log in files."""
    draw = np.random.default_rng(0)
    entity = Entity(name="image", join_keys=["image_url"], value_type=ValueType.STRING)
    view = feature_view(SPEC, entity, folder)
    home = folder_of(view.batch_source)
    assert home is not None  # noqa: S101 - an encoder's history is a folder
    schema = ensure_schema(home, part_schema(view))
    keys = draw.permutation(np.repeat(np.arange(size.items), size.versions))
    for part in np.array_split(keys, max(2, len(keys) // PART_ROWS)):
        vectors = draw.standard_normal((len(part), SPEC.dim), dtype=np.float32)
        events = draw.integers(SPAN, size=len(part))
        pairs = zip(part.tolist(), events.tolist(), vectors, strict=True)
        table = pa.table(
            {
                "image_url": [url(key) for key in part],
                "embedding": pa.ListArray.from_arrays(
                    np.arange(0, (len(part) + 1) * SPEC.dim, SPEC.dim, dtype=np.int32), vectors.ravel()
                ),
                "embedding_id": [embedding_id(SPEC.view, url(key), START + event, v) for key, event, v in pairs],
                "content_hash": [""] * len(part),
                "event_timestamp": times(events),
                "created_timestamp": times(events + 2_000_000),
            }
        )
        append(home, schema, "event_timestamp", table)
    for name, offline_store in ((OURS, "feature_repo.offline_store.EmbeddingOfflineStore"), (STOCK, "duckdb")):
        (folder / name).mkdir()
        (folder / name / "feature_store.yaml").write_text(
            "project: bench\nprovider: local\nregistry: registry.db\nonline_store: {type: sqlite, path: online.db}\n"
            f"offline_store: {{type: {offline_store}}}\nentity_key_serialization_version: 3\n"
        )
        FeatureStore(repo_path=str(folder / name)).apply([entity, view])
    (folder / "log").mkdir()
    for start in range(0, size.impressions, LOG_ROWS):
        count = min(LOG_ROWS, size.impressions - start)
        urls = pa.array([url(item) for item in range(size.items)])
        log = {
            "event_timestamp": times(draw.integers(SPAN, size=count)),
            "clicked": pa.array(draw.integers(2, size=count), pa.int8()),
            "image_url": urls.take(pa.array(draw.integers(size.items, size=count))),
        }
        pq.write_table(pa.table(log), folder / "log" / f"{start:09}.parquet")


def once(folder: Path, way: str, size: Size) -> dict[str, Any]:
    """One reading, in this process: seconds, MiB, and a checksum of every impression's vector."""
    Path("/proc/self/oom_score_adj").write_text("1000")  # where memory runs out, it is this process that goes

    import torch  # both ways need it: no part of either's time or memory

    from training.history import historical_embeddings
    from training.impressions import read_impressions

    store = FeatureStore(repo_path=str(folder / way))
    store.get_feature_view(SPEC.view)
    # What both start from is no part of either: the log, in memory where it is small enough for stock.
    log = read_impressions(folder / "log") if size.faster else folder / "log"
    before = peak()
    start = time.perf_counter()
    if way == OURS:
        tensors = historical_embeddings(store, log, [SPEC.view], "as_served")[SPEC.view].torch()
        seconds, most = time.perf_counter() - start, peak()
        weights = torch.from_numpy(np.linspace(-1, 1, SPEC.dim, dtype=np.float32))
        sums = (tensors.vectors @ weights)[tensors.rows]
    elif isinstance(log, Path):
        raise ValueError(f"{STOCK} takes only impressions that are in memory")
    else:
        frame = log.frame[["image_url", "event_timestamp"]].assign(row=np.arange(len(log)))
        table = store.get_historical_features(
            frame, [f"{SPEC.view}:embedding"], filter_by_created_timestamp=True
        ).to_arrow()
        vectors = stock_tensor(table)
        seconds, most = time.perf_counter() - start, peak()
        weights = torch.from_numpy(np.linspace(-1, 1, SPEC.dim, dtype=np.float32))
        sums = torch.empty(len(vectors))
        sums[torch.from_numpy(table["row"].to_numpy())] = vectors @ weights
    places = torch.arange(len(sums), dtype=torch.float64) % 997 + 1  # so that no two impressions can be exchanged
    return {
        "seconds": seconds,
        "peak_mib": (most - before) / 1024,
        "process_mib": most / 1024,
        "rows": len(sums),
        "checksum": float((sums.double() * places).mean()),
    }


def stock_tensor(table: pa.Table) -> Any:
    """The lists of an answer as (N, dim), zeros where null; without a Python object a float."""
    import torch

    column = table["embedding" if "embedding" in table.column_names else f"{SPEC.view}__embedding"]
    vectors = np.zeros((len(column), SPEC.dim), dtype=np.float32)
    start = 0
    for chunk in column.chunks:
        there = pc.is_valid(chunk).to_numpy(zero_copy_only=False)
        vectors[start : start + len(chunk)][there] = chunk.flatten().to_numpy().reshape(-1, SPEC.dim)
        start += len(chunk)
    return torch.from_numpy(vectors)


def peak() -> int:
    """KiB: the most that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--fast", action="store_true", help="a smoke run")
    parser.add_argument("--check", action="store_true", help="exit with 1 where the claim does not hold")
    parser.add_argument("--one", nargs=3, metavar=("FOLDER", "WAY", "SIZE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        folder, way, size = options.one
        print(json.dumps(once(Path(folder), way, Size(**json.loads(size)))))
        return
    rows: list[dict[str, Any]] = []
    claims: dict[str, bool] = {}
    for size in FAST if options.fast else FULL:
        with tempfile.TemporaryDirectory(prefix="history-") as folder:
            make(Path(folder), size)
            compare(Path(folder), size, rows, claims)
        print(json.dumps(rows[-2:]), file=sys.stderr)  # what was found is kept if a later size fails
    publish(f"Impressions to tensors of {SPEC.dim} floats", rows, claims, options)


def compare(folder: Path, size: Size, rows: list[dict[str, Any]], claims: dict[str, bool]) -> None:
    """Runs the ways in turn and adds what was found."""
    found: dict[str, list[dict[str, Any]]] = {}
    bar = track(range(size.rounds), size.name, console=Console(stderr=True), transient=True)
    for _ in bar:
        for way in (OURS, STOCK) if size.faster else (OURS,):
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.history"]
            command += ["--one", str(folder), way, json.dumps(asdict(size))]
            done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - ourselves
            if done.returncode:
                sys.exit(f"{way} at {size.name} ended with {done.returncode}:\n{done.stderr[-2000:]}")
            found.setdefault(way, []).append(json.loads(done.stdout.splitlines()[-1]))
    median = {
        way: {what: float(np.median([run[what] for run in runs])) for what in ("seconds", "peak_mib", "process_mib")}
        for way, runs in found.items()
    }
    for way, of_way in median.items():
        rows.append(
            {
                "impressions": size.impressions,
                "versions": f"{size.items} x {size.versions}",
                "way": way,
                "seconds": round(of_way["seconds"], 2),
                "peak_mib": round(of_way["peak_mib"]),
                "process_mib": round(of_way["process_mib"]),
                "stock_seconds": round(median[STOCK]["seconds"] / of_way["seconds"], 1) if STOCK in median else None,
                "stock_peak": round(median[STOCK]["peak_mib"] / of_way["peak_mib"], 1) if STOCK in median else None,
            }
        )
    if size.faster:
        runs = [run for each in found.values() for run in each]
        sums = [run["checksum"] for run in runs]
        alike = len({run["rows"] for run in runs}) == 1 and np.allclose(sums, sums[0], rtol=0, atol=1e-3)
        claims[f"{size.name}: equal values"] = bool(alike)
        ratio = median[STOCK]["seconds"] / median[OURS]["seconds"]
        claims[f"{size.name}: {size.faster:g} times faster"] = ratio >= size.faster
    if size.smaller:
        ratio = median[STOCK]["peak_mib"] / median[OURS]["peak_mib"]
        claims[f"{size.name}: 1/{size.smaller:g} of the memory"] = ratio >= size.smaller
    if not size.faster:
        claims[f"{size.name}: within {LIMIT_GB} GB"] = median[OURS]["process_mib"] * 1.048576 < LIMIT_GB * 1000


if __name__ == "__main__":
    main()
