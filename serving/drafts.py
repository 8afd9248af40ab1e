"""A reply whose vectors are written once, where they are sent from.

Vectors taken from the slab into a matrix, and copied from there into the message, are two megabytes for each one that
is sent, through caches that hold no more. So the message is made first, of the right size, with its tags and lengths in
place; the look-up writes into it. Python's own way to make bytes zeroes them; its C interface does not, and allows
writing to bytes that nobody else has seen yet.
"""

import ctypes

import numpy as np
from numpy.typing import NDArray

from feature_repo.embeddings import Embeddings
from serving.embark_pb2 import LookupReply
from serving.layouts import FLOAT, WORD, layout
from serving.limits import MAX_REASON_CHARACTERS

_new = ctypes.pythonapi.PyBytes_FromStringAndSize
_new.restype, _new.argtypes = ctypes.py_object, (ctypes.c_char_p, ctypes.c_ssize_t)
_address = ctypes.pythonapi.PyBytes_AsString
_address.restype, _address.argtypes = ctypes.c_void_p, (ctypes.py_object,)
_memory = ctypes.pythonapi.PyMemoryView_FromMemory
_memory.restype, _memory.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)
WRITABLE = 0x200  # PyBUF_WRITE


class Draft:
    """A serialized `LookupReply` of float32 that lacks its numbers.

    Args:
        count: of keys, at least one.
        dim: of their vectors.
        weights: pinned weights of the encoder.
        first: position of the first key in the request.
    """

    def __init__(self, count: int, dim: int, weights: str, first: int = 0) -> None:
        self._layout = layout(count, dim, weights, first)
        self._reply: bytes = _new(None, self._layout.size)
        self._memory: memoryview = _memory(_address(self._reply), self._layout.size, WRITABLE)
        for place, piece in self._layout.between:
            self._memory[place] = piece
        # (count, dim), of any content, to be written. Not to be kept for longer than the draft.
        self.vectors: NDArray[np.float32] = np.ndarray((count, dim), FLOAT, self._memory, self._layout.vectors.start)

    def finished(self, answer: Embeddings) -> bytes:
        """The reply, with the numbers of an answer; nothing is written after it."""
        found = self._layout
        if answer.vectors is not self.vectors:  # it was made elsewhere
            self.vectors[:] = answer.vectors
        self._memory[found.ids] = answer.embedding_id.astype(WORD, copy=False).tobytes()
        self._memory[found.times] = answer.event_time.astype(WORD, copy=False).tobytes()
        self._memory[found.status] = answer.status.tobytes()
        if answer.failures:  # seldom: they are of no size that was known before
            why = {i: text[:MAX_REASON_CHARACTERS] for i, text in answer.failures.items()}
            return self._reply + LookupReply(failures=why).SerializeToString()
        return self._reply
