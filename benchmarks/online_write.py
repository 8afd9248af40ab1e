"""Claim: EmbeddingOnlineStore writes 512 floats a row at 0.8 of the driver's speed, and pushes at 3 times stock's.

    uv run python -m benchmarks.online_write [--json] [--fast] [--check]

Ours: `FeatureStore.push` of a frame to the online store through our provider, and `online_write_batch` of rows whose
vectors are one matrix, as KFC has them; and of rows that are protobuf already, as Feast's materialization has them.
The peer: the same push to Feast's stock Cassandra store.
The limit: the driver at its best, given the matrix, inserting into a table that keeps no event time and so cannot tell
which write is the last; 32, 64, 128 and 256 rows in flight, of which the fastest in this very run counts.
All are interleaved in one run, on one real Cassandra, with new items in each round. Rows are acknowledged when the time
ends, and a sample of each round is read back. Five minutes, or less than one with --fast.
"""

import random
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
from feast import FeatureStore
from feast.data_source import PushMode
from feast.protos.feast.types.Value_pb2 import Value
from rich.console import Console
from rich.progress import track

from benchmarks.comparison import DRIVER, Embedded, WrongAnswer, options, publish, running, take_turns, view
from feature_repo.online.columns import swapped
from feature_repo.online.matrix_rows import MatrixRows
from feature_repo.online.rows import RowToWrite, micros
from feature_repo.online.statements import RawStatement, list_of, prepare

CLAIMED_DIM = 512
BATCH_OF_DRIVER, PUSH_FASTER_THAN_STOCK = 0.8, 3.0
ROUNDS = {128: (10, 1000), 512: (30, 1000), 2048: (8, 500)}  # dim → rounds, rows in each
FAST_ROUNDS = {512: (3, 300)}
WARM_UP = 5  # Cassandra compiles as it goes
IN_FLIGHT = (32, 64, 128, 256)
SAMPLE = 5  # rows of each round that are read back
STOCK_WAY, OUR_WAY = "stock, push", "ours, push"
BATCH_WAY, PROTOBUF_WAY = "ours, online_write_batch of a matrix", "ours, online_write_batch of protobuf"
STAMP = struct.Struct(">q").pack


@dataclass(frozen=True, slots=True)
class Round:
    """The same rows in the form in which each way takes them, made before the time starts."""

    embedded: Embedded
    frame: pd.DataFrame
    rows: Sequence[RowToWrite]
    matrix: MatrixRows

    @classmethod
    def of(cls, embedded: Embedded) -> "Round":
        frame = pd.DataFrame(
            {
                "item": embedded.keys,
                "embedding": list(embedded.vectors),
                "embedding_id": np.arange(len(embedded.keys), dtype=np.int64),
                "event_timestamp": datetime.now(UTC),
            }
        )
        matrix = MatrixRows(
            join_key="item",
            keys=embedded.keys,
            feature="embedding",
            vectors=embedded.vectors,
            others={"embedding_id": [Value(int64_val=i) for i in range(len(embedded.keys))]},
            event_time=np.full(len(embedded.keys), micros(datetime.now(UTC))),
        )
        return cls(embedded, frame, embedded.rows(), matrix)


@dataclass(frozen=True, slots=True)
class Way:
    """A way to write: what is timed, and what reads vectors back."""

    write: Callable[[Round], None]
    read: Callable[[Sequence[str], int], Any]


def push_way(store: FeatureStore) -> Way:
    def write(given: Round) -> None:
        store.push(f"{view(given.embedded.dim).name}_push", given.frame, to=PushMode.ONLINE)

    return Way(write, lambda keys, dim: read_back(store, keys, dim))


def batch_way(store: FeatureStore, dim: int, rows_of: Callable[[Round], Sequence[RowToWrite]]) -> Way:
    online = store._get_provider().online_store
    feature_view = store.get_feature_view(view(dim).name)
    return Way(
        lambda given: online.online_write_batch(store.config, feature_view, rows_of(given), None),
        lambda keys, dim: read_back(store, keys, dim),
    )


def read_back(store: FeatureStore, keys: Sequence[str], dim: int) -> Any:
    response = store.get_online_features([f"{view(dim).name}:embedding"], [{"item": key} for key in keys]).proto
    at = list(response.metadata.feature_names.val).index("embedding")
    return [value.float_list_val.val for value in response.results[at].values]


class PlainTable:
    """Rows of the same two features in a table of their own, written with the driver alone."""

    def __init__(self, session: Any, dim: int) -> None:
        self._session = session
        name = f"{DRIVER}.embedding_{dim}"
        session.execute(f"CREATE TABLE {name} (k blob PRIMARY KEY, id bigint, v vector<float, {dim}>)")
        self._insert: RawStatement = prepare(session, f"INSERT INTO {name} (k, id, v) VALUES (?, ?, ?)")  # noqa: S608
        self._select: RawStatement = prepare(session, f"SELECT k, v FROM {name} WHERE k IN ?")  # noqa: S608

    def way(self, in_flight: int) -> Way:
        return Way(lambda given: self._write(given.embedded, in_flight), self._read)

    def _write(self, embedded: Embedded, in_flight: int) -> None:
        places = threading.Semaphore(in_flight)
        failures: list[BaseException] = []

        def failed(error: BaseException) -> None:
            failures.append(error)
            places.release()

        for i, (key, vector) in enumerate(zip(embedded.keys, embedded.vectors, strict=True)):
            places.acquire()
            row = self._insert.bind_raw([key.encode(), STAMP(i), swapped(vector.tobytes())], None)
            self._session.execute_async(row).add_callbacks(lambda _: places.release(), failed)
        for _ in range(in_flight):
            places.acquire()
        if failures:
            raise failures[0]

    def _read(self, keys: Sequence[str], dim: int) -> Any:
        asked = list_of([key.encode() for key in keys])
        rows = dict(self._session.execute(self._select.bind_raw([asked], None)).current_rows)
        return [np.frombuffer(rows[key.encode()], ">f4") for key in keys]


def measured(ways: Mapping[str, Way], dim: int, rounds: int, rows: int) -> dict[str, list[float]]:
    """Rows a second of each way, a round each."""
    shuffle = random.Random(0)  # noqa: S311 - an order, not a secret
    found: dict[str, list[float]] = {name: [] for name in ways}
    shown = f"{rows} rows of {dim}"
    for i in track(range(rounds + WARM_UP), description=shown, console=Console(stderr=True), transient=True):
        # The driver's ways share a table: new items for each, as for all.
        given = {name: Round.of(Embedded.seeded(f"round-{i}-{at}", rows, dim)) for at, name in enumerate(ways)}

        def check(name: str, _: Any, given: Mapping[str, Round] = given) -> None:
            written = given[name].embedded
            if not np.array_equal(ways[name].read(written.keys[:SAMPLE], dim), written.vectors[:SAMPLE]):
                raise WrongAnswer(f"{name}: not what was written")

        writes = {name: (lambda way=way, each=given[name]: way.write(each)) for name, way in ways.items()}
        for name, seconds in take_turns(writes, check, shuffle).items():
            if i >= WARM_UP:
                found[name].append(rows / seconds)
    return found


def compared(dim: int, rows: int, found: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """A row for each way: rows a second, and how many times those of stock and of the driver."""
    medians = {name: float(np.median(speeds)) for name, speeds in found.items()}
    driver = max((name for name in medians if name.startswith("driver")), key=lambda name: medians[name])
    return [
        {
            "dim": dim,
            "way": f"{name} (best)" if name == driver else name,
            "rounds": len(found[name]),
            "rows": rows,
            "rows_per_s": round(median),
            "slowest": round(min(found[name])),
            "fastest": round(max(found[name])),
            "times_stock": round(median / medians[STOCK_WAY], 2),
            "times_driver": round(median / medians[driver], 2),
        }
        for name, median in medians.items()
    ]


def claims(rows: Sequence[Mapping[str, Any]]) -> dict[str, bool]:
    """What is claimed → whether it holds."""
    at = {row["way"]: row for row in rows if row["dim"] == CLAIMED_DIM}
    batch, push = at[BATCH_WAY]["times_driver"], at[OUR_WAY]["times_stock"]
    return {
        f"online_write_batch writes {batch} of the driver's rows, {BATCH_OF_DRIVER} claimed": batch >= BATCH_OF_DRIVER,
        f"push writes {push} times the rows of stock, {PUSH_FASTER_THAN_STOCK} claimed": push >= PUSH_FASTER_THAN_STOCK,
    }


def main() -> None:
    given = options(__doc__)
    rounds = FAST_ROUNDS if given.fast else ROUNDS
    rows = []
    with running(list(rounds)) as cluster, cluster.driver() as session:
        for dim, (count, size) in rounds.items():
            plain = PlainTable(session, dim)
            ways = {
                STOCK_WAY: push_way(cluster.stock),
                OUR_WAY: push_way(cluster.ours),
                BATCH_WAY: batch_way(cluster.ours, dim, lambda given: given.matrix),
                PROTOBUF_WAY: batch_way(cluster.ours, dim, lambda given: given.rows),
                **{f"driver, {in_flight} in flight": plain.way(in_flight) for in_flight in IN_FLIGHT},
            }
            rows += compared(dim, size, measured(ways, dim, count, size))
    publish("Writing embeddings", rows, claims(rows), given)


if __name__ == "__main__":
    main()
