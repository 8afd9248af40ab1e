"""What is done for each key of a look-up, compiled: find it, and copy what it stands for.

In Python a key of a look-up is a string made from the request's bytes, hashed, and followed through a dictionary to
objects that lie all over memory. It waits for that memory again and again: 0.7 µs a key, half of what EmbArk itself
took for a hot call. Here keys stay where they lie in the request. A key's row holds all that belongs to it, the key
included, a table leads to rows, and as one key depends on no other the processor asks for many rows at once.

numpy could do it in some twenty steps. Each is code of its own, which a server that has just sent a megabyte has to
fetch into its caches anew: nothing was gained by it. numba compiles the loops below when this module is imported for
the first time, which takes seconds, and keeps the result beside it, or for the user, where that can be written.

A row, of `rows`, is WORDS words of eight bytes: seconds until it expires, embedding id, event time, a word of small
numbers, the key, its hash. `table` has buckets of PLACES, each the upper 31 bits of a hash and a slot, or -1. A bucket
that is full gives up one for another: what is not found here may still be there, and is looked for elsewhere. What is
found has the very key.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numba import njit, types

F = TypeVar("F", bound=Callable[..., Any])

EXPIRES, EMBEDDING_ID, EVENT_TIME, SMALL, KEY = range(5)  # words of a row; the key is the rest, but for the last word
WORDS = 24  # of a row: three lines of the processor's cache, of which a key of 32 bytes touches one
HASH = WORDS - 1
KEY_BYTES = 8 * (HASH - KEY)  # longer keys are not found here
STATUS, USES, LENGTH = 8 * SMALL, 8 * SMALL + 1, 8 * SMALL + 2  # bytes of a row; the length of the key
NO_KEY = 255  # instead of a length
PLACES = 8  # of a bucket: one line
PADDING = 8  # bytes that must follow those of a request
BYTE = 0xFF
KEYS_TAG = 2 << 3 | 2  # of `LookupRequest.keys` on the wire

_words = types.Array(types.uint64, 1, "A", readonly=True, aligned=False)  # one from each byte on
_places = types.Array(types.int32, 2, "C")
_slots, _factors = (types.Array(kind, 1, "C") for kind in (types.int64, types.uint64))
_rows, _floats, _small = (types.Array(kind, 2, "C") for kind in (types.int64, types.float64, types.uint8))
_vectors = types.Array(types.float32, 2, "C")
# As they lie in a reply.
_told, _told_bytes = types.Array(types.int64, 1, "C", aligned=False), types.Array(types.uint8, 1, "C")
_flags = types.Array(types.boolean, 1, "C")
_n = types.int64


def compiled(signature: Any) -> Callable[[F], F]:
    """As numba's, and kept for the next process where there is a place for it: until this very file changes.

    So nothing that a function uses may come from elsewhere, but by its arguments.
    """

    def make(function: F) -> F:
        try:
            made: F = njit(signature, cache=True)(function)
        except RuntimeError:  # no folder can be written
            made = njit(signature)(function)
        return made

    return make


def inlined(function: F) -> F:
    """Compiled with what calls it."""
    made: F = njit(inline="always")(function)
    return made


@compiled(types.UniTuple(_n, 2)(_words, _n, _n, _places))
def spans(words: Any, at: int, end: int, places: Any) -> tuple[int, int]:
    """Writes where keys begin and how long they are, of the fields from `at` on; how many, and where the next field is.

    -1 keys: there are more than `places` has room for, or they are written in a way that is left to protobuf.
    """
    count = 0
    while at < end and words[at] & BYTE == KEYS_TAG:
        if count == places.shape[1]:
            return -1, at
        length: Any = np.int64(words[at + 1] & BYTE)
        at += 2
        if length >= 0x80:
            second = np.int64(words[at] & BYTE)
            if second >= 0x80:
                return -1, at
            length += (second - 1) * 0x80
            at += 1
        if at + length > end:
            return -1, at
        places[0, count] = at
        places[1, count] = length
        count += 1
        at += length
    return count, at


@inlined
def _word(words: Any, start: Any, length: Any, j: int) -> Any:
    """The word of a key from its byte `8 * j` on, which is before its end; zero beyond."""
    word = words[start + 8 * j]
    left = length - 8 * j
    if left < 8:
        word &= (np.uint64(1) << np.uint64(8 * left)) - np.uint64(1)
    return word


@inlined
def _hash(words: Any, start: Any, length: Any, factors: Any) -> Any:
    """A sum of words times secret odd factors: its upper half cannot be foreseen. Mixed, for the lower half as well."""
    found = np.uint64(length) * factors[0]
    for j in range((length + 7) >> 3):
        found += _word(words, start, length, j) * factors[1 + j]
    found ^= found >> np.uint64(32)
    found *= factors[0]
    return found ^ (found >> np.uint64(32))


@compiled(_n(_words, _places, _n, _slots, _rows, _small, _factors, _n, _slots))
def find(
    words: Any, places: Any, count: int, table: Any, rows: Any, small: Any, factors: Any, nowhere: int, slots: Any
) -> int:
    """The slots of keys, `nowhere` for what is not found; how many were not."""
    mask = np.uint64(len(table) // PLACES - 1)
    hashes = np.empty(count, np.uint64)
    # Three loops: what a step waits for is on its way for several keys at once.
    for i in range(count):
        start, length = np.int64(places[0, i]), np.int64(places[1, i])
        if length <= KEY_BYTES:
            hashes[i] = _hash(words, start, length, factors)
    for i in range(count):
        found = nowhere
        if places[1, i] <= KEY_BYTES:
            first = np.int64(hashes[i] & mask) * PLACES
            for place in range(first, first + PLACES):
                if table[place] >> 32 == np.int64(hashes[i] >> np.uint64(33)):
                    found = table[place] & 0xFFFFFFFF
        slots[i] = found
    lost = 0
    for i in range(count):
        slot = slots[i]
        if slot != nowhere:
            start, length = np.int64(places[0, i]), np.int64(places[1, i])
            differ = np.uint64(np.int64(small[slot, LENGTH]) ^ length)
            for j in range((length + 7) >> 3):
                differ |= _word(words, start, length, j) ^ np.uint64(rows[slot, KEY + j])
            if differ != 0:
                slots[i] = nowhere
        lost += slots[i] == nowhere
    return lost


@compiled(types.none(_slots, _rows, _small, _n))
def drop(table: Any, rows: Any, small: Any, slot: int) -> None:
    """Takes a slot's key away."""
    if small[slot, LENGTH] == NO_KEY:
        return
    small[slot, LENGTH] = NO_KEY
    mask = np.uint64(len(table) // PLACES - 1)
    first = np.int64(np.uint64(rows[slot, HASH]) & mask) * PLACES
    for place in range(first, first + PLACES):
        if table[place] != -1 and table[place] & 0xFFFFFFFF == slot:
            table[place] = -1


@compiled(types.none(_words, _n, _slots, _rows, _small, _factors, _n))
def put(words: Any, length: int, table: Any, rows: Any, small: Any, factors: Any, slot: int) -> None:
    """Gives a slot, which has none, its key: `length` bytes, at most KEY_BYTES."""
    found = _hash(words, 0, length, factors)
    for j in range((length + 7) >> 3):
        rows[slot, KEY + j] = np.int64(_word(words, 0, length, j))
    rows[slot, HASH] = np.int64(found)
    small[slot, LENGTH] = length
    first = np.int64(found & np.uint64(len(table) // PLACES - 1)) * PLACES
    chosen: Any = np.int64((found >> np.uint64(30)) & np.uint64(PLACES - 1))
    for place in range(PLACES):
        if table[first + place] == -1:
            chosen = place
            break
    table[first + chosen] = np.int64((found >> np.uint64(33)) << np.uint64(32)) | slot


@compiled(
    types.UniTuple(_n, 2)(
        _slots, _rows, _floats, _small, _vectors, _n, _n, _n, types.float64, _flags, _vectors, _told_bytes, _told, _told
    )
)
def answer(
    slots: Any,
    rows: Any,
    floats: Any,
    small: Any,
    slab: Any,
    nowhere: int,
    most_uses: int,
    failure: int,
    now: float,
    missing: Any,
    vectors: Any,
    status: Any,
    ids: Any,
    times: Any,
) -> tuple[int, int]:
    """Writes what slots hold, and counts their uses up to `most_uses`.

    How many had expired, which become `nowhere`, and how many have the status `failure`.
    """
    count, last, dim = len(slots), len(slab) - 1, slab.shape[1]
    misses, failed = 0, 0
    uses = np.empty(count, np.uint8)
    for i in range(count):
        gone = floats[slots[i], EXPIRES] <= now
        missing[i] = gone
        if gone:
            slots[i] = nowhere
            misses += 1
        slot = slots[i]
        status[i] = small[slot, STATUS]
        ids[i] = rows[slot, EMBEDDING_ID]
        times[i] = rows[slot, EVENT_TIME]
        uses[i] = small[slot, USES]
        failed += small[slot, STATUS] == failure
    for i in range(count):
        if uses[i] < most_uses:  # once a call, however often a key stands in it
            small[slots[i], USES] = uses[i] + 1
        row = min(slots[i], last)
        for j in range(dim):
            vectors[i, j] = slab[row, j]
    return misses, failed
