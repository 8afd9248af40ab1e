"""Asks Retina for the embeddings of requests: what becomes a batch of rows, and what a failure."""

import logging
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from encoders.client import Encoded, RetinaRefused
from encoders.spec import EncoderSpec
from encoders.traces import Traces
from feature_repo.directory import EncoderDirectory
from materializer.archive import EmbeddedBatch
from materializer.asked import Asked
from materializer.clock import Clock
from materializer.failures import Failure
from materializer.group import Taken
from materializer.outage import Patience
from materializer.pace import Pace

logger = logging.getLogger(__name__)

RETINA_SECONDS = 60.0  # > slowest batch: 64 images of Inception v3 at 13/s on a CPU, and a download's time-out


class Retina(Protocol):
    """What a worker asks of Retina: `encoders.client.RetinaClient`."""

    def encode(self, view: str, fingerprint: str, keys: Sequence[str], timeout: float) -> Encoded: ...


class Embedder:
    """Embeds the requests of one view after the other.

    Args:
        max_attempts: how often a key is tried.
        pace: told how long Retina took.
        traces: told what Retina is asked, in the traces of the look-ups that missed.
    """

    def __init__(
        self,
        retina: Retina,
        directory: EncoderDirectory,
        clock: Clock,
        *,
        max_attempts: int,
        pace: Pace,
        traces: Traces,
    ) -> None:
        self._retina = retina
        self._directory = directory
        self._clock = clock
        self._max_attempts = max_attempts
        self._pace = pace
        self._traces = traces

    def embed(
        self, spec: EncoderSpec, asked: Sequence[Asked], taken: Taken, patience: Patience
    ) -> tuple[EmbeddedBatch | None, list[Failure]]:
        """What Retina made of the requests of one view; None where nothing was embedded."""
        keys = [one.request.key for one in asked]

        def encode() -> Encoded:
            with self._pace.measure(spec.view, len(keys)):
                return self._retina.encode(spec.view, spec.fingerprint, keys, RETINA_SECONDS)

        try:
            came_with = (one.record.headers for one in asked)
            with self._traces.span("KFC/embed", came_with, view=spec.view, keys=len(keys)):
                encoded = patience.until_done(encode, taken, spec)
            _check(spec, len(keys), encoded)
        except RetinaRefused as refusal:
            # Retina and KFC have not read the same registry yet, or one of them is of an old release. Stalling would
            # hold up every other view in these partitions, and spending attempts would give up keys that nothing is
            # wrong with. So these go round the retry topic until both agree: nothing is lost, and each round says so.
            logger.error("%s: %d requests wait in the retry topic, Retina refuses: %s", spec.view, len(keys), refusal)
            self._directory.refresh()
            return None, [one.failed(type(refusal).__name__, str(refusal), "later") for one in asked]
        failures: list[Failure] = []
        embedded: list[tuple[Asked, str]] = []
        for one, outcome in zip(asked, encoded.outcomes, strict=True):
            if not outcome.reason:
                embedded.append((one, outcome.content_hash.hex()))
            elif outcome.retryable and one.request.attempt + 1 < self._max_attempts:
                failures.append(one.failed(outcome.reason, outcome.detail, "again"))
            else:
                failures.append(one.failed(outcome.reason, outcome.detail, "never"))
        if not embedded:
            return None, failures
        batch = EmbeddedBatch.of(
            spec.view,
            keys=[one.request.key for one, _ in embedded],
            vectors=encoded.vectors,
            event_time=np.array([one.request.requested_at for one, _ in embedded], dtype=np.int64),
            content_hash=[content_hash for _, content_hash in embedded],
            created_at=self._clock.now(),
        )
        return batch, failures


def _check(spec: EncoderSpec, count: int, encoded: Encoded) -> None:
    if encoded.fingerprint != spec.fingerprint:
        raise RetinaRefused(f"the reply is of fingerprint {encoded.fingerprint}, {spec.fingerprint} was asked for")
    embedded = sum(not outcome.reason for outcome in encoded.outcomes)
    if len(encoded.outcomes) != count or (embedded and encoded.vectors.shape != (embedded, spec.dim)):
        raise RetinaRefused(
            f"the reply has {len(encoded.outcomes)} outcomes and vectors of shape {encoded.vectors.shape}"
            f" for {count} keys of {spec.dim} values"
        )
