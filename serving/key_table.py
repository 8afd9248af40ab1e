"""The rows of a hot cache's slots, and a table that leads to them from keys as bytes: see `serving.kernels`."""

import os

import numpy as np
from numpy.typing import NDArray

from serving.kernels import KEY_BYTES, LENGTH, NO_KEY, PLACES, WORDS, drop, find, put
from serving.packed_keys import PackedKeys, overlapping

SLOTS_TO_BUCKET = 4  # of PLACES: two buckets of a hundred are full when all slots have keys
LINE_BYTES = 64  # of the processor's caches


class KeyTable:
    """For one thread at a time.

    Args:
        slots: how many there are.
    """

    def __init__(self, slots: int) -> None:
        entries = PLACES << (slots // SLOTS_TO_BUCKET).bit_length()
        memory = _aligned(entries + slots * WORDS)  # in one piece: large ones may have large pages
        self._table = memory[:entries]
        self._table[:] = -1
        # Secret, or a stranger could fill one bucket.
        self._factors = np.frombuffer(os.urandom(8 * WORDS), np.uint64) | np.uint64(1)
        # The same memory: (slots, …) as words, floats and bytes.
        self.rows: NDArray[np.int64] = memory[entries:].reshape(slots, WORDS)
        self.seconds: NDArray[np.float64] = self.rows.view(np.float64)
        self.small: NDArray[np.uint8] = self.rows.view(np.uint8)
        self.small[:, LENGTH] = NO_KEY

    def find(self, keys: PackedKeys, nowhere: int) -> tuple[NDArray[np.int64], int]:
        """The slot of each key, (N,), `nowhere` for those that are not found, and how many these are.

        What is found has the key. One that is not found may have a slot all the same.
        """
        slots = np.empty(len(keys), dtype=np.int64)
        table, rows, small = self._table, self.rows, self.small
        return slots, find(keys.words, keys.places, len(keys), table, rows, small, self._factors, nowhere, slots)

    def name(self, slot: int, key: str) -> None:
        """Has a slot found by a key, and by no other."""
        drop(self._table, self.rows, self.small, slot)
        data = key.encode(errors="surrogatepass")
        if len(data) <= KEY_BYTES:
            words = overlapping(data)
            put(words, len(data), self._table, self.rows, self.small, self._factors, slot)

    def forget(self, slot: int) -> None:
        """Has a slot found by no key."""
        drop(self._table, self.rows, self.small, slot)


def _aligned(words: int) -> NDArray[np.int64]:
    """Zeros of eight bytes that begin with a line."""
    memory = np.zeros(8 * words + LINE_BYTES, dtype=np.uint8)  # lazily, as the slab
    begin = -memory.ctypes.data % LINE_BYTES
    return memory[begin : begin + 8 * words].view(np.int64)
