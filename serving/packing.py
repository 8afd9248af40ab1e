"""Answers as messages: vectors copied, never built number by number."""

import numpy as np
from numpy.typing import NDArray

from encoders.matrix import pack
from encoders.matrix_pb2 import Matrix
from feature_repo.embeddings import Embeddings
from serving.embark_pb2 import FLOAT16, LookupReply, Precision
from serving.limits import MAX_REASON_CHARACTERS


def reply_of(answer: Embeddings, weights: str, precision: Precision, first: int = 0) -> LookupReply:
    """The message of an answer.

    Args:
        weights: pinned weights of the encoder.
        first: position of the answer's first key in the request.
    """
    return LookupReply(
        vectors=packed(answer.vectors, precision),
        status=answer.status.tobytes(),
        embedding_id=answer.embedding_id.tolist(),
        event_time=answer.event_time.tolist(),
        failures={i: why[:MAX_REASON_CHARACTERS] for i, why in answer.failures.items()},
        weights=weights,
        first=first,
    )


def packed(vectors: NDArray[np.float32], precision: Precision) -> Matrix:
    """(N, dim) float32 as a message of float32 or float16."""
    if precision != FLOAT16:
        return pack(vectors)
    with np.errstate(over="ignore"):  # infinite, as `embark.proto` says
        halves = vectors.astype("<f2")
    return Matrix(data=halves.tobytes(), dtype="float16", shape=halves.shape)


def unpacked(message: Matrix) -> NDArray[np.float32]:
    """(N, dim) float32 of a message of either precision; read-only where it is a view of the message's bytes.

    Raises:
        ValueError: another dtype, or a size that does not fit the shape.
    """
    dtypes = {"float32": "<f4", "float16": "<f2"}
    if message.dtype not in dtypes:
        raise ValueError(f"dtype {message.dtype!r} is not supported; {' and '.join(dtypes)} are")
    array = np.frombuffer(message.data, dtype=dtypes[message.dtype]).reshape(tuple(message.shape))
    return array.astype(np.float32, copy=False)
