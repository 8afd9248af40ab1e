"""Sets the OOV embedding of a view: a row like any other, under a key that no input can have."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.spec import EncoderSpec
from feature_repo.embeddings import OOV_KEY, OovEmbedding
from feature_repo.online_rows import OnlineRows, served_oov
from materializer.archive import Archive, EmbeddedBatch
from materializer.clock import Clock


class OovRefused(Exception):
    """An array cannot be the OOV embedding of a view; the message says why and what is allowed."""


def checked(spec: EncoderSpec, array: NDArray[Any]) -> NDArray[np.float32]:
    """The array as an OOV embedding of the view, (dim,) float32.

    Raises:
        OovRefused: it is not of floats, has another shape than (dim,) or (1, dim), or a number is not finite.
    """
    if not np.issubdtype(array.dtype, np.floating):
        raise OovRefused(f"it holds {array.dtype}, embeddings hold float32")
    if array.shape not in ((spec.dim,), (1, spec.dim)):
        raise OovRefused(f"it has the shape {array.shape}, an embedding of {spec.view} has ({spec.dim},)")
    with np.errstate(over="ignore"):  # a float64 that is too large becomes infinite
        vector: NDArray[np.float32] = array.reshape(spec.dim).astype(np.float32)
    wrong = np.flatnonzero(~np.isfinite(vector))
    if len(wrong):
        raise OovRefused(f"{len(wrong)} of its {spec.dim} numbers are not finite as float32, at {wrong[0]} for one")
    return vector


def set_oov(
    spec: EncoderSpec, vector: NDArray[np.float32], archive: Archive, rows: OnlineRows, clock: Clock
) -> tuple[OovEmbedding, bool]:
    """Makes `vector` (dim,), checked, what the view answers for embeddings that are not there.

    Those that stood before stay in history. Safe to repeat.

    Returns:
        What stands now, and whether that is new; not so where these very numbers stood already.

    Raises:
        ArchiveUnavailable, StoreUnavailable: it may or may not have been set.
    """
    before = served_oov(rows, spec)
    if before.vector.tobytes() == vector.tobytes():
        return before, False
    # Of the same rank as all events: a clock that is behind must not set what loses against the row of before.
    now = max(clock.now(), before.event_time + 1)
    batch = EmbeddedBatch.of(
        spec.view,
        keys=[OOV_KEY],
        vectors=vector[None],
        event_time=np.full(1, now, dtype=np.int64),
        content_hash=[""],
        created_at=now,
    )
    archive.append_history(spec, batch)  # first: what is served can be found by its id
    archive.write_online(spec, batch)
    return OovEmbedding(vector=vector, embedding_id=batch.embedding_id[0], event_time=now), True
