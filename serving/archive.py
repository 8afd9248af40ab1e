"""The look-up: the archived embedding, or the view's OOV embedding and a request for the real one."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from encoders.keys import KeyRefused, canonical_key
from encoders.spec import EncoderSpec
from feature_repo.directory import EncoderDirectory
from feature_repo.embeddings import Embeddings, Status, all_missing
from feature_repo.failures import FailureMarks
from feature_repo.online_rows import OnlineRows
from feature_repo.session import StoreUnavailable
from serving.requests import RequestSink

logger = logging.getLogger(__name__)


class Archive(Protocol):
    """Answers look-ups."""

    def spec(self, view: str) -> EncoderSpec:
        """The encoder of a view.

        Raises:
            UnknownView: there is none of that name.
        """
        ...

    def lookup(self, view: str, keys: Sequence[str]) -> Embeddings:
        """The embeddings of `keys`, in their order.

        Raises:
            UnknownView: there is no such view.
        """
        ...


class EmbeddingArchive:
    """Look-ups in the online store. Safe to share between threads.

    Args:
        directory: the registered encoders.
        rows: the online store.
        marks: keys that are known not to be embeddable.
        requests: where missing keys are asked for.
    """

    def __init__(
        self, directory: EncoderDirectory, rows: OnlineRows, marks: FailureMarks, requests: RequestSink
    ) -> None:
        self._directory = directory
        self._rows = rows
        self._marks = marks
        self._requests = requests

    def spec(self, view: str) -> EncoderSpec:
        return self._directory.spec(view)

    def lookup(self, view: str, keys: Sequence[str]) -> Embeddings:
        spec = self._directory.spec(view)
        answer = all_missing(spec.view, spec.dim, len(keys), Status.OOV)
        # 1. canonical keys; one that cannot be a key costs only itself an answer
        positions: dict[str, list[int]] = {}
        for i, key in enumerate(keys):
            try:
                positions.setdefault(canonical_key(spec, key), []).append(i)
            except KeyRefused as refusal:
                answer.status[i] = Status.FAILED
                answer.failures[i] = f"KeyRefused: {refusal}"
        distinct = list(positions)
        # 2. one read; a store that does not answer says nothing about any key
        try:
            rows = self._rows.read(spec, distinct)
        except StoreUnavailable as outage:
            return self._unavailable(answer, positions, distinct, outage)
        # 3. hits
        found = rows.found
        for row, key in enumerate(distinct):
            if found[row]:
                at = positions[key]
                answer.vectors[at] = rows.vectors[row]
                answer.embedding_id[at] = rows.embedding_id[row]
                answer.event_time[at] = rows.event_time[row]
                answer.status[at] = Status.HIT
        # 4. known not to be embeddable: nothing is asked for
        missing = [key for key, is_there in zip(distinct, found, strict=True) if not is_there]
        try:
            marked = self._marks.read(view, missing) if missing else {}
        except StoreUnavailable as outage:
            return self._unavailable(answer, positions, missing, outage)
        for key, why in marked.items():
            answer.status[positions[key]] = Status.FAILED
            answer.failures.update(dict.fromkeys(positions[key], why))
        # 5. unknown: asked for
        for key in missing:
            if key not in marked:
                self._requests.offer(view, key)
        return answer

    def _unavailable(
        self, answer: Embeddings, positions: Mapping[str, list[int]], keys: Sequence[str], outage: StoreUnavailable
    ) -> Embeddings:
        """The answer with `keys` UNAVAILABLE: an outage is no reason to ask for anything."""
        logger.warning("%d keys answered UNAVAILABLE: %s", len(keys), outage)
        for key in keys:
            answer.status[positions[key]] = Status.UNAVAILABLE
        return answer


@dataclass(frozen=True, slots=True)
class MemoryRows:
    """Online rows in memory, for tests: (view, key) → event time (µs), embedding id, vector (dim,)."""

    rows: dict[tuple[str, str], tuple[int, int, NDArray[np.float32]]] = field(default_factory=dict)

    def read(self, spec: EncoderSpec, keys: Sequence[str]) -> Embeddings:
        found = all_missing(spec.view, spec.dim, len(keys), Status.OOV)
        for i, key in enumerate(keys):
            if (spec.view, key) in self.rows:
                found.status[i] = Status.HIT
                found.event_time[i], found.embedding_id[i], found.vectors[i] = self.rows[spec.view, key]
        return found


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
    specs: Mapping[str, EncoderSpec], rows: OnlineRows, marks: FailureMarks, requests: RequestSink
) -> EmbeddingArchive:
    """An archive over parts in memory, for tests and examples."""
    return EmbeddingArchive(EncoderDirectory(lambda: specs), rows, marks, requests)
