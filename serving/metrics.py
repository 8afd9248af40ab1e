"""What EmbArk tells of itself, to a registry of Prometheus that is handed in."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from feature_repo.embeddings import Status
from serving.hot_caches import HotCaches
from serving.load import Gate
from serving.requests import RequestQueue
from serving.store_reads import StoreReads

STATUSES = [(int(status), status.name) for status in Status]
HIT = int(Status.HIT)
# A hot look-up takes one millisecond, a cold one ten; deadlines of rankers lie between 50 and 200.
BUCKETS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.5, 1, 5)
ENDS = [str(floatToGoString(end)) for end in (*BUCKETS, float("inf"))]  # type: ignore[no-untyped-call]


class Metrics(Collector):
    """Calls and keys. For one thread, that of the event loop; told to any.

    They are counted in plain numbers, and made Prometheus's when they are asked for: its own counters take locks and
    check arguments, 50 µs for a call in code that other calls have driven out of the processor's caches.

    Args:
        registry: of its own for each server, or the process's.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        # By method and code: calls by bucket, the last of which has no end, and their seconds.
        self._calls: dict[tuple[str, str], tuple[list[int], list[float]]] = {}
        self._keys: dict[str, list[int]] = defaultdict(lambda: [0] * (1 + max(Status)))  # by view, then status
        registry.register(self)

    def called(self, method: str, code: str, seconds: float) -> None:
        """A call has ended."""
        found = self._calls.get((method, code))
        if found is None:
            found = self._calls[method, code] = ([0] * (len(BUCKETS) + 1), [0.0])
        found[0][bisect_left(BUCKETS, seconds)] += 1
        found[1][0] += seconds

    def answered(self, view: str, status: NDArray[np.uint8]) -> None:
        """Keys have been answered; `status` (N,) of Status."""
        told, counts = status.tobytes(), self._keys[view]
        hits = told.count(HIT)
        counts[HIT] += hits
        if hits < len(told):
            for value, _ in STATUSES:
                if value != HIT:
                    counts[value] += told.count(value)

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        calls = HistogramMetricFamily(
            "embark_call_seconds", "Time of a call in the server, by method and gRPC code", labels=["method", "code"]
        )
        for labels, (counts, (seconds,)) in list(self._calls.items()):
            calls.add_metric(labels, list(zip(ENDS, accumulate(counts), strict=True)), seconds)
        yield calls
        keys = CounterMetricFamily("embark_keys", "Keys answered, by view and status", labels=["view", "status"])
        for view, by_status in list(self._keys.items()):
            for value, name in STATUSES:
                if by_status[value]:
                    keys.add_metric([view, name], by_status[value])
        yield keys


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
