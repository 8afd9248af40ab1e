"""What EmbArk tells of itself, to a registry of Prometheus that is handed in."""

import functools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from feature_repo.embeddings import Status
from serving.hot_cache import HotCaches
from serving.load import Gate
from serving.requests import RequestQueue
from serving.store_reads import StoreReads

# A hot look-up takes one millisecond, a cold one ten; deadlines of rankers lie between 50 and 200.
STATUSES = [(int(status), status.name) for status in Status]
BUCKETS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.5, 1, 5)


class Metrics:
    """Calls and keys.

    Args:
        registry: of its own for each server, or the process's.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        calls = Histogram(
            "embark_call_seconds",
            "Time of a call in the server, by method and gRPC code",
            ["method", "code"],
            buckets=BUCKETS,
            registry=registry,
        )
        keys = Counter("embark_keys", "Keys answered, by view and status", ["view", "status"], registry=registry)
        # Finding a metric by its labels takes longer than counting; there are as many as views and codes.
        self._calls, self._keys = functools.cache(calls.labels), functools.cache(keys.labels)

    def called(self, method: str, code: str, seconds: float) -> None:
        """A call has ended."""
        self._calls(method, code).observe(seconds)

    def answered(self, view: str, status: NDArray[np.uint8]) -> None:
        """Keys have been answered; `status` (N,) of Status."""
        told = status.tobytes()
        for value, name in STATUSES:
            count = told.count(value)
            if count:
                self._keys(view, name).inc(count)


class PartsCollector(Collector):
    """What the parts of a process count, read when it is asked for.

    Args:
        caches, reads, requests, gate: of the process.
    """

    def __init__(self, caches: HotCaches, reads: StoreReads, requests: RequestQueue, gate: Gate) -> None:
        self._caches = caches
        self._reads = reads
        self._requests = requests
        self._gate = gate

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        counted = {
            name: CounterMetricFamily(f"embark_hot_cache_{name}", text, labels=["view"])
            for name, text in {
                "hits": "Keys that the hot cache answered",
                "misses": "Keys that it did not",
                "filled": "Rows put into it",
                "refused": "Fills that an announcement had made history",
                "evicted": "Rows that made room",
            }.items()
        }
        rows = GaugeMetricFamily("embark_hot_cache_rows", "Rows in it", labels=["view"])
        for view, cache in self._caches.all.items():
            for name in ("hits", "misses", "filled", "refused"):
                counted[name].add_metric([view], getattr(cache.counts, name))
            counted["evicted"].add_metric([view], cache.evicted)
            rows.add_metric([view], len(cache))
        yield from counted.values()
        yield rows
        yield GaugeMetricFamily("embark_store_reads_waiting", "Reads that wait for a thread", self._reads.waiting)
        yield CounterMetricFamily("embark_store_reads_refused", "Reads that found no room", self._reads.refused)
        yield GaugeMetricFamily("embark_store_breaker_open", "1: the store is left alone", self._reads.breaker.is_open)
        yield CounterMetricFamily("embark_requests_published", "Requests that Kafka has", self._requests.published)
        yield CounterMetricFamily("embark_requests_dropped", "Requests that found no room", self._requests.dropped)
        yield GaugeMetricFamily("embark_calls", "Calls being answered", self._gate.inside)
        yield GaugeMetricFamily("embark_unsent_bytes", "Of answers that wait to be sent", self._gate.unsent)
        yield CounterMetricFamily("embark_calls_refused", "Calls that found no room", self._gate.refused)
