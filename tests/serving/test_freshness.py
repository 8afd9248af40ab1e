import json
import logging
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from embark.console import JsonLines
from feature_repo.embeddings import Status
from feature_repo.failures import MemoryFailureMarks
from materializer.messages import Announcement
from serving.client import EmbArkClient, ViewUnknown
from serving.freshness import Freshness
from serving.hot_caches import HotCaches
from serving.load import Gate
from serving.memory import MemoryRows, memory_archive
from serving.metrics import Metrics, PartsCollector
from serving.requests import MemoryRequests, RequestQueue
from serving.store_reads import StoreReads
from serving.warm_start import WarmStart
from tests.serving.fakes import SPECS, TEXT, FakeProducer, Parts, served


def until(holds: Callable[[], bool]) -> None:
    """Waits for up to 20 s."""
    for _ in range(2000):
        if holds():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it never came to hold")


class FakeAnnouncements:
    """Announcements that the test tells; the first poll fails."""

    def __init__(self, missed: Callable[[], None]) -> None:
        self.missed = missed
        self.told: list[Announcement] = []
        self.polls = 0
        self.closed = False

    def poll(self, timeout: float) -> Sequence[Announcement]:
        self.polls += 1
        if self.polls == 1:
            raise RuntimeError("planted")
        if self.polls == 2:
            self.missed()
        threading.Event().wait(0.01)
        told, self.told = self.told, []
        return told

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def parts() -> Parts:
    parts = Parts()
    for key in ("cat", "dog"):
        parts.add(TEXT, key, 1.0, event_time=7)
    return parts


def test_what_is_announced_is_served_though_the_old_is_hot(parts: Parts) -> None:
    caches = HotCaches(megabytes=1, seconds=1000)
    archive = memory_archive(SPECS, parts.rows, parts.marks, parts.requests, caches=caches)
    opened: list[FakeAnnouncements] = []

    def open(missed: Callable[[], None]) -> FakeAnnouncements:
        opened.append(FakeAnnouncements(missed))
        return opened[-1]

    with Freshness(open, caches) as freshness:
        assert freshness.reading.wait(20)
        assert (archive.lookup(TEXT.view, ["cat", "dog", "new"]).status == Status.HIT).tolist() == [True, True, False]
        identity = parts.add(TEXT, "cat", 2.0, event_time=8)
        del parts.rows.rows[TEXT.view, "dog"]
        assert archive.lookup(TEXT.view, ["cat"]).vectors[0, 0] == 1.0  # hot: nobody has told it yet
        opened[0].told = [
            Announcement("embedded", TEXT.view, "cat", 8, identity),
            Announcement("invalidated", TEXT.view, "dog", 7, 0),
            Announcement("failed", TEXT.view, "new", 7, 0),
            Announcement("embedded", "of another view", "cat", 8, identity),
        ]
        until(lambda: archive.lookup(TEXT.view, ["cat"]).vectors[0, 0] == 2.0)
        assert archive.lookup(TEXT.view, ["dog"]).status.tolist() == [Status.OOV]
    assert opened[0].closed


def test_where_announcements_may_have_been_missed_all_is_read_again(parts: Parts) -> None:
    caches = HotCaches(megabytes=1, seconds=1000)
    archive = memory_archive(SPECS, parts.rows, parts.marks, parts.requests, caches=caches)
    archive.lookup(TEXT.view, ["cat"])
    parts.add(TEXT, "cat", 2.0, event_time=8)
    caches.distrust()
    assert archive.lookup(TEXT.view, ["cat"]).vectors[0, 0] == 2.0


def test_the_hot_keys_of_the_last_run_are_warm_and_none_of_them_is_asked_for(parts: Parts, tmp_path: Path) -> None:
    caches = HotCaches(megabytes=1, seconds=1000)
    archive = memory_archive(SPECS, parts.rows, parts.marks, parts.requests, caches=caches)
    archive.lookup(TEXT.view, ["cat", "dog"])
    WarmStart(tmp_path / "hot", archive, caches).save()

    del parts.rows.rows[TEXT.view, "dog"]
    (tmp_path / "hot" / "gone__v1.json").write_text('["x"]')
    (tmp_path / "hot" / "photo__v1.json").write_text("no JSON")
    rows, requests = MemoryRows(dict(parts.rows.rows)), MemoryRequests()
    again = memory_archive(SPECS, rows, MemoryFailureMarks({}), requests)
    assert WarmStart(tmp_path / "hot", again, caches, keeps=False).warm() == 1
    rows.rows.clear()
    assert again.lookup(TEXT.view, ["cat", "dog"]).status.tolist() == [Status.HIT, Status.OOV]
    assert requests.requests == [(TEXT.view, "dog")]  # by the look-up


def test_metrics_tell_of_calls_keys_and_parts(parts: Parts) -> None:
    registry, gate = CollectorRegistry(), Gate()
    caches = HotCaches(megabytes=1, seconds=1000)
    reads, requests = StoreReads(parts.rows, parts.marks), RequestQueue(FakeProducer(), "requests")
    registry.register(PartsCollector(caches, reads, requests, gate))
    archive = memory_archive(SPECS, parts.rows, parts.marks, parts.requests, caches=caches)
    with served(archive, metrics=Metrics(registry), gate=gate) as address, EmbArkClient(address) as client:
        for _ in range(2):
            client.lookup(TEXT.view, ["cat", "new"])
        with pytest.raises(ViewUnknown):
            client.lookup("nope", ["x"])
    requests.close(5)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, labels)

    assert value("embark_call_seconds_count", method="Lookup", code="OK") == 2
    assert value("embark_call_seconds_count", method="Lookup", code="NOT_FOUND") == 1
    assert value("embark_keys_total", view=TEXT.view, status="HIT") == 2
    assert value("embark_keys_total", view=TEXT.view, status="OOV") == 2
    assert value("embark_hot_cache_hits_total", view=TEXT.view) == 2
    assert value("embark_hot_cache_misses_total", view=TEXT.view) == 2
    assert value("embark_hot_cache_rows", view=TEXT.view) == 1
    assert value("embark_store_breaker_open") == 0
    assert value("embark_calls") == 0


def test_a_line_of_json_holds_what_was_logged_and_its_trace() -> None:
    try:
        raise ValueError("planted")
    except ValueError:
        record = logging.getLogger("serving").makeRecord(
            "serving", logging.WARNING, "file", 1, "%d keys", (3,), sys.exc_info()
        )
    told = json.loads(JsonLines().format(record))
    assert (told["level"], told["logger"], told["message"]) == ("WARNING", "serving", "3 keys")
    assert told["time"].endswith("+00:00")
    assert "ValueError: planted" in told["trace"]
