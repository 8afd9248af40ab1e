"""Answers as bytes on the wire, and back, without a copy more than need be.

A protobuf message is its fields one after the other, and a field of bytes is a tag, a length and the bytes. So the
large field, a megabyte of vectors, is put before what protobuf makes of the small ones: one copy instead of four, no
Python number for any id. Whoever reads it with protobuf sees an ordinary `LookupReply`. `serving.drafts` saves the last
copy, too, where vectors are sent as they lie in memory.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from encoders.matrix_pb2 import Matrix
from feature_repo.embeddings import Embeddings
from serving.embark_pb2 import FLOAT16, LookupReply, Precision
from serving.limits import MAX_REASON_CHARACTERS
from serving.wire import BYTES_FIELD, DATA, EMBEDDING_ID, EVENT_TIME, REPLY, VECTORS, VIEW, VIEWS, head

DTYPES = {"float32": "<f4", "float16": "<f2"}

Bytes = bytes | memoryview


def reply_bytes(answer: Embeddings, weights: str, precision: Precision, first: int = 0) -> bytes:
    """A serialized `LookupReply`.

    Args:
        weights: pinned weights of the encoder.
        first: position of the answer's first key in the request.
    """
    dtype = "float16" if precision == FLOAT16 else "float32"
    with np.errstate(over="ignore"):  # beyond float16 it is infinite, as `embark.proto` says
        vectors = np.ascontiguousarray(answer.vectors, dtype=DTYPES[dtype])
    others = LookupReply(
        status=answer.status.tobytes(),
        failures={i: why[:MAX_REASON_CHARACTERS] for i, why in answer.failures.items()},
        weights=weights,
        first=first,
    )
    matrix = [*_field(DATA, _flat(vectors)), Matrix(dtype=dtype, shape=vectors.shape).SerializeToString()]
    return b"".join(
        (
            *_nested(VECTORS, matrix),
            *_field(EMBEDDING_ID, _flat(answer.embedding_id.astype("<i8", copy=False))),
            *_field(EVENT_TIME, _flat(answer.event_time.astype("<i8", copy=False))),
            others.SerializeToString(),
        )
    )


def many_bytes(replies: Iterable[tuple[str, bytes]]) -> bytes:
    """A serialized `LookupManyReply` of views and their serialized replies."""
    pieces: list[Bytes] = []
    for view, reply in replies:
        pieces += _nested(VIEWS, [*_field(VIEW, view.encode()), *_field(REPLY, reply)])
    return b"".join(pieces)


def parsed(reply: bytes) -> tuple[NDArray[np.float32], LookupReply]:
    """The vectors, (N, dim), read-only, and all other fields of a serialized `LookupReply`.

    The vectors are a view of the bytes where these begin with them, as those of `reply_bytes` do.

    Raises:
        ValueError, google.protobuf.message.DecodeError: it is none.
    """
    split = _split(reply)
    if split is None:  # as others may write it
        message = LookupReply.FromString(reply)
        return unpacked(message.vectors), message
    data, matrix, others = split
    shape = Matrix.FromString(matrix)
    return _array(data, shape), LookupReply.FromString(others)


def unpacked(message: Matrix) -> NDArray[np.float32]:
    """(N, dim) float32 of a message of either precision; read-only where it is a view of the message's bytes.

    Raises:
        ValueError: another dtype, or a size that does not fit the shape.
    """
    return _array(memoryview(message.data), message)


def _array(data: memoryview, shape: Matrix) -> NDArray[np.float32]:
    if shape.dtype not in DTYPES:
        raise ValueError(f"dtype {shape.dtype!r} is not supported; {' and '.join(DTYPES)} are")
    array = np.frombuffer(data, dtype=DTYPES[shape.dtype]).reshape(tuple(shape.shape))
    return array.astype(np.float32, copy=False)


def _split(reply: bytes) -> tuple[memoryview, bytes, bytes] | None:
    """Vectors, rest of the matrix, rest of the reply; None where vectors do not come first, or are empty."""
    whole = memoryview(reply)
    outer = _head(whole, VECTORS)
    if outer is None:
        return None
    begin, end = outer
    inner = _head(whole[begin:end], DATA)
    if inner is None:
        return None
    first, last = begin + inner[0], begin + inner[1]
    return whole[first:last], bytes(whole[last:end]), bytes(whole[end:])


def _head(message: memoryview, number: int) -> tuple[int, int] | None:
    """Where the first field of a message begins and ends, if it is the one of that number and all there."""
    if not message or message[0] != number << 3 | BYTES_FIELD:
        return None
    length = shift = 0
    for at in range(1, min(len(message), 6)):
        length |= (message[at] & 0x7F) << shift
        shift += 7
        if message[at] < 0x80:
            begin, end = at + 1, at + 1 + length
            return (begin, end) if end <= len(message) else None
    return None


def _flat(array: NDArray[np.generic]) -> memoryview:
    return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))  # type: ignore[arg-type]


def _field(number: int, payload: Bytes) -> list[Bytes]:
    """A field of bytes; nothing where it is empty, as protobuf has it."""
    return [head(number, len(payload)), payload] if len(payload) else []


def _nested(number: int, pieces: list[Bytes]) -> list[Bytes]:
    return [head(number, sum(map(len, pieces))), *pieces]
