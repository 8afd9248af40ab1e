import gc
import platform
import threading
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoders.memory import keep_freed_memory
from feature_repo.embeddings import Embeddings, Status, all_missing, oov_zeros
from serving.collector import keep_what_started
from serving.eviction import S3Fifo
from serving.floors import FLOOR_SECONDS, Floors
from serving.hot_cache import FAILED_SECONDS, NEGATIVES, OOV_SECONDS, OVERHEAD_BYTES, HotCache
from serving.hot_caches import HotCaches
from tests.serving.fakes import IMAGE, TEXT, Clock

OF_ONE = (4 * TEXT.dim + OVERHEAD_BYTES) / 1_000_000  # megabytes


def cache_of(capacity: int, clock: Clock | None = None, floors: Floors | None = None) -> HotCache:
    return HotCache(TEXT, megabytes=(capacity + 0.5) * OF_ONE, seconds=100, clock=clock or Clock(), floors=floors)


def rows(keys: Sequence[str], event_time: int = 7) -> Embeddings:
    """A read that found all keys: vectors of the number in the key, id ten times as much."""
    read = all_missing(oov_zeros(TEXT.view, TEXT.dim), len(keys), Status.HIT)
    for i, key in enumerate(keys):
        read.vectors[i] = float(key)
        read.embedding_id[i] = int(key) * 10
        read.event_time[i] = event_time
    return read


def fill(cache: HotCache, *keys: str, event_time: int = 7) -> None:
    cache.fill(keys, rows(keys, event_time), began=cache.now())


def statuses(cache: HotCache, *keys: str) -> list[Status | None]:
    answer, missing = cache.take(keys)
    return [None if gone else Status(int(s)) for s, gone in zip(answer.status, missing, strict=True)]


def test_what_was_filled_is_taken_in_the_order_of_the_keys() -> None:
    cache = cache_of(10)
    fill(cache, "1", "2", "3")
    answer, missing = cache.take(["3", "9", "1", "3"])
    assert missing.tolist() == [False, True, False, False]
    assert answer.vectors[:, 0].tolist() == [3, 0, 1, 3]
    assert answer.embedding_id[[0, 2]].tolist() == [30, 10]
    assert answer.event_time.tolist() == [7, 0, 7, 7]
    assert answer.status.tolist() == [Status.HIT, Status.OOV, Status.HIT, Status.HIT]


def test_memory_is_fixed_and_the_number_of_vectors_with_it() -> None:
    cache = cache_of(20)
    for i in range(200):
        fill(cache, str(i))
    assert cache.capacity == len(cache) == 20
    assert cache.evicted == 180


def test_a_cache_of_no_megabytes_keeps_only_what_is_missing() -> None:
    cache = HotCache(TEXT, megabytes=0, seconds=100)
    fill(cache, "1")
    cache.fill_missing(["2"], {}, began=cache.now())
    assert statuses(cache, "1", "2") == [None, Status.OOV]


def test_a_scan_leaves_what_is_asked_for_again_and_again_in_place() -> None:
    cache = cache_of(100)
    hot = [str(i) for i in range(80)]
    for _ in range(3):
        fill(cache, *(key for key in hot if statuses(cache, key) == [None]))
    for i in range(1000, 5000):
        fill(cache, str(i))
    assert statuses(cache, *hot).count(Status.HIT) >= 70


def test_a_row_is_read_again_when_its_time_is_over() -> None:
    clock = Clock()
    cache = cache_of(10, clock)
    fill(cache, "1")
    clock.now += 99
    assert statuses(cache, "1") == [Status.HIT]
    clock.now += 2
    assert statuses(cache, "1") == [None]
    fill(cache, "1")
    assert statuses(cache, "1") == [Status.HIT]


def test_missing_keys_are_known_for_a_short_time_with_their_reason() -> None:
    clock = Clock()
    cache = cache_of(10, clock)
    cache.fill_missing(["1", "2"], {"2": "NotFound: 404"}, began=cache.now())
    answer, missing = cache.take(["2", "1"])
    assert not missing.any()
    assert answer.status.tolist() == [Status.FAILED, Status.OOV]
    assert answer.failures == {0: "NotFound: 404"}
    clock.now += OOV_SECONDS
    assert statuses(cache, "1", "2") == [None, Status.FAILED]
    clock.now += FAILED_SECONDS
    assert statuses(cache, "1", "2") == [None, None]


def test_missing_keys_take_no_room_from_vectors_and_have_an_end() -> None:
    cache = cache_of(10)
    fill(cache, "1")
    cache.fill_missing([f"x{i}" for i in range(NEGATIVES + 5)], {}, began=cache.now())
    assert statuses(cache, "1", "x0", "x5") == [Status.HIT, None, Status.OOV]


def test_a_key_that_was_missing_is_a_hit_when_it_is_filled_under_all_its_spellings() -> None:
    cache = cache_of(10)
    cache.fill_missing(["1"], {}, began=cache.now())
    cache.spell([(" 1", "1")])
    assert statuses(cache, " 1") == [Status.OOV]
    fill(cache, "1")
    assert statuses(cache, "1", " 1") == [Status.HIT, Status.HIT]


def test_an_evicted_key_is_gone_under_all_its_spellings() -> None:
    cache = cache_of(1)
    fill(cache, "1")
    cache.spell([(" 1", "1")])
    fill(cache, "2")
    assert statuses(cache, "1", " 1", "2") == [None, None, Status.HIT]


def test_long_keys_make_room_sooner_than_memory_grows() -> None:
    cache = cache_of(100)
    for i in range(2000):
        cache.fill_missing([str(i) + "x" * 8000], {}, began=cache.now())
        fill(cache, str(i))
    for i in range(2000):
        key = "0" * 6000 + str(i)
        cache.fill([key], rows([str(i)]), began=cache.now())
    assert cache._characters < 256 * (100 + NEGATIVES) + 10_000
    assert statuses(cache, "0" * 6000 + "1999") == [Status.HIT]


def test_an_announcement_drops_the_older_row_and_no_newer_one() -> None:
    cache = cache_of(10)
    fill(cache, "1", "2", event_time=7)
    cache.embedded("1", 8, 99)
    cache.embedded("2", 6, 99)
    assert statuses(cache, "1", "2") == [None, Status.HIT]


def test_an_announcement_ends_that_a_key_is_missing() -> None:
    cache = cache_of(10)
    cache.fill_missing(["1", "2"], {}, began=cache.now())
    cache.embedded("1", 8, 99)
    cache.failed("2")
    assert statuses(cache, "1", "2") == [None, None]


def test_no_late_fill_restores_what_was_invalidated() -> None:
    cache = cache_of(10)
    began = cache.now()
    cache.invalidated("1", 7)
    cache.fill(["1"], rows(["1"], event_time=7), began=began)
    assert statuses(cache, "1") == [None]
    fill(cache, "1", event_time=8)  # embedded again: a later event
    assert statuses(cache, "1") == [Status.HIT]
    assert cache.counts.refused == 1


def test_of_rows_of_one_event_time_the_announced_one_is_kept() -> None:
    cache = cache_of(10)
    cache.embedded("1", 7, 99)
    fill(cache, "1", event_time=7)  # its id is 10
    assert statuses(cache, "1") == [None]
    cache.embedded("1", 7, 10)
    fill(cache, "1", event_time=7)
    assert statuses(cache, "1") == [Status.HIT]


def test_that_a_key_was_missing_is_no_news_after_it_was_embedded() -> None:
    cache = cache_of(10)
    began = cache.now()
    cache.embedded("1", 7, 10)
    cache.fill_missing(["1"], {}, began=began)
    assert statuses(cache, "1") == [None]


def test_a_floor_outlives_any_read_and_then_goes() -> None:
    clock = Clock()
    floors = Floors()
    floors.raise_to("1", 7, None, clock.now)
    clock.now += FLOOR_SECONDS - 1
    floors.raise_to("2", 7, None, clock.now)
    assert floors.get("1") is not None
    clock.now += 2
    floors.raise_to("3", 7, None, clock.now)
    assert floors.get("1") is None
    assert floors.complete_since == float("-inf")


def test_where_floors_were_given_up_no_read_from_before_is_kept() -> None:
    clock = Clock()
    cache = cache_of(10, clock, Floors(most=2))
    began = cache.now()
    for key in "123":
        clock.now += 0.1
        cache.invalidated(key, 7)
    cache.fill(["1", "5"], rows(["1", "5"]), began=began)
    cache.fill_missing(["6"], {}, began=began)
    assert statuses(cache, "1", "5", "6") == [None, None, None]
    fill(cache, "5")
    assert statuses(cache, "5") == [Status.HIT]


def test_readers_that_race_announcements_never_leave_an_old_row() -> None:
    """The store holds a version a key; readers fill what they saw, a writer raises versions and announces them."""
    cache = cache_of(50)
    keys = [str(i) for i in range(30)]
    versions = dict.fromkeys(keys, 1)
    stop = threading.Event()
    wrong: list[str] = []

    def read() -> None:
        while not stop.is_set():
            began = cache.now()
            seen = {key: versions[key] for key in keys}
            found = rows(keys)
            found.event_time[:] = found.embedding_id[:] = [seen[key] for key in keys]
            stop.wait(0.0005)  # the row is history by now, as often as not
            cache.fill(keys, found, began=began)

    def check() -> None:
        while not stop.is_set():
            before = {key: announced.get(key, 0) for key in keys}
            answer, missing = cache.take(keys)
            wrong.extend(
                key for i, key in enumerate(keys) if not missing[i] and int(answer.event_time[i]) < before[key]
            )

    announced: dict[str, int] = {}
    threads = [threading.Thread(target=read) for _ in range(3)] + [threading.Thread(target=check)]
    for thread in threads:
        thread.start()
    draw = np.random.default_rng(0)
    for _ in range(3000):
        key = keys[int(draw.integers(len(keys)))]
        versions[key] += 1
        cache.embedded(key, versions[key], versions[key])
        announced[key] = versions[key]
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    answer, missing = cache.take(keys)
    assert all(missing[i] or answer.event_time[i] == versions[key] for i, key in enumerate(keys))


@given(st.lists(st.tuples(st.sampled_from(["fill", "missing", "embedded", "invalidated"]), st.integers(0, 30))))
def test_whatever_happens_a_hit_is_the_keys_own_vector(steps: list[tuple[str, int]]) -> None:
    cache = cache_of(5)
    for i, (step, number) in enumerate(steps):
        key = str(number)
        if step == "fill":
            fill(cache, key, event_time=i)
        elif step == "missing":
            cache.fill_missing([key], {}, began=cache.now())
        elif step == "embedded":
            cache.embedded(key, i, number * 10)
        else:
            cache.invalidated(key, i)
        answer, missing = cache.take([str(n) for n in range(31)])
        for n in range(31):
            if not missing[n] and answer.status[n] == Status.HIT:
                assert (answer.vectors[n] == n).all()
                assert answer.embedding_id[n] == n * 10
        assert len(cache) <= 5


def test_slots_are_given_out_once_each_until_they_are_evicted() -> None:
    policy = S3Fifo(10, np.zeros(10, dtype=np.uint8))
    assert sorted(policy.place(i) for i in range(10)) == list(range(10))
    assert policy.place(10) in range(10)
    assert policy.evicted == 1


def test_each_encoder_has_a_cache_of_its_own() -> None:
    caches = HotCaches(megabytes=1, seconds=100)
    assert caches.of(TEXT) is caches.of(TEXT)
    assert caches.of(TEXT) is not caches.of(IMAGE)
    assert caches.named(TEXT.view) is caches.of(TEXT)
    assert caches.named("nope") is None


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries give memory back in their own ways")
def test_the_c_library_takes_it_that_freed_memory_is_kept() -> None:
    assert keep_freed_memory()


def test_what_there_is_is_not_collected_again() -> None:
    before = gc.get_freeze_count()
    try:
        keep_what_started()
        assert gc.get_freeze_count() > before + 1000
    finally:
        gc.unfreeze()
