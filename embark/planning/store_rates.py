"""How fast the online store of a scratch project is read and written, by one process."""

import time
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from embark.planning.scratch import DIMS, Bench
from encoders.spec import EncoderSpec
from feature_repo.online_rows import FeastOnlineRows
from materializer.archive import EmbeddedBatch, FeastArchive

SECONDS = 2.0  # of each measurement
CALL = 500  # keys, as a ranker has candidates
BATCH = 500  # rows: as many as KFC writes at a time
MOST_ROWS = 20_000


def writes(bench: Bench) -> tuple[float, dict[int, list[str]]]:
    """Rows a second of the longest embeddings; and the keys that were written, by dim."""
    archive = FeastArchive(bench.store, FeastOnlineRows(bench.store))
    keys: dict[int, list[str]] = {}
    rate = 0.0
    for dim in DIMS:
        vectors = np.random.default_rng(dim).standard_normal((BATCH, dim), dtype=np.float32)
        spent: list[float] = []
        keys[dim] = []
        while len(spent) < 3 or (sum(spent) < SECONDS and len(keys[dim]) < MOST_ROWS):
            batch = _batch(bench.specs[dim], len(keys[dim]), vectors)
            began = time.perf_counter()
            archive.write_online(bench.specs[dim], batch)
            spent.append(time.perf_counter() - began)
            keys[dim] += batch.keys
        rate = BATCH / float(np.median(spent[1:]))  # the first prepares statements
    return round(rate, 1), keys


def _batch(spec: EncoderSpec, first: int, vectors: NDArray[np.float32]) -> EmbeddedBatch:
    now = time.time_ns() // 1000
    return EmbeddedBatch.of(
        spec.view,
        keys=[f"title {i}" for i in range(first, first + len(vectors))],
        vectors=vectors,
        event_time=np.full(len(vectors), now, dtype=np.int64),
        content_hash=("00" * 16,) * len(vectors),
        created_at=now,
    )


def reads(bench: Bench, keys: Mapping[int, Sequence[str]]) -> tuple[float, float]:
    """Microseconds of a row where 500 are read at a time: of the row, and of each float in it."""
    online, draw = FeastOnlineRows(bench.store), np.random.default_rng(0)
    of_a_row: dict[int, float] = {}
    for dim in DIMS:
        spent: list[float] = []
        until = time.perf_counter() + SECONDS
        while time.perf_counter() < until or len(spent) < 3:
            asked = [keys[dim][i] for i in draw.choice(len(keys[dim]), CALL, replace=False)]
            began = time.perf_counter()
            online.read(bench.specs[dim], asked)
            spent.append(time.perf_counter() - began)
        of_a_row[dim] = float(np.median(spent)) / CALL * 1e6
    few, many = DIMS
    of_a_float = max((of_a_row[many] - of_a_row[few]) / (many - few), 1e-4)  # noise may have it backwards
    return round(max(of_a_row[many] - many * of_a_float, 0.1), 2), round(of_a_float, 5)
