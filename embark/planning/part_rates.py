"""How fast one KFC and one EmbArk are, on the servers of a scratch project."""

import asyncio
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from embark.child_process import ChildProcess, ProcessDied
from embark.planning.scratch import DIMS, Bench
from embark.repo import open_store
from embark.servers import free_port
from embark.settings import Settings
from encoders.client import Encoded, Outcome
from feature_repo.directory import EncoderDirectory
from feature_repo.embeddings import Status
from feature_repo.session import connect
from materializer.messages import EmbedRequest
from materializer.metrics import WorkerMetrics
from materializer.process import create_topics, open_producer, run_worker, topics_of
from serving.client import AsyncEmbArkClient, EmbArkClient

SECONDS = 2.0  # of hot look-ups
CALL = 500  # keys, as a ranker has candidates
CALLS = 8  # at a time
REQUESTS = 4000
PATIENCE = 300.0  # seconds, that a busy machine is given to begin, or to end
CACHE_MB = 256
OPEN = ("tls_certificate", "tls_key", "tls_client_ca", "callers")  # on loopback, for seconds: whoever knows the port


class AtOnce:
    """A Retina that answers at once, each batch with the first of its `vectors`."""

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        self.vectors = vectors
        self._outcome = Outcome(content_hash=b"\0" * 16)

    def encode(self, view: str, fingerprint: str, keys: Sequence[str], timeout: float) -> Encoded:
        return Encoded(
            vectors=self.vectors[: len(keys)],
            outcomes=(self._outcome,) * len(keys),
            fingerprint=fingerprint,
        )


def archived(bench: Bench) -> float:
    """Embeddings a second of one KFC whose Retina answers at once.

    Raises:
        KafkaUnavailable: Kafka does not answer.
        ProcessDied: it did not end in five minutes.
    """
    spec = bench.specs[DIMS[-1]]
    servers, topics = topics_of(bench.store)
    create_topics(servers, topics)
    producer = open_producer(servers)
    now = time.time_ns() // 1000
    for i in range(REQUESTS):
        request = EmbedRequest(view=spec.view, key=f"asked for {i}", requested_at=now)
        producer.send(topics.live, request.encode(), request.partition_key)
    producer.flush()
    producer.close(timeout=10)

    registry, stop = CollectorRegistry(), threading.Event()
    store = open_store(bench.repo)  # of that thread
    retina = AtOnce(np.random.default_rng(0).standard_normal((REQUESTS, spec.dim), dtype=np.float32))
    directory = EncoderDirectory(lambda: {spec.view: spec})
    worker = threading.Thread(
        target=run_worker,
        args=(store,),
        kwargs={"directory": directory, "retina": retina, "stop": stop, "metrics": WorkerMetrics(registry)},
    )
    seen: list[tuple[float, float]] = []  # time, and embeddings until then
    began = time.perf_counter()
    worker.start()
    try:
        while (count := registry.get_sample_value("kfc_archived_total", {"view": spec.view}) or 0.0) < REQUESTS:
            now_s = time.perf_counter()
            if count and (not seen or count > seen[-1][1]):
                seen.append((now_s, count))
            if not worker.is_alive() or now_s - began > PATIENCE:
                raise ProcessDied(f"KFC archived {count:.0f} of {REQUESTS} embeddings in {PATIENCE:.0f} s")
            time.sleep(0.01)
        seen.append((time.perf_counter(), count))
    finally:
        stop.set()
        worker.join()
        connect(store).cluster.shutdown()
    # from the first batch on, whose wait for partitions is not KFC's speed; of a single batch all of its time
    (first, few), (last, all_of_them) = seen[0], seen[-1]
    return round((all_of_them - few) / (last - first) if len(seen) > 2 else REQUESTS / (last - began), 1)


def looked_up(settings: Settings, bench: Bench, keys: Sequence[str], folder: Path) -> tuple[float, float]:
    """Keys a second of one EmbArk, from Cassandra, and from its hot cache.

    Raises:
        ProcessDied: it did not start.
    """
    address = f"127.0.0.1:{free_port()}"
    changed = Settings.model_validate(
        settings.model_dump()
        | {
            "repo": bench.repo,
            "state": folder / "state",
            "embark_address": address,
            "embark_metrics": "",
            "processes": 1,
            "hot_cache_mb": CACHE_MB,
            "hot_cache_seconds": 3600,
            "lookup_budget_ms": 30_000,  # a busy machine is slow, and no failure
            **dict.fromkeys(OPEN),
        }
    )
    environment = changed.as_environment()
    for name in OPEN:
        environment.pop(f"EMBARK_{name.upper()}", None)
    view = bench.specs[DIMS[-1]].view
    with ChildProcess("EmbArk", ["serve"], environment, folder / "embark.txt", folder=folder) as process:
        with EmbArkClient(address) as client:
            process.wait_until(lambda: client.answers(view), PATIENCE)
        calls = [keys[at : at + CALL] for at in range(0, len(keys), CALL)]
        cold, hot = asyncio.run(_asked(address, view, calls))
    return round(cold, 1), round(hot, 1)


async def _asked(address: str, view: str, calls: Sequence[Sequence[str]]) -> tuple[float, float]:
    """Keys a second where each key is asked for the first time, and where all were asked for before."""
    async with AsyncEmbArkClient(address) as client:
        waiting = list(calls)

        async def each_once() -> int:
            found = 0
            while waiting:
                answer = await client.lookup(view, waiting.pop(), timeout=60)
                found += int((answer.status == Status.HIT).sum())
            return found

        async def again() -> int:
            found, at = 0, 0
            while time.perf_counter() < until:
                answer = await client.lookup(view, calls[at % len(calls)], timeout=60)
                found += int((answer.status == Status.HIT).sum())
                at += 1
            return found

        began = time.perf_counter()
        cold = sum(await asyncio.gather(*(each_once() for _ in range(CALLS)))) / (time.perf_counter() - began)
        began = time.perf_counter()
        until = began + SECONDS
        hot = sum(await asyncio.gather(*(again() for _ in range(CALLS)))) / (time.perf_counter() - began)
        return cold, hot
