"""Running servers answer the OOV embedding that was set last, and its id with it."""

import numpy as np
import pytest

from encoders.spec import EncoderSpec
from feature_repo.directory import EncoderDirectory
from feature_repo.embeddings import OOV_KEY, Embeddings, OovEmbedding, Status, oov_zeros
from feature_repo.failures import MemoryFailureMarks
from feature_repo.session import StoreUnavailable
from serving.hot_cache import HotCache
from serving.hot_caches import HotCaches
from serving.memory import MemoryRows, memory_archive
from serving.oov import OovRefresh
from serving.requests import MemoryRequests
from tests.serving.fakes import SPECS, TEXT, Clock

ZEROS = oov_zeros(TEXT.view, TEXT.dim)


def oov(value: float, event_time: int) -> OovEmbedding:
    vector = np.full(TEXT.dim, value, dtype=np.float32)
    return OovEmbedding(vector=vector, embedding_id=1000 + event_time, event_time=event_time)


class SometimesDown:
    """Online rows that are away while `down`."""

    def __init__(self) -> None:
        self.rows = MemoryRows()
        self.down = False

    def set(self, each: OovEmbedding) -> None:
        self.rows.rows[TEXT.view, OOV_KEY] = (each.event_time, each.embedding_id, each.vector)

    def read(self, spec: EncoderSpec, keys: list[str]) -> Embeddings:
        if self.down:
            raise StoreUnavailable("planted")
        return self.rows.read(spec, keys)


def told(answer: Embeddings) -> list[tuple[float, int, int]]:
    """First float, id and status of each key."""
    return list(zip(answer.vectors[:, 0].tolist(), answer.embedding_id.tolist(), answer.status.tolist(), strict=True))


def test_look_ups_follow_what_is_set_whatever_the_hot_cache_holds() -> None:
    rows, caches = SometimesDown(), HotCaches(megabytes=1, seconds=300)
    directory = EncoderDirectory(lambda: SPECS)
    marks = MemoryFailureMarks({(TEXT.view, "gone"): "NotFound: planted"})
    archive = memory_archive(SPECS, rows, marks, MemoryRequests(), caches=caches)
    refresh = OovRefresh(directory, rows, caches)
    rows.rows.rows[TEXT.view, "cat"] = (7, 77, np.full(TEXT.dim, 7, dtype=np.float32))
    keys, cat = ["cat", "new", "gone", "\0"], (7.0, 77, Status.HIT)

    def answers(value: float, its_id: int) -> list[tuple[float, int, int]]:
        return [cat, *((value, its_id, s) for s in (Status.OOV, Status.FAILED, Status.FAILED))]

    # 1. before any is set; twice, so that all that can be hot is
    for _ in range(2):
        assert told(archive.lookup(TEXT.view, keys)) == answers(0.0, ZEROS.embedding_id)
    # 2. set, and followed at the next refresh, by keys that are cached as missing, too
    rows.set(oov(0.5, 10))
    assert told(archive.lookup(TEXT.view, keys)) == answers(0.0, ZEROS.embedding_id)
    refresh.refresh()
    assert told(archive.lookup(TEXT.view, keys)) == answers(0.5, 1010)
    # 3. an outage changes nothing, an older row (of a replica that is behind) neither
    rows.down = True
    refresh.refresh()
    rows.down = False
    rows.set(oov(0.25, 9))
    refresh.refresh()
    assert told(archive.lookup(TEXT.view, keys)) == answers(0.5, 1010)
    # 4. the next one
    rows.set(oov(0.75, 11))
    refresh.refresh()
    assert told(archive.lookup(TEXT.view, keys)) == answers(0.75, 1011)
    rows.down = True
    (late,) = told(archive.lookup(TEXT.view, ["another"]))
    assert late == (0.75, 1011, Status.UNAVAILABLE)


def test_a_cache_that_is_made_later_begins_with_it() -> None:
    caches = HotCaches(megabytes=1, seconds=300)
    caches.answer_missing_with(TEXT.view, oov(2.0, 5))
    caches.answer_missing_with(TEXT.view, oov(1.0, 4))
    assert told(caches.of(TEXT).take(["a"])[0]) == [(2.0, 1005, Status.OOV)]


def test_a_slot_that_was_emptied_has_the_id_of_what_stands() -> None:
    cache = HotCache(TEXT, megabytes=1, seconds=300, clock=Clock())
    cache.fill_missing(["a"], {}, began=cache.now())
    cache.answer_missing_with(oov(3.0, 6))
    assert told(cache.take(["a", "b"])[0]) == [(3.0, 1006, Status.OOV)] * 2
    cache.embedded("a", 8, 9)  # and its slot is free again
    cache.fill_missing(["c"], {}, began=cache.now())
    assert told(cache.take(["a", "c"])[0]) == [(3.0, 1006, Status.OOV)] * 2


def test_a_thread_refreshes_while_the_server_runs(caplog: pytest.LogCaptureFixture) -> None:
    import time

    rows, caches = SometimesDown(), HotCaches(megabytes=1, seconds=300)
    rows.set(oov(1.0, 1))
    with OovRefresh(EncoderDirectory(lambda: SPECS), rows, caches, refresh_seconds=0.01):
        assert told(caches.of(TEXT).take(["a"])[0])[0][0] == 1.0  # before anything is served
        rows.down = True
        deadline = time.monotonic() + 60
        while not any("stays as it was" in line for line in caplog.messages):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        rows.set(oov(2.0, 2))
        rows.down = False
        while told(caches.of(TEXT).take(["a"])[0])[0][0] != 2.0:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert sum(f"OOV embedding of {TEXT.view}" in line for line in caplog.messages) == 1  # once an outage
