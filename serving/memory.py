"""Parts of a look-up in memory, for tests and examples."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from encoders.spec import EncoderSpec
from feature_repo.directory import EncoderDirectory
from feature_repo.embeddings import Embeddings, Status, all_missing, oov_zeros
from feature_repo.failures import FailureMarks
from feature_repo.online_rows import OnlineRows
from feature_repo.session import StoreUnavailable
from serving.archive import BUDGET_SECONDS, EmbeddingArchive
from serving.hot_caches import HotCaches
from serving.requests import RequestSink
from serving.store_reads import StoreReads


@dataclass(frozen=True, slots=True)
class MemoryRows:
    """Online rows in memory, for tests: (view, key) → event time (µs), embedding id, vector (dim,)."""

    rows: dict[tuple[str, str], tuple[int, int, NDArray[np.float32]]] = field(default_factory=dict)

    def read(self, spec: EncoderSpec, keys: Sequence[str]) -> Embeddings:
        found = all_missing(oov_zeros(spec.view, spec.dim), len(keys), Status.OOV)
        for i, key in enumerate(keys):
            if (spec.view, key) in self.rows:
                found.status[i] = Status.HIT
                found.event_time[i], found.embedding_id[i], found.vectors[i] = self.rows[spec.view, key]
        return found


class GatedRows:
    """Online rows that are answered when `gate` is set, for tests; `reads` are the keys of each read."""

    def __init__(self) -> None:
        self._rows = MemoryRows()
        self.rows = self._rows.rows
        self.gate = threading.Event()
        self.reads: list[list[str]] = []

    def read(self, spec: EncoderSpec, keys: Sequence[str]) -> Embeddings:
        self.reads.append(list(keys))
        if not self.gate.wait(20):
            raise StoreUnavailable("the gate was never opened")
        return self._rows.read(spec, keys)


@dataclass(frozen=True, slots=True)
class DownRows:
    """An online store that never answers, for tests."""

    reason: str = "planted"

    def read(self, spec: EncoderSpec, keys: Sequence[str]) -> Embeddings:
        raise StoreUnavailable(self.reason)


@dataclass(frozen=True, slots=True)
class DownMarks:
    """Failure marks whose store never answers, for tests."""

    reason: str = "planted"

    def mark(self, view: str, failures: Mapping[str, str], seconds: int = 0) -> None:
        raise StoreUnavailable(self.reason)

    def read(self, view: str, keys: Sequence[str]) -> dict[str, str]:
        raise StoreUnavailable(self.reason)

    def clear(self, view: str, keys: Sequence[str]) -> None:
        raise StoreUnavailable(self.reason)


def memory_archive(
    specs: Mapping[str, EncoderSpec],
    rows: OnlineRows,
    marks: FailureMarks,
    requests: RequestSink,
    *,
    budget: float = BUDGET_SECONDS,
    caches: HotCaches | None = None,
) -> EmbeddingArchive:
    """An archive over parts in memory."""
    return EmbeddingArchive(
        EncoderDirectory(lambda: specs),
        StoreReads(rows, marks, readers=4),
        requests,
        caches or HotCaches(megabytes=1, seconds=300),
        budget=budget,
    )
