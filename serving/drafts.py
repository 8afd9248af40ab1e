"""A reply whose vectors are written once, where they are sent from.

Vectors taken from the slab into a matrix, and copied from there into the message, are two megabytes for each one that
is sent, through caches that hold no more. So the message is made first, of the right size, with its tags and lengths in
place; the look-up writes into it. Python's own way to make bytes zeroes them; its C interface does not, and allows
writing to bytes that nobody else has seen yet.
"""

import ctypes
from sys import getrefcount

import numpy as np

from feature_repo.embeddings import Embeddings
from serving.embark_pb2 import LookupReply
from serving.layouts import BYTE, FLOAT, WORD, layout
from serving.limits import MAX_REASON_CHARACTERS

_new = ctypes.pythonapi.PyBytes_FromStringAndSize
_new.restype, _new.argtypes = ctypes.py_object, (ctypes.c_char_p, ctypes.c_ssize_t)
_address = ctypes.pythonapi.PyBytes_AsString
_address.restype, _address.argtypes = ctypes.c_void_p, (ctypes.py_object,)
_memory = ctypes.pythonapi.PyMemoryView_FromMemory
_memory.restype, _memory.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)
WRITABLE = 0x200  # PyBUF_WRITE
ALONE = 2  # references to a reply that its draft alone has: its own, and that of who counts
MOST_SPARE = 8  # drafts: of 2,000 keys of 512 floats they have 32 MB


class Draft:
    """A serialized `LookupReply` of float32 that lacks its numbers.

    Args:
        count: of keys, at least one.
        dim: of their vectors.
        weights: pinned weights of the encoder.
        first: position of the first key in the request.
    """

    def __init__(self, count: int, dim: int, weights: str, first: int = 0) -> None:
        self._begun = True
        self._layout = layout(count, dim, weights, first)
        self._reply: bytes = _new(None, self._layout.size)
        self._memory: memoryview = _memory(_address(self._reply), self._layout.size, WRITABLE)
        for place, piece in self._layout.between:
            self._memory[place] = piece
        # Of any content, to be written. Not to be kept for longer than the draft.
        self.room = Embeddings(
            vectors=np.ndarray((count, dim), FLOAT, self._memory, self._layout.vectors.start),
            status=np.ndarray((count,), BYTE, self._memory, self._layout.status.start),
            embedding_id=np.ndarray((count,), WORD, self._memory, self._layout.ids.start),
            event_time=np.ndarray((count,), WORD, self._memory, self._layout.times.start),
            failures={},
        )

    def finished(self, answer: Embeddings) -> bytes:
        """The reply, with the numbers of an answer; nothing is written after it while anybody has the reply."""
        self._begun = False
        if answer is not self.room:  # it was made elsewhere
            self.room.vectors[:] = answer.vectors
            self.room.status[:] = answer.status
            self.room.embedding_id[:] = answer.embedding_id
            self.room.event_time[:] = answer.event_time
        if answer.failures:  # seldom: they are of no size that was known before
            why = {i: text[:MAX_REASON_CHARACTERS] for i, text in answer.failures.items()}
            return self._reply + LookupReply(failures=why).SerializeToString()
        return self._reply

    def again(self) -> bool:
        """Begins anew where the draft was finished and nobody has its reply any more; whether that is so."""
        if self._begun or self.room.failures or getrefcount(self._reply) != ALONE:
            return False
        self._begun = True
        return True


class Drafts:
    """Drafts that are written again when gRPC has sent them. For one thread.

    To make one costs 40 µs, most of it in code that other calls have driven out of the processor's caches.
    """

    def __init__(self) -> None:
        self._spare: dict[tuple[int, int, str, int], Draft] = {}

    def of(self, count: int, dim: int, weights: str, first: int = 0) -> Draft:
        """See `Draft`; the last one of this form, where nobody has its reply any more."""
        form = (count, dim, weights, first)
        spare = self._spare.get(form)
        if spare is not None and spare.again():
            return spare
        if len(self._spare) >= MOST_SPARE:
            self._spare.pop(next(iter(self._spare)))
        self._spare[form] = made = Draft(*form)
        return made
