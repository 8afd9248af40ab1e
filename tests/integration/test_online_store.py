"""The online store plugin on a real Cassandra: which row is kept, and reading and writing many at once."""

import asyncio
import math
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from feast import FeatureStore, FeatureView, Field
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Array, Float32, Int64, String
from hypothesis import given, settings
from hypothesis import strategies as st

from embark.servers import LocalServers
from feature_repo.online.cluster import StoreMisconfigured
from feature_repo.online.columns import MAX_VECTOR, ValueRefused
from feature_repo.online_store import EmbeddingOnlineStore
from feature_repo.session import NotApplied, StoreUnavailable
from tests.feature_repo.feast_values import VALUES, bits, vectors
from tests.integration.online_repos import (
    ITEM,
    item,
    item_view,
    online,
    open_store,
    read_items,
    vector,
    write_online_repo,
)

pytestmark = pytest.mark.servers

EVENT = datetime(2026, 1, 1, tzinfo=UTC)
COUNT = Field(name="count", dtype=Int64)
VIEW = item_view(
    "rows",
    COUNT,
    Field(name="title", dtype=String),
    Field(name="tags", dtype=Array(String)),
    Field(name="embedding", dtype=Array(Float32), vector_length=3),
)
Row = dict[str, Value]


@pytest.fixture(scope="module")
def store(servers: LocalServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FeatureStore]:
    with open_store(write_online_repo(tmp_path_factory.mktemp("rows"), servers)) as store:
        store.apply([ITEM, VIEW])
        yield store


def write(store: FeatureStore, *rows: tuple[str, Row, datetime, datetime | None], view: FeatureView = VIEW) -> None:
    online(store).online_write_batch(store.config, view, [(item(key), *row) for key, *row in rows], None)


def delete(store: FeatureStore, key: str, moment: datetime) -> None:
    online(store).online_delete(store.config, VIEW, [(item(key), moment)])


def read(store: FeatureStore, *keys: str) -> list[Any]:
    return read_items(store, VIEW, keys)


# Which row is kept

# Event times before and after 1970, a microsecond apart and far; few, so that they often meet.
MOMENTS = st.sampled_from(
    [EVENT + timedelta(microseconds=n) for n in (0, 1, 2)] + [datetime(1, 1, 2, tzinfo=UTC), datetime(1969, 12, 31)]
).map(lambda moment: moment.replace(tzinfo=UTC))
ROWS = st.fixed_dictionaries(
    {},
    optional={
        "count": st.just(Value()) | st.integers(0, 3).map(lambda n: Value(int64_val=n)),
        "title": st.just(Value(null_val=0)) | st.sampled_from(["", "a"]).map(lambda text: Value(string_val=text)),  # type: ignore[arg-type]
        "tags": st.just(Value()) | VALUES[Array(String)],
        "embedding": st.just(Value()) | vectors(3),
    },
)
WRITES = st.tuples(st.just("write"), ROWS, MOMENTS, MOMENTS)
DELETES = st.tuples(st.just("delete"), st.just({}), MOMENTS, st.none())


def told(row: Row) -> dict[str, Any]:
    """A row as it reads back: null is null."""
    return {
        name: bits(value) if value.WhichOneof("val") not in (None, "null_val") else None for name, value in row.items()
    }


def may_be_left(changes: list[Any]) -> list[tuple[datetime | None, dict[str, Any] | None]]:
    """What changes of one key end in: those rows of the newest event that was not removed that were created last and
    are the widest. Where there are several, which of them is for the store to choose, once and for all."""
    removed = max((event for kind, _, event, _ in changes if kind == "delete"), default=None)
    rows = [
        ((event, created, len(row)), row)
        for kind, row, event, created in changes
        if kind == "write" and (removed is None or event > removed)
    ]
    newest = max((version for version, _ in rows), default=None)
    return [(newest[0], told(row)) for version, row in rows if newest and version == newest] or [(None, None)]


def change(store: FeatureStore, key: str, changes: list[Any]) -> None:
    for kind, row, event, created in changes:
        if kind == "write":
            write(store, (key, row, event, created))
        else:
            delete(store, key, event)


def left(store: FeatureStore, *keys: str) -> list[tuple[datetime | None, dict[str, Any] | None]]:
    rows = online(store).online_read(store.config, VIEW, [item(key) for key in keys])
    return [(moment, None if row is None else told(row)) for moment, row in rows]


@pytest.mark.parametrize("removing", [False, True], ids=["writes", "writes and deletions"])
def test_any_order_and_repetition_of_changes_ends_in_the_newest_event(store: FeatureStore, removing: bool) -> None:
    @settings(max_examples=60)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        changes = data.draw(st.lists(WRITES | DELETES if removing else WRITES, min_size=1, max_size=7))
        again = data.draw(st.permutations(changes + data.draw(st.lists(st.sampled_from(changes), max_size=4))))
        ordered, shuffled, together, reversed_ = (uuid.uuid4().hex for _ in range(4))
        change(store, ordered, changes)
        change(store, shuffled, again)
        change(store, reversed_, changes[::-1])
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda one: change(store, together, [one]), again))
        first, *others = left(store, ordered, shuffled, together, reversed_)
        assert first in may_be_left(changes)
        assert others == [first] * 3

    check()


@settings(max_examples=30)
@given(st.lists(st.tuples(st.sampled_from("abc"), ROWS, MOMENTS, MOMENTS), min_size=1, max_size=12))
def test_one_batch_may_hold_many_rows_of_a_key(store: FeatureStore, rows: list[Any]) -> None:
    prefix = uuid.uuid4().hex
    write(store, *((prefix + key, *row) for key, *row in rows))
    for key, found in zip("abc", left(store, *(prefix + key for key in "abc")), strict=True):
        assert found in may_be_left([("write", *row) for name, *row in rows if name == key])


def test_without_a_created_time_what_is_written_last_counts(store: FeatureStore) -> None:
    for n in (3, 1, 2):
        write(store, ("uncreated", {"count": Value(int64_val=n)}, EVENT, None))
        assert read(store, "uncreated") == [{"count": Value(int64_val=n)}]
    write(store, ("uncreated", {"count": Value(int64_val=9)}, EVENT, EVENT))  # created long ago
    assert read(store, "uncreated") == [{"count": Value(int64_val=2)}]


def test_a_later_row_replaces_an_earlier_one_whole(store: FeatureStore) -> None:
    write(store, ("whole", {"count": Value(int64_val=1), "title": Value(string_val="a")}, EVENT, EVENT))
    write(store, ("whole", {"count": Value(int64_val=2)}, EVENT + timedelta(seconds=1), EVENT))
    assert read(store, "whole") == [{"count": Value(int64_val=2)}]


def test_a_deletion_spares_later_events_and_outlives_earlier_ones(store: FeatureStore) -> None:
    later = EVENT + timedelta(seconds=1)
    write(
        store,
        ("gone", {"count": Value(int64_val=1)}, EVENT, EVENT),
        ("kept", {"count": Value(int64_val=2)}, later, later),
    )
    delete(store, "gone", EVENT)
    delete(store, "kept", EVENT)
    assert read(store, "gone", "kept") == [None, {"count": Value(int64_val=2)}]
    write(store, ("gone", {"count": Value(int64_val=3)}, EVENT, later))
    assert read(store, "gone") == [None]
    write(store, ("gone", {"count": Value(int64_val=4)}, later, later))
    assert read(store, "gone") == [{"count": Value(int64_val=4)}]


def test_readers_never_see_half_a_row_while_writers_race(store: FeatureStore) -> None:
    def row(n: int) -> Row:
        return {"count": Value(int64_val=n), "title": Value(string_val=str(n)), "embedding": vector(n, n, n)}

    done = threading.Event()

    def watch() -> int:
        newest = seen = 0
        while not done.is_set():
            (found,) = read(store, "raced")
            if found is not None:
                n = found["count"].int64_val
                assert found == row(n)
                assert n >= newest  # at one consistency, on one node: time does not run backwards
                newest, seen = n, seen + 1
        return seen

    with ThreadPoolExecutor(8) as pool:
        watchers = [pool.submit(watch) for _ in range(3)]
        moves = [
            pool.submit(write, store, ("raced", row(n), EVENT + timedelta(microseconds=n), EVENT))
            for n in range(1, 301)
        ]
        for move in moves:
            move.result()
        done.set()
        assert all(watcher.result() > 0 for watcher in watchers)
    assert read(store, "raced") == [row(300)]


# How old a row may be


def test_a_row_older_than_the_ttl_reads_as_missing(store: FeatureStore) -> None:
    now = datetime.now(UTC)
    short, none, zero = (
        item_view(name, COUNT, ttl=ttl)
        for name, ttl in (("short", timedelta(minutes=5)), ("none", None), ("zero", timedelta(0)))  # type: ignore[arg-type]
    )
    store.apply([short, none, zero])
    ages = {"young": timedelta(minutes=4), "old": timedelta(minutes=6), "future": -timedelta(hours=1)}
    for view in (short, none, zero):
        write(store, *((key, {"count": Value(int64_val=1)}, now - age, now) for key, age in ages.items()), view=view)
        one = {"count": Value(int64_val=1)}
        assert read_items(store, view, list(ages)) == [one, None if view is short else one, one]
        answer = store.get_online_features([f"{view.name}:count"], [{"item": key} for key in ages]).proto
        statuses = list(answer.results[1].statuses)
        assert statuses == [1, 3 if view is short else 1, 1]  # PRESENT, NOT_FOUND


def test_a_changed_ttl_counts_at_once_for_rows_that_stand(store: FeatureStore) -> None:
    written = datetime.now(UTC) - timedelta(hours=1)
    store.apply([item_view("changing", COUNT, ttl=timedelta(days=1))])
    write(store, ("a", {"count": Value(int64_val=1)}, written, written), view=store.get_feature_view("changing"))
    found = []
    for ttl in (timedelta(days=1), timedelta(minutes=1), timedelta(0)):
        store.apply([item_view("changing", COUNT, ttl=ttl)])
        found.append(read_items(store, store.get_feature_view("changing"), ["a"])[0] is not None)
    assert found == [True, False, True]


def test_with_key_ttl_seconds_cassandra_removes_a_row_so_long_after_it_was_written(store: FeatureStore) -> None:
    view = item_view("fleeting", COUNT)
    store.apply([view])
    old = datetime(2001, 1, 1, tzinfo=UTC)  # the event's age does not count
    store.config.online_store.key_ttl_seconds = 3
    try:
        write(store, ("a", {"count": Value(int64_val=1)}, old, old), view=view)
        assert read_items(store, view, ["a"]) == [{"count": Value(int64_val=1)}]
        time.sleep(3)
        assert read_items(store, view, ["a"]) == [None]
    finally:
        store.config.online_store.key_ttl_seconds = None
    write(store, ("a", {"count": Value(int64_val=2)}, old, old + timedelta(days=1)), view=view)
    assert read_items(store, view, ["a"]) == [{"count": Value(int64_val=2)}]


# Keys and values


@settings(max_examples=30)
@given(st.lists(st.text(max_size=20), min_size=1, max_size=20))
def test_keys_of_any_text_are_told_apart(store: FeatureStore, keys: list[str]) -> None:
    prefix = uuid.uuid4().hex
    wanted = {prefix + key: Value(int64_val=i) for i, key in enumerate(keys)}
    write(store, *((key, {"count": value}, EVENT, EVENT) for key, value in wanted.items()))
    asked = [prefix + key for key in keys] + [prefix + key + "!" for key in keys]
    expected = [{"count": wanted[key]} if key in wanted else None for key in asked]
    assert read(store, *asked) == expected


def test_letters_that_look_alike_are_other_keys(store: FeatureStore) -> None:
    keys = ["é", "e\u0301", "🙂", "🙂\ufe0f", "שלום", "שלום\u200f", "a\0b", "a", "A", "a ", "ａ"]
    write(store, *((key, {"title": Value(string_val=key)}, EVENT, EVENT) for key in keys))
    assert read(store, *keys) == [{"title": Value(string_val=key)} for key in keys]


def test_a_key_that_no_row_can_have_costs_only_itself_an_answer(store: FeatureStore) -> None:
    write(store, ("short", {"count": Value(int64_val=1)}, EVENT, EVENT))
    assert read(store, "short", "x" * 70_000) == [{"count": Value(int64_val=1)}, None]
    with pytest.raises(ValueRefused, match=r"rows: the key item='x+… takes 70024 bytes; Cassandra's hold 65535"):
        write(store, ("x" * 70_000, {"count": Value(int64_val=1)}, EVENT, EVENT))


def test_an_embedding_of_another_length_is_refused_and_nothing_of_its_batch_written(store: FeatureStore) -> None:
    good, bad = {"embedding": vector(1, 2, 3)}, {"embedding": vector(1, 2)}
    with pytest.raises(ValueRefused, match=r"rows: item='bad': feature 'embedding' is 2 floats where 3 floats"):
        write(store, ("refused", good, EVENT, EVENT), ("bad", bad, EVENT, EVENT), ("after", good, EVENT, EVENT))
    assert read(store, "refused", "bad", "after") == [None] * 3


def test_what_is_no_number_comes_back_to_the_bit(store: FeatureStore) -> None:
    odd = vector(math.nan, -math.inf, -0.0)
    write(store, ("odd", {"embedding": odd}, EVENT, EVENT))
    (row,) = read(store, "odd")
    assert bits(row["embedding"]) == bits(odd)


def test_the_longest_vector_and_a_large_value_fit(store: FeatureStore) -> None:
    view = item_view(
        "large",
        Field(name="embedding", dtype=Array(Float32), vector_length=MAX_VECTOR),
        Field(name="title", dtype=String),
    )
    store.apply([view])
    row = {"embedding": vector(*map(float, range(MAX_VECTOR))), "title": Value(string_val="é" * 500_000)}
    write(store, *((f"large{n}", row, EVENT, EVENT) for n in range(3)), view=view)
    assert read_items(store, view, ["large0", "large1", "large2"]) == [row] * 3


@pytest.mark.parametrize(
    "event", [datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)]
)
def test_the_first_and_the_last_moment_are_event_times(store: FeatureStore, event: datetime) -> None:
    key = event.isoformat()
    write(store, (key, {"count": Value(int64_val=1)}, event, event))
    assert online(store).online_read(store.config, VIEW, [item(key)]) == [(event, {"count": Value(int64_val=1)})]


# Many at once


def test_an_empty_read_and_an_empty_write_do_nothing(store: FeatureStore) -> None:
    assert read(store) == []
    write(store)
    assert asyncio.run(online(store).online_read_async(store.config, VIEW, [])) == []


def test_ten_thousand_keys_with_repetitions_and_misses_keep_their_order(store: FeatureStore) -> None:
    heard: list[int] = []
    rows = [(item(f"many{n}"), {"count": Value(int64_val=n)}, EVENT, EVENT) for n in range(10_000)]
    online(store).online_write_batch(store.config, VIEW, rows, heard.append)
    assert sum(heard) == 10_000
    asked = [n * 7919 % 12_000 for n in range(10_000)] + [5, 5, 11_999, 5]
    found = read(store, *(f"many{n}" for n in asked))
    assert [row and row["count"].int64_val for row in found] == [n if n < 10_000 else None for n in asked]


def test_requested_features_alone_are_read(store: FeatureStore) -> None:
    write(store, ("some", {"count": Value(int64_val=1), "title": Value(), "embedding": vector(1, 2, 3)}, EVENT, EVENT))
    assert read_items(store, VIEW, ["some"], ["embedding"]) == [{"embedding": vector(1, 2, 3)}]
    assert read_items(store, VIEW, ["some"], ["title", "tags"]) == [{"title": Value()}]
    assert read_items(store, VIEW, ["some"], ["tags"]) == [{}]
    assert read_items(store, VIEW, ["some"], ["unknown", "count"]) == [{"count": Value(int64_val=1)}]
    assert read_items(store, VIEW, ["some"], []) == [{}]


def test_threads_that_open_one_store_at_the_same_time_share_a_session(store: FeatureStore) -> None:
    fresh, start = EmbeddingOnlineStore(), threading.Barrier(8)

    def first_use() -> Any:
        start.wait()
        return fresh._get_session(store.config)

    def clusters() -> int:
        return sum(thread.name.startswith("Connection heartbeat") for thread in threading.enumerate())

    before = clusters()
    with ThreadPoolExecutor(8) as pool:
        sessions = [each.result() for each in [pool.submit(first_use) for _ in range(8)]]
    try:
        assert len({id(session) for session in sessions}) == 1
        assert clusters() == before + 1
    finally:
        asyncio.run(fresh.close())
    assert fresh._cluster is None


def test_many_threads_read_and_write_one_store(store: FeatureStore) -> None:
    def work(n: int) -> bool:
        keys = [f"thread{n}-{i}" for i in range(20)]
        for round_ in range(5):
            moment = EVENT + timedelta(seconds=round_)
            write(store, *((key, {"count": Value(int64_val=round_)}, moment, moment) for key in keys))
            if read(store, *keys) != [{"count": Value(int64_val=round_)}] * 20:
                return False
        return True

    with ThreadPoolExecutor(12) as pool:
        assert all(pool.map(work, range(24)))


def test_asynchronous_and_synchronous_calls_answer_alike(store: FeatureStore) -> None:
    plugin = online(store)
    keys = [item(f"async{n}") for n in range(300)]
    rows = [(key, {"count": Value(int64_val=n)}, EVENT, EVENT) for n, key in enumerate(keys)]

    async def both() -> Any:
        heard: list[int] = []
        await asyncio.gather(
            *(
                plugin.online_write_batch_async(store.config, VIEW, rows[at : at + 100], heard.append)
                for at in (0, 100, 200)
            )
        )
        assert sum(heard) == 300
        answers = await asyncio.gather(
            *(plugin.online_read_async(store.config, VIEW, keys) for _ in range(5)),
            asyncio.to_thread(plugin.online_read, store.config, VIEW, keys),
        )
        return answers

    answers = asyncio.run(both())
    assert [row["count"].int64_val for _, row in answers[0]] == list(range(300))
    assert all(answer == answers[0] for answer in answers)


def test_event_loops_may_follow_one_another_and_run_side_by_side(store: FeatureStore) -> None:
    write(store, ("looped", {"count": Value(int64_val=1)}, EVENT, EVENT))

    async def several() -> list[Any]:
        plugin = online(store)
        return await asyncio.gather(
            *(plugin.online_read_async(store.config, VIEW, [item("looped")]) for _ in range(20))
        )

    expected = [[(EVENT, {"count": Value(int64_val=1)})]] * 20
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: asyncio.run(several()), range(8))) == [expected] * 8


def test_a_cancelled_read_leaves_the_store_usable(store: FeatureStore) -> None:
    plugin, keys = online(store), [item(f"many{n}") for n in range(3000)]

    async def cut_off() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(plugin.online_read_async(store.config, VIEW, keys), 0.002)
        assert len(await plugin.online_read_async(store.config, VIEW, keys[:10])) == 10

    asyncio.run(cut_off())


def test_a_closed_store_opens_again(store: FeatureStore) -> None:
    write(store, ("again", {"count": Value(int64_val=1)}, EVENT, EVENT))
    asyncio.run(online(store).close())
    assert online(store)._cluster is None
    assert read(store, "again") == [{"count": Value(int64_val=1)}]


# Errors


def test_before_feast_apply_a_table_is_missing_and_the_error_says_so(store: FeatureStore) -> None:
    view = item_view("unapplied", COUNT)
    with pytest.raises(NotApplied, match=r"^unapplied: .*`feast apply`.*"):
        read_items(store, view, ["a"])
    with pytest.raises(NotApplied, match=r"^unapplied: .*`feast apply`"):
        write(store, ("a", {"count": Value(int64_val=1)}, EVENT, EVENT), view=view)
    with pytest.raises(NotApplied, match=r"^unapplied: .*`feast apply`"):
        asyncio.run(online(store).online_read_async(store.config, view, [item("a")]))
    with pytest.raises(NotApplied, match=r"^rows: .*`feast apply`"):  # a column, of a table that stands
        read_items(store, item_view("rows", Field(name="unapplied", dtype=Int64)), ["a"])


def test_a_keyspace_that_is_missing_is_named_with_what_creates_it(
    servers: LocalServers, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = write_online_repo(tmp_path_factory.mktemp("nowhere"), servers, keyspace="nowhere")
    with open_store(folder) as store:
        with pytest.raises(StoreMisconfigured, match=r"no keyspace 'nowhere'.*replication: \{datacenter1: 3\}"):
            store.apply([item_view("rows", COUNT)])
        with pytest.raises(NotApplied, match=r"^rows: .*`feast apply`"):
            read_items(store, VIEW, ["a"])


def test_a_keyspace_is_created_as_its_replication_says(
    servers: LocalServers, tmp_path_factory: pytest.TempPathFactory
) -> None:
    keyspace = f"Made_{uuid.uuid4().hex[:6]}"
    folder = write_online_repo(
        tmp_path_factory.mktemp("made"), servers, keyspace=keyspace, replication={"datacenter1": 1}
    )
    with open_store(folder) as store:
        store.apply([VIEW])
        store.apply([VIEW, item_view("second", COUNT)])  # it stands already
        write(store, ("a", {"count": Value(int64_val=1)}, EVENT, EVENT))
        assert read(store, "a") == [{"count": Value(int64_val=1)}]
        session = online(store)._get_session(store.config)
        (row,) = session.execute(
            "SELECT replication FROM system_schema.keyspaces WHERE keyspace_name = %s", (keyspace,)
        )
        assert row[0]["datacenter1"] == "1"
        session.execute(f'DROP KEYSPACE "{keyspace}"', timeout=60)


def test_a_server_that_is_not_there_is_no_missing_value(
    servers: LocalServers, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with open_store(write_online_repo(tmp_path_factory.mktemp("away"), servers, port=1)) as store:
        with pytest.raises(StoreUnavailable, match=r"^rows: the online store did not answer"):
            read_items(store, VIEW, ["a"])
        with pytest.raises(StoreUnavailable, match=r"^rows: the online store did not answer"):
            write(store, ("a", {"count": Value(int64_val=1)}, EVENT, EVENT))
