"""The hot cache alone: how often it has the answer, and how fast it gives it.

    uv run python -m benchmarks.hot_cache [--json] [--fast] [--check]

A trace as of a shop: keys are asked for by Zipf's law; each day a tenth of the catalogue is replaced, the popularity of
the rest moves, and once a day something reads half of the items, each once (a crawler, an export). The cache has room
for a twentieth of the catalogue. Claims: S3-FIFO's hit rate is above LRU's, by at least 2 points where there are scans;
and of 500 keys of 512 floats `take` costs at most 6 times of what numpy needs to copy such rows.

Ways to find the rows, from a request as it comes: as strings in a dictionary from key to slot; as the bytes that they
are (ours, where a request has more than some thirty keys), both with all that a look-up needs: times, ids, status,
counts; and hashes of the keys, looked up by numpy in a sorted array, which does not compare the keys, that strangers
choose, and has to be made anew for every new key.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.comparison import options, publish
from encoders.spec import EncoderSpec
from feature_repo.embeddings import Status, all_missing, oov_zeros
from serving.embark_pb2 import LookupRequest
from serving.eviction import MOST_USES, S3Fifo
from serving.hot_cache import HotCache
from serving.packed_keys import Question

SPEC = EncoderSpec(name="text_lstm", version="v1", modality="text", dim=512, network="text_lstm", weights="seeded:0")
SKEW = 0.9  # Zipf's exponent
REPLACED = 0.1  # of the catalogue, a day
ROOM = 0.05  # of the catalogue
POINTS = 0.02
TIMES_COPY = 6.0
OURS = "take"  # by bytes, or by strings where keys are few


def trace(items: int, days: int, asks: int, *, scans: bool) -> Iterator[NDArray[np.int64]]:
    """Keys asked for, a day at a time."""
    draw = np.random.default_rng(0)
    weights = np.arange(1, items + 1) ** -SKEW
    weights /= weights.sum()
    catalogue = np.arange(items)
    fresh = items
    for _ in range(days):
        asked = catalogue[draw.choice(items, asks, p=weights)]
        if scans:
            at = draw.integers(asks)
            asked = np.insert(asked, at, catalogue[draw.permutation(items)[: items // 2]])
        yield asked
        gone = draw.choice(items, int(items * REPLACED), replace=False)
        catalogue[gone] = np.arange(fresh, fresh + len(gone))
        fresh += len(gone)
        moved = draw.choice(items, items // 20, replace=False)
        catalogue[moved] = catalogue[draw.permutation(moved)]


def lru(days: Iterator[NDArray[np.int64]], room: int) -> float:
    kept: OrderedDict[int, None] = OrderedDict()
    hits = asked = 0
    for day in days:
        asked += len(day)
        for key in day.tolist():
            if key in kept:
                hits += 1
                kept.move_to_end(key)
            else:
                kept[key] = None
                if len(kept) > room:
                    kept.popitem(last=False)
    return hits / asked


def s3_fifo(days: Iterator[NDArray[np.int64]], room: int) -> float:
    uses = np.zeros(room, dtype=np.uint8)
    policy = S3Fifo(room, uses)
    slots: dict[int, int] = {}
    names: dict[int, int] = {}
    hits = asked = 0
    for day in days:
        asked += len(day)
        for key in day.tolist():
            slot = slots.get(key)
            if slot is not None:
                hits += 1
                uses[slot] = min(uses[slot] + 1, MOST_USES)
            else:
                slot = policy.place(hash(key))
                slots.pop(names.get(slot, -1), None)
                slots[key], names[slot] = slot, key
    return hits / asked


def microseconds(act: Callable[[Any], object], turns: Sequence[Any]) -> float:
    """Median of one call, of one for each of `turns`."""
    taken = []
    for turn in turns:
        start = time.perf_counter()
        act(turn)
        taken.append(time.perf_counter() - start)
    return float(np.median(taken)) * 1e6


def lookups(count: int, rounds: int) -> dict[str, float]:
    """Microseconds to find and copy the rows of `count` keys, by way."""
    entries = 50_000
    keys = [f"https://images.example.com/catalogue/item-{i:08d}.jpg" for i in range(entries)]
    cache = HotCache(SPEC, megabytes=150, seconds=3600)
    read = all_missing(oov_zeros(SPEC.view, SPEC.dim), entries, Status.HIT)
    cache.fill(keys, read, began=cache.now())
    slab = read.vectors
    hashes = np.fromiter(map(hash, keys), np.int64, entries)
    order = np.argsort(hashes)
    ordered = hashes[order]
    draw = np.random.default_rng(1)

    def asked() -> bytes:
        keys_asked = [keys[i] for i in draw.integers(entries, size=count)]
        return LookupRequest(view=SPEC.view, keys=keys_asked).SerializeToString()

    requests = [asked() for _ in range(rounds)]
    rows = [draw.integers(entries, size=count) for _ in range(rounds)]

    def strings(request: bytes) -> list[str]:
        return list(LookupRequest.FromString(request).keys)

    def by_hash(request: bytes) -> object:
        wanted = np.fromiter(map(hash, strings(request)), np.int64, count)
        at = np.minimum(np.searchsorted(ordered, wanted), entries - 1)
        return slab.take(order[at], axis=0), ordered[at] == wanted

    return {
        OURS: microseconds(lambda request: cache.take(Question.of(request).keys), requests),
        "take (dictionary)": microseconds(lambda request: cache.take(strings(request)), requests),
        "hashes, sorted array": microseconds(by_hash, requests),
        "limit: numpy copies the rows": microseconds(lambda wanted: slab.take(wanted, axis=0), rows),
    }


def main() -> None:
    given = options(__doc__)
    items, days, asks = (20_000, 3, 60_000) if given.fast else (100_000, 6, 150_000)
    rows: list[dict[str, object]] = []
    claims: dict[str, bool] = {}
    for scans in (False, True):
        room = int(items * ROOM)
        ours = s3_fifo(trace(items, days, asks, scans=scans), room)
        theirs = lru(trace(items, days, asks, scans=scans), room)
        what = "Zipf, drift and scans" if scans else "Zipf and drift"
        rows.append({"what": what, "way": "S3-FIFO", "hit_rate": round(ours, 4), "us": None, "times_limit": None})
        rows.append({"what": what, "way": "LRU", "hit_rate": round(theirs, 4), "us": None, "times_limit": None})
        claims[f"{what}: S3-FIFO {ours:.3f} against LRU {theirs:.3f}"] = ours >= theirs + (POINTS if scans else 0)
    for count in (1, 100, 500):
        found = lookups(count, 50 if given.fast else 300)
        limit = found["limit: numpy copies the rows"]
        for way, taken in found.items():
            rows.append(
                {
                    "what": f"{count} keys",
                    "way": way,
                    "hit_rate": None,
                    "us": round(taken, 1),
                    "times_limit": round(taken / limit, 2),
                }
            )
        if count == 500:
            times = found[OURS] / limit
            claims[f"500 keys: {times:.2f} times of copying the rows"] = times <= TIMES_COPY
    publish("The hot cache", rows, claims, given)


if __name__ == "__main__":
    main()
