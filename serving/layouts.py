"""Where everything stands in a serialized `LookupReply` of float32 that has no failures, as EmbArk writes it.

Of one shape all replies are alike but for their numbers. So the server writes numbers into a form (`serving.drafts`),
and a client that has seen the form reads them from where they stand: no field is looked for.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.matrix_pb2 import Matrix
from serving.embark_pb2 import LookupReply
from serving.wire import DATA, EMBEDDING_ID, EVENT_TIME, STATUS, VECTORS, head

FLOAT, WORD, BYTE = np.dtype("<f4"), np.dtype("<i8"), np.dtype("u1")
MOST = 1024  # layouts that a client remembers: a size of look-ups each, of some views


@dataclass(frozen=True, slots=True)
class Layout:
    """Of replies to `shape[0]` keys: their size, where their numbers stand, and what stands between."""

    shape: tuple[int, int]  # keys, dim
    weights: str
    size: int
    vectors: slice
    ids: slice
    times: slice
    status: slice
    between: tuple[tuple[slice, bytes], ...]

    def fits(self, reply: bytes) -> bool:
        """Whether a reply is of this layout: all of it but its numbers is what stands here."""
        return len(reply) == self.size and all(reply[place] == piece for place, piece in self.between)


@lru_cache(4096)
def layout(count: int, dim: int, weights: str, first: int) -> Layout:
    """Of replies to `count` keys, at least one, of an encoder with these pinned weights; `first`: see `LookupReply`."""
    data = head(DATA, 4 * count * dim, wide=True)
    shape = Matrix(dtype="float32", shape=(count, dim)).SerializeToString()
    matrix = len(data) + 4 * count * dim + len(shape)
    pieces: tuple[tuple[bytes, int], ...] = (  # and how many bytes of numbers follow
        # Wide, so that vectors begin at a multiple of four: numpy would write elsewhere, and copy, where they do not.
        (head(VECTORS, matrix, wide=True) + data, 4 * count * dim),
        (shape + head(EMBEDDING_ID, 8 * count), 8 * count),
        (head(EVENT_TIME, 8 * count), 8 * count),
        (head(STATUS, count), count),
        (LookupReply(weights=weights, first=first).SerializeToString(), 0),
    )
    at = 0
    numbers: list[slice] = []
    between: list[tuple[slice, bytes]] = []
    for piece, follow in pieces:
        between.append((slice(at, at + len(piece)), piece))
        at += len(piece)
        numbers.append(slice(at, at + follow))
        at += follow
    vectors, ids, times, status, _ = numbers
    return Layout((count, dim), weights, at, vectors, ids, times, status, tuple(between))


class Familiar:
    """Layouts of replies that were read before, by their size. Safe to share between threads."""

    def __init__(self) -> None:
        self._known: dict[int, Layout] = {}

    def of(self, reply: bytes) -> Layout | None:
        """The layout of a reply, where it is known."""
        known = self._known.get(len(reply))
        return known if known is not None and known.fits(reply) else None

    def meet(self, reply: bytes, shape: tuple[int, ...], weights: str, first: int) -> None:
        """Remembers the layout of a reply that was read field by field, if it is one of these."""
        if len(shape) != 2 or not shape[0]:
            return
        found = layout(*shape, weights, first)
        if found.fits(reply):
            if len(self._known) >= MOST:
                self._known.clear()
            self._known[len(reply)] = found


def numbers(reply: bytes, place: slice, dtype: np.dtype[Any]) -> NDArray[Any]:
    """What stands at a place, read-only."""
    return np.frombuffer(reply, dtype, (place.stop - place.start) // dtype.itemsize, place.start)
