import asyncio
import threading
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoders.spec import EncoderSpec
from feature_repo.directory import EncoderDirectory, UnknownView
from feature_repo.embeddings import Embeddings, Status, oov_zeros
from feature_repo.failures import MemoryFailureMarks
from feature_repo.session import StoreUnavailable
from serving.archive import EmbeddingArchive
from serving.breaker import Breaker
from serving.hot_caches import HotCaches
from serving.memory import DownMarks, DownRows, GatedRows, MemoryRows, memory_archive
from serving.requests import MemoryRequests
from serving.store_reads import StoreReads
from tests.serving.fakes import IMAGE, SPECS, TEXT, Clock, Parts

URL = "http://a.example/x.jpg"


def test_an_archived_key_is_a_hit_with_its_vector_time_and_id() -> None:
    parts = Parts()
    identity = parts.add(TEXT, "cat", 2.0, event_time=123)
    answer = parts.archive.lookup(TEXT.view, ["cat"])
    assert list(answer.status) == [Status.HIT]
    assert answer.vectors.tolist() == [[2.0] * 4]
    assert (answer.event_time[0], answer.embedding_id[0]) == (123, identity)
    assert parts.requests.requests == []


def test_a_missing_key_is_answered_oov_and_asked_for() -> None:
    parts = Parts()
    answer = parts.archive.lookup(TEXT.view, ["cat"])
    assert list(answer.status) == [Status.OOV]
    assert not answer.vectors.any()
    assert answer.embedding_id[0] == oov_zeros(TEXT.view, TEXT.dim).embedding_id
    assert parts.requests.requests == [(TEXT.view, "cat")]


def test_a_marked_key_is_failed_with_its_reason_and_not_asked_for() -> None:
    parts = Parts()
    parts.marks.mark(IMAGE.view, {URL: "NotFound: the server answers 404"})
    answer = parts.archive.lookup(IMAGE.view, [URL])
    assert list(answer.status) == [Status.FAILED]
    assert answer.failures == {0: "NotFound: the server answers 404"}
    assert parts.requests.requests == []


def test_a_mark_never_hides_an_embedding() -> None:
    parts = Parts()
    parts.add(IMAGE, URL, 1.0)
    parts.marks.mark(IMAGE.view, {URL: "NotFound: gone by now"})
    assert list(parts.archive.lookup(IMAGE.view, [URL]).status) == [Status.HIT]


@pytest.mark.parametrize("bad", ["", "  ", "no-url", "ftp://a.example/x", "http://a.example/" + "x" * 9000])
def test_a_key_that_can_be_none_costs_only_itself_an_answer(bad: str) -> None:
    parts = Parts()
    parts.add(IMAGE, URL, 1.0)
    answer = parts.archive.lookup(IMAGE.view, [URL, bad])
    assert list(answer.status) == [Status.HIT, Status.FAILED]
    assert answer.failures[1].startswith("KeyRefused: ")
    assert parts.requests.requests == []


def test_different_spellings_of_one_key_are_asked_for_once_and_answered_alike() -> None:
    parts = Parts()
    answer = parts.archive.lookup(IMAGE.view, ["HTTP://A.example/x.jpg", URL, URL + "#top"])
    assert list(answer.status) == [Status.OOV] * 3
    assert parts.requests.requests == [(IMAGE.view, URL)]


def test_a_store_that_does_not_answer_makes_no_request_storm() -> None:
    parts = Parts()
    archive = memory_archive(SPECS, DownRows(), parts.marks, parts.requests)
    answer = archive.lookup(IMAGE.view, [URL, "no-url"])
    assert list(answer.status) == [Status.UNAVAILABLE, Status.FAILED]
    assert not answer.vectors.any()
    assert parts.requests.requests == []


def test_hits_are_served_though_the_marks_cannot_be_read() -> None:
    parts = Parts()
    parts.add(TEXT, "cat", 1.0)
    archive = memory_archive(SPECS, parts.rows, DownMarks(), parts.requests)
    assert list(archive.lookup(TEXT.view, ["dog", "cat"]).status) == [Status.UNAVAILABLE, Status.HIT]
    assert parts.requests.requests == []


def test_an_unknown_view_is_refused_with_those_known() -> None:
    with pytest.raises(UnknownView, match="photo__v1, tiny__v1"):
        Parts().archive.lookup("nope", ["x"])


def test_no_keys_are_answered_with_an_empty_matrix() -> None:
    answer = Parts().archive.lookup(TEXT.view, [])
    assert answer.vectors.shape == (0, 4)
    assert len(answer) == 0


@given(st.lists(st.sampled_from(["known", "marked", "new", "\0"])))
def test_order_and_status_hold_for_any_mix_of_keys(keys: list[str]) -> None:
    parts = Parts()
    parts.add(TEXT, "known", 3.0)
    parts.marks.mark(TEXT.view, {"marked": "DecodeError: planted"})
    expected = {"known": Status.HIT, "marked": Status.FAILED, "new": Status.OOV, "\0": Status.FAILED}
    answer = parts.archive.lookup(TEXT.view, keys)
    assert [Status(s) for s in answer.status] == [expected[key] for key in keys]
    assert [bool(v.any()) for v in answer.vectors] == [key == "known" for key in keys]
    assert parts.requests.requests == [(TEXT.view, "new")] * ("new" in keys)
    assert set(answer.failures) == {i for i, key in enumerate(keys) if expected[key] == Status.FAILED}


def until(holds: Callable[[], bool]) -> None:
    """Waits for up to 20 s."""
    for _ in range(2000):
        if holds():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it never came to hold")


def gated(budget: float = 20.0) -> tuple[EmbeddingArchive, GatedRows, MemoryRequests]:
    rows, requests = GatedRows(), MemoryRequests()
    return memory_archive(SPECS, rows, MemoryFailureMarks({}), requests, budget=budget), rows, requests


def test_what_is_hot_is_answered_without_the_store_under_each_spelling() -> None:
    parts = Parts()
    parts.add(IMAGE, URL, 1.0)
    archive = parts.archive
    archive.lookup(IMAGE.view, ["HTTP://A.example/x.jpg"])
    parts.rows.rows.clear()
    assert archive.lookup(IMAGE.view, [URL, "HTTP://A.example/x.jpg"]).status.tolist() == [Status.HIT] * 2


def test_what_the_store_has_not_answered_in_time_is_unavailable_and_not_asked_for() -> None:
    archive, rows, requests = gated(budget=0.05)
    answer = archive.lookup(TEXT.view, ["cat", ""])
    assert answer.status.tolist() == [Status.UNAVAILABLE, Status.FAILED]
    assert not answer.vectors.any()
    rows.gate.set()
    assert requests.requests == []


def test_hits_are_answered_in_time_though_the_store_is_not() -> None:
    archive, rows, _ = gated(budget=20)
    rows.gate.set()
    rows.rows[TEXT.view, "cat"] = (7, 8, np.ones(TEXT.dim, dtype=np.float32))
    archive.lookup(TEXT.view, ["cat"])
    rows.gate.clear()
    assert archive.lookup(TEXT.view, ["cat", "dog"], seconds=0.05).status.tolist() == [Status.HIT, Status.UNAVAILABLE]
    rows.gate.set()


def test_a_read_that_comes_too_late_is_a_hit_of_the_next_look_up() -> None:
    archive, rows, _ = gated()
    rows.rows[TEXT.view, "cat"] = (7, 8, np.ones(TEXT.dim, dtype=np.float32))
    assert archive.lookup(TEXT.view, ["cat"], seconds=0.01).status.tolist() == [Status.UNAVAILABLE]
    rows.gate.set()
    assert archive.lookup(TEXT.view, ["cat"]).status.tolist() == [Status.HIT]
    assert len(rows.reads) == 1


def test_a_key_is_read_once_however_many_ask_for_it_at_once() -> None:
    archive, rows, _ = gated()
    rows.rows[TEXT.view, "b"] = (7, 8, np.ones(TEXT.dim, dtype=np.float32))
    answers: dict[str, Embeddings] = {}

    def ask(keys: str) -> None:
        answers[keys] = archive.lookup(TEXT.view, list(keys))

    threads = [threading.Thread(target=ask, args=(keys,)) for keys in ("ab", "ba", "bc", "cab")]
    threads[0].start()
    until(lambda: len(rows.reads) == 1)
    for thread in threads[1:]:
        thread.start()
    until(lambda: len(rows.reads) == 2)
    rows.gate.set()
    for thread in threads:
        thread.join()
    assert sorted(key for read in rows.reads for key in read) == ["a", "b", "c"]
    for keys, answer in answers.items():
        assert [Status(s) for s in answer.status] == [Status.HIT if key == "b" else Status.OOV for key in keys]


def test_an_event_loop_is_answered_alike_and_never_held_up() -> None:
    archive, rows, requests = gated()
    rows.rows[TEXT.view, "cat"] = (7, 8, np.ones(TEXT.dim, dtype=np.float32))

    async def ask() -> tuple[Embeddings, Embeddings]:
        slow = asyncio.create_task(archive.answer(TEXT.view, ["cat", "dog"]))
        late = await archive.answer(TEXT.view, ["cat", "bird"], 0.05)
        rows.gate.set()
        return await slow, late

    slow, late = asyncio.run(ask())
    assert slow.status.tolist() == [Status.HIT, Status.OOV]
    assert late.status.tolist() == [Status.UNAVAILABLE] * 2
    assert requests.requests == [(TEXT.view, "dog")]


class CountedRows:
    """A store that fails while it is `down`, and counts how often it is asked."""

    down = True
    asked = 0

    def read(self, spec: EncoderSpec, keys: Sequence[str]) -> Embeddings:
        self.asked += 1
        if self.down:
            raise StoreUnavailable("planted")
        return MemoryRows().read(spec, keys)


def test_a_store_that_is_down_is_left_alone_and_found_again_when_it_is_back() -> None:
    clock, rows, requests = Clock(), CountedRows(), MemoryRequests()
    breaker = Breaker("the online store", failures=3, open_seconds=1, clock=clock)
    reads = StoreReads(rows, MemoryFailureMarks({}), breaker=breaker, readers=1)
    caches = HotCaches(megabytes=0, seconds=1, clock=clock)
    archive = EmbeddingArchive(EncoderDirectory(lambda: SPECS), reads, requests, caches)
    for i in range(10):
        assert archive.lookup(TEXT.view, [f"k{i}"]).status.tolist() == [Status.UNAVAILABLE]
    assert rows.asked == 3
    clock.now += 1
    archive.lookup(TEXT.view, ["x"])
    archive.lookup(TEXT.view, ["y"])
    assert rows.asked == 4  # one probe
    assert requests.requests == []
    rows.down = False
    clock.now += 1
    assert archive.lookup(TEXT.view, ["z"]).status.tolist() == [Status.OOV]
    assert archive.lookup(TEXT.view, ["x"]).status.tolist() == [Status.OOV]
    assert not breaker.is_open


def test_more_reads_than_may_wait_are_unavailable_at_once() -> None:
    rows = GatedRows()
    reads = StoreReads(rows, MemoryFailureMarks({}), readers=1, waiting=1)
    archive = EmbeddingArchive(
        EncoderDirectory(lambda: SPECS), reads, MemoryRequests(), HotCaches(megabytes=0, seconds=1)
    )
    held = [threading.Thread(target=archive.lookup, args=(TEXT.view, [key])) for key in "ab"]
    held[0].start()
    until(lambda: len(rows.reads) == 1)
    held[1].start()
    until(lambda: reads.waiting == 1)
    assert archive.lookup(TEXT.view, ["c"]).status.tolist() == [Status.UNAVAILABLE]
    assert reads.refused == 1
    rows.gate.set()
    for thread in held:
        thread.join()


def test_reads_that_waited_together_are_one_read_of_each_encoder_and_each_gets_its_own_rows() -> None:
    rows = GatedRows()
    reads = StoreReads(rows, MemoryFailureMarks({}), readers=1)
    caches = HotCaches(megabytes=0, seconds=1)
    first = reads.begin(TEXT, ["a"], caches.of(TEXT))
    until(lambda: len(rows.reads) == 1)
    waiting = [
        (TEXT, ["b", "c"]),
        (TEXT, ["d"]),
        (IMAGE, [URL]),
        (TEXT, [f"many {i}" for i in range(200)]),
        (TEXT, ["e"]),
    ]
    awaited = [*first, *(each for spec, keys in waiting for each in reads.begin(spec, keys, caches.of(spec)))]
    rows.gate.set()
    asked = [["a"], *(keys for _, keys in waiting)]
    for each, keys in zip(awaited, asked, strict=True):
        read = each.read.result(30)
        assert (list(read.keys), len(read.rows), each.rows) == (keys, len(keys), list(range(len(keys))))
    assert [len(keys) for keys in rows.reads] == [1, 3, 1, 200, 1]
    assert rows.reads[1] == ["b", "c", "d"]
    reads.close()


def test_a_caller_in_a_hurry_does_not_close_the_store_to_others() -> None:
    archive, rows, _ = gated()
    for i in range(10):
        archive.lookup(TEXT.view, [f"k{i}"], seconds=0.001)
    rows.gate.set()
    assert archive.lookup(TEXT.view, ["x"]).status.tolist() == [Status.OOV]


def test_what_is_announced_is_asked_for_under_its_canonical_key() -> None:
    parts = Parts()
    assert parts.archive.announce(IMAGE.view, ["HTTP://A.example/x.jpg", "no-url"], None, bulk=False) == 1
    assert parts.requests.requests == [(IMAGE.view, URL)]
