"""The keys of a request where they lie in its bytes; one is made a string when it is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from serving.embark_pb2 import FLOAT16, FLOAT32, LookupRequest, Precision
from serving.kernels import PADDING, spans
from serving.limits import MAX_KEYS
from serving.refusals import BadArgument

FEW_BYTES = 1000  # of a request that is read by protobuf: some thirty keys, which are found sooner as strings
MANY_BYTES = 256 * MAX_KEYS  # longer requests have keys too long to be found here, or more than are allowed
PAD = bytes(PADDING)
VIEW_TAG = 1 << 3 | 2
PRECISIONS = {b"": FLOAT32, b"\x18\x00": FLOAT32, b"\x18\x01": FLOAT16}  # what may follow the keys


def overlapping(data: bytes) -> NDArray[np.uint64]:
    """The eight bytes from each byte on, and from the end; zeros beyond it."""
    return np.ndarray((len(data) + 1,), np.uint64, data + PAD, 0, (1,))


class PackedKeys(Sequence[str]):
    """Keys between other fields of a request.

    Args:
        request: as it came.
        words: the same: see `overlapping`.
        places: where each key begins, and its length, in bytes of UTF-8: (2, N or more) int32.
        count: N.
    """

    __slots__ = ("_count", "_request", "places", "words")

    def __init__(self, request: bytes, words: NDArray[np.uint64], places: NDArray[np.int32], count: int) -> None:
        self._request = request
        self._count = count
        self.words = words
        self.places = places

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, at: int) -> str: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[str]: ...

    def __getitem__(self, at: int | slice) -> str | Sequence[str]:
        """Raises:
        BadArgument: the key is no valid UTF-8.
        """
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(self._count))]
        if not -self._count <= at < self._count:
            raise IndexError(at)
        start, length = self.places[:, at % self._count].tolist()
        try:
            return self._request[start : start + length].decode()
        except UnicodeDecodeError as error:
            raise BadArgument(f"key {at} is no valid UTF-8: {error}") from error


@dataclass(slots=True)  # frozen, it would be made in five times the time
class Question:
    """A `LookupRequest`, with `size` bytes on the wire."""

    view: str
    keys: Sequence[str]
    precision: Precision
    size: int

    @classmethod
    def of(cls, request: bytes) -> "Question":
        """Reads a serialized `LookupRequest`.

        Raises:
            BadArgument: it is none.
        """
        if FEW_BYTES < len(request) < MANY_BYTES:
            found = _read(request)
            if found is not None:
                return found
        try:
            message = LookupRequest.FromString(request)
        except DecodeError as error:
            raise BadArgument(f"these bytes are no LookupRequest: {error}") from error
        return cls(message.view, list(message.keys), message.precision, len(request))  # protobuf's list is read slowly


def _read(request: bytes) -> Question | None:
    """A request as protobuf's own libraries write it; None where it is another."""
    if request[0] != VIEW_TAG or request[1] >= 0x80:
        return None
    size, at = len(request), 2 + request[1]
    words, places = overlapping(request), np.empty((2, MAX_KEYS), np.int32)
    count, end = spans(words, at, size, places)
    precision = PRECISIONS.get(request[end:])
    if count < 0 or precision is None:
        return None
    try:
        view = request[2:at].decode()
    except UnicodeDecodeError:
        return None
    return Question(view, PackedKeys(request, words, places, count), precision, size)
