"""What a look-up answers, and the two things that serving and training must compute alike: ids and the OOV default."""

import hashlib
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

OOV_KEY = "\0oov"  # of the row that holds a view's OOV embedding; no canonical key holds a NUL: no input can have it


class Status(IntEnum):
    """What is known of a key. The values are those of `serving/embark.proto`."""

    HIT = 1
    OOV = 2
    FAILED = 3
    UNAVAILABLE = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Embeddings:
    """The answer for N keys of one view, in their order."""

    vectors: NDArray[np.float32]  # (N, dim); the view's OOV embedding where status is not HIT
    status: NDArray[np.uint8]  # (N,) of Status
    embedding_id: NDArray[np.int64]  # (N,) names the very vector: log it with the impression
    event_time: NDArray[np.int64]  # (N,) microseconds since 1970; 0 where status is not HIT
    failures: dict[int, str]  # position of a FAILED key → why

    def __len__(self) -> int:
        return len(self.status)

    @property
    def found(self) -> NDArray[np.bool_]:
        """Where the view's own embedding is answered, (N,)."""
        found: NDArray[np.bool_] = self.status == Status.HIT
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class RowVersion:
    """Which event of a key is online.

    Attributes:
        event_time, created_time: microseconds since 1970.
        embedding_id: None where the key was removed: the event is its deletion.
    """

    event_time: int
    created_time: int
    embedding_id: int | None

    @property
    def deleted(self) -> bool:
        return self.embedding_id is None


# Bytes: from 2048 on, hashlib lets other threads run, and has to wait for its turn again, 70 µs beside a busy one.
HASHED_AT_ONCE = 2047


def embedding_id(view: str, key: str, event_time: int, vector: NDArray[np.float32]) -> int:
    """63-bit name of one vector: a hash of view, key, event time (µs) and the vector's bytes (decision 10)."""
    digest = hashlib.blake2b(digest_size=8)
    for text in (view, key):
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(4, "little") + encoded)
    digest.update(event_time.to_bytes(8, "little", signed=True))
    content = np.ascontiguousarray(vector, dtype="<f4").tobytes()
    for start in range(0, len(content), HASHED_AT_ONCE):
        digest.update(content[start : start + HASHED_AT_ONCE])
    return int.from_bytes(digest.digest(), "little") >> 1


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class OovEmbedding:
    """What stands in for the embeddings of a view that are not there.

    Attributes:
        vector: (dim,) float32.
        embedding_id: names it, as any vector.
        event_time: since when, in microseconds since 1970; 0 of the zeros that stand until the view's owner sets one.
    """

    vector: NDArray[np.float32]
    embedding_id: int
    event_time: int


def oov_zeros(view: str, dim: int) -> OovEmbedding:
    """The OOV embedding of a view whose owner has set none: zeros."""
    zeros = np.zeros(dim, dtype=np.float32)
    return OovEmbedding(vector=zeros, embedding_id=embedding_id(view, OOV_KEY, 0, zeros), event_time=0)


def all_missing(oov: OovEmbedding, count: int, status: Status) -> Embeddings:
    """The OOV embedding of a view `count` times, under one status: how serving and training fill what is not there."""
    return Embeddings(
        vectors=np.tile(oov.vector, (count, 1)),
        status=np.full(count, status, dtype=np.uint8),
        embedding_id=np.full(count, oov.embedding_id, dtype=np.int64),
        event_time=np.zeros(count, dtype=np.int64),
        failures={},
    )
