"""How fast the online store of a scratch project is read and written, by one process."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from embark.planning.scratch import DIMS, Bench
from encoders.spec import EncoderSpec
from feature_repo.online_rows import FeastOnlineRows
from materializer.archive import EmbeddedBatch, FeastArchive

SECONDS = 2.0  # of each measurement
WARM_SECONDS = 4.0  # before: a Cassandra that was just started is several times slower, since it compiles as it goes
CALL = 500  # keys, as a ranker has candidates
BATCH = 500  # rows: as many as KFC writes at a time
MOST_ROWS = 20_000
LEAST_TURNS = 3

Given = TypeVar("Given")


def writes(bench: Bench) -> tuple[float, dict[int, list[str]]]:
    """Rows a second of the longest embeddings; and the keys that were written, by dim."""
    archive = FeastArchive(bench.store, FeastOnlineRows(bench.store))
    vectors = {dim: np.random.default_rng(dim).standard_normal((BATCH, dim), dtype=np.float32) for dim in DIMS}

    def batch(dim: int, turn: int) -> EmbeddedBatch:
        first = turn * BATCH % MOST_ROWS  # beyond so many the same keys again: enough for look-ups to choose from
        return _batch(bench.specs[dim], first, vectors[dim])

    seconds, turns = _in_turns(batch, lambda dim, rows: archive.write_online(bench.specs[dim], rows))
    keys = [_key(i) for i in range(min(turns * BATCH, MOST_ROWS))]
    return round(BATCH / seconds[DIMS[-1]], 1), dict.fromkeys(DIMS, keys)


def reads(bench: Bench, keys: Mapping[int, Sequence[str]]) -> tuple[float, float]:
    """Microseconds of a row where 500 are read at a time: of the row, and of each float in it."""
    online, draw = FeastOnlineRows(bench.store), np.random.default_rng(0)

    def asked(dim: int, turn: int) -> list[str]:
        return [keys[dim][i] for i in draw.choice(len(keys[dim]), CALL, replace=False)]

    seconds, _ = _in_turns(asked, lambda dim, call: online.read(bench.specs[dim], call))
    few, many = (seconds[dim] / CALL * 1e6 for dim in DIMS)
    of_a_float = max((many - few) / (DIMS[1] - DIMS[0]), 1e-4)  # noise may have it backwards
    return round(max(many - DIMS[1] * of_a_float, 0.1), 2), round(of_a_float, 5)


def _in_turns(prepare: Callable[[int, int], Given], do: Callable[[int, Given], object]) -> tuple[dict[int, float], int]:
    """The median of the seconds that something takes, by dim; and how many turns there were, warm-up included.

    Dims come in turns: what slows the machine down slows both.
    """
    spent: dict[int, list[float]] = {dim: [] for dim in DIMS}
    warm = time.perf_counter() + WARM_SECONDS
    turns = 0
    while time.perf_counter() < warm + SECONDS or len(spent[DIMS[-1]]) < LEAST_TURNS:
        for dim in DIMS:
            given = prepare(dim, turns)
            began = time.perf_counter()
            do(dim, given)
            if began >= warm:
                spent[dim].append(time.perf_counter() - began)
        turns += 1
    return {dim: float(np.median(each)) for dim, each in spent.items()}, turns


def _key(number: int) -> str:
    return f"title {number}"


def _batch(spec: EncoderSpec, first: int, vectors: NDArray[np.float32]) -> EmbeddedBatch:
    now = time.time_ns() // 1000
    return EmbeddedBatch.of(
        spec.view,
        keys=[_key(i) for i in range(first, first + len(vectors))],
        vectors=vectors,
        event_time=np.full(len(vectors), now, dtype=np.int64),
        content_hash=("00" * 16,) * len(vectors),
        created_at=now,
    )
