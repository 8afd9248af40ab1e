"""Claim: EmbArk answers one key, known or not, in under 20 ms at p50, on real Cassandra and Kafka on one machine.

    uv run python -m benchmarks.lookup [--json] [--fast] [--check]

Ours: `embark serve` over gRPC, hits and keys never seen before (OOV, which are also requested through Kafka).
The peer: `FeatureStore.get_online_features` in process, on the same rows of the same stock Cassandra store.
The limit: a call of gRPC's health service on the same server: what any answer costs here.
All four are interleaved in one run; two minutes, or half of one with --fast.
"""

import argparse
import itertools
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import numpy as np
import psutil
from feast import FeatureStore
from feast.data_source import PushMode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rich.console import Console
from rich.progress import track
from rich.table import Table

from embark.child_process import ChildProcess
from embark.repo import open_store, write_repo
from embark.servers import LocalServers, free_port
from embark.settings import Settings
from encoders.client import memory_vector
from encoders.spec import EncoderSpec
from feature_repo.embeddings import Status
from feature_repo.views import feast_objects, push_source_name
from materializer.archive import EmbeddedBatch, table
from serving.client import EmbArkClient

SPEC = EncoderSpec(name="text_lstm", version="v1", modality="text", dim=512, network="text_lstm", weights="seeded:0")
CLAIM_MS = 20.0
ROWS = 2000
SIZES = (1, 100)


@contextmanager
def running(folder: Path) -> Iterator[tuple[FeatureStore, str]]:
    """An applied feature store with ROWS embeddings online, and the address of an EmbArk over it."""
    servers = LocalServers(state=folder / "servers", kafka_port=free_port(), cassandra_port=free_port())
    settings = Settings(repo=folder / "repo", embark_address=f"127.0.0.1:{free_port()}")
    with ExitStack() as stack:
        stack.callback(servers.down)
        servers.up()
        write_repo(settings.repo, kafka=servers.kafka_bootstrap, cassandra_port=servers.cassandra_port)
        store = open_store(settings.repo)
        store.apply(list(feast_objects([SPEC], {}, kafka=servers.kafka_bootstrap, repo=settings.repo).values()))
        keys = known_keys()
        batch = EmbeddedBatch.of(
            SPEC.view,
            keys=keys,
            vectors=np.stack([memory_vector(key, SPEC.dim) for key in keys]),
            event_time=np.full(len(keys), 1_700_000_000_000_000, dtype=np.int64),
            content_hash=("00",) * len(keys),
            created_at=1_700_000_000_000_000,
        )
        store.push(push_source_name(SPEC.view), table(SPEC, batch).to_pandas(), to=PushMode.ONLINE)
        log = folder / "serve.txt"
        process = stack.enter_context(ChildProcess("serve", ["serve"], settings.as_environment(), log))
        with EmbArkClient(settings.embark_address) as client:
            process.wait_until(lambda: client.answers(SPEC.view), 120)
        yield store, settings.embark_address


def known_keys() -> list[str]:
    return [f"title {i}" for i in range(ROWS)]


def measured(store: FeatureStore, address: str, size: int, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each way to ask for `size` keys, interleaved."""
    draw = np.random.default_rng(0)
    fresh = (f"never seen {size} {i}" for i in itertools.count())
    channel = grpc.insecure_channel(address)
    health = health_pb2_grpc.HealthStub(channel)
    with EmbArkClient(address) as client:

        def hits() -> None:
            answer = client.lookup(SPEC.view, list(draw.choice(known_keys(), size, replace=False)))
            assert (answer.status == Status.HIT).all()  # noqa: S101 - a wrong answer is no measurement

        def oov() -> None:
            answer = client.lookup(SPEC.view, list(itertools.islice(fresh, size)))
            assert (answer.status == Status.OOV).all()  # noqa: S101

        def feast() -> None:
            rows = [{"text": key} for key in draw.choice(known_keys(), size, replace=False)]
            store.get_online_features([f"{SPEC.view}:embedding"], rows)

        ways: dict[str, Callable[[], None]] = {
            "EmbArk, hits": hits,
            "EmbArk, OOV": oov,
            "Feast in process, hits": feast,
            "limit: gRPC health": lambda: health.Check(health_pb2.HealthCheckRequest()),
        }
        found: dict[str, list[float]] = {name: [] for name in ways}
        for i in track(range(rounds + 10), description=f"{size} keys", console=Console(stderr=True), transient=True):
            for name, ask in ways.items():
                start = time.perf_counter()
                ask()
                if i >= 10:  # the first ones warm caches and statements up
                    found[name].append((time.perf_counter() - start) * 1000)
    channel.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--fast", action="store_true", help="a smoke run")
    parser.add_argument("--check", action="store_true", help="exit with 1 where the claim does not hold")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as (store, address):
        for size in SIZES:
            found = measured(store, address, size, 20 if options.fast else 500)
            limit = float(np.median(found["limit: gRPC health"]))
            for name, milliseconds in found.items():
                p50, p99 = np.percentile(milliseconds, [50, 99])
                row = {"keys": size, "way": name, "p50_ms": p50, "p99_ms": p99, "times_limit": p50 / limit}
                rows.append({k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()})
    machine = f"{psutil.cpu_count()} cores, {psutil.virtual_memory().total >> 30} GiB, {platform.platform()}"
    if options.json:
        print(json.dumps({"machine": machine, "dim": SPEC.dim, "rows": rows}, indent=2))
    else:
        table = Table(title=f"Look-ups of {SPEC.dim} floats on {machine}")
        for column in rows[0]:
            table.add_column(column, justify="left" if column == "way" else "right")
        for row in rows:
            table.add_row(*map(str, row.values()))
        Console(width=120).print(table)
    ours = [row for row in rows if row["keys"] == 1 and str(row["way"]).startswith("EmbArk")]
    if options.check and not all(float(row["p50_ms"]) < CLAIM_MS for row in ours):
        sys.exit(f"the claim does not hold: {ours}")


if __name__ == "__main__":
    main()
