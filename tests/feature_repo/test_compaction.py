"""Compaction: what it makes, that no crash and nobody at work beside it loses a row or sees one doubled."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from feast import FeatureStore, FeatureView

from feature_repo.offline import compaction, folder
from feature_repo.offline.compaction import Compacted, compact, compact_history
from feature_repo.offline.folder import Folder
from feature_repo.offline.parts import SCHEMA_PART, current
from tests.feature_repo.history import STOCK, Row, apply, entity_rows, item_view, open_store, push

MB = 1 << 20
LATER = 10_000.0  # seconds: past any grace period here


@pytest.fixture
def made(tmp_path: Path) -> tuple[FeatureStore, FeatureView]:
    store = open_store(tmp_path)
    items = item_view(tmp_path)
    apply(store, items)
    return store, items[1]


def parts(view: FeatureView) -> list[str]:
    at = Folder.at(view.batch_source.path)
    return [name for name in at.names() if name != SCHEMA_PART]


def counting(view: FeatureView) -> list[str]:
    return current(Folder.at(view.batch_source.path), parts(view))


def found(store: FeatureStore, keys: int) -> list[int | None]:
    job = store.get_historical_features(
        entity_rows(("item",), [(f"k{i}", 5000) for i in range(keys)]), ["items:number"]
    )
    return [None if value is None else int(value) for value in job.to_arrow()["number"].to_pylist()]


def all_rows(store: FeatureStore, view: FeatureView) -> pd.DataFrame:
    pull = store._get_provider().offline_store.pull_all_from_table_or_query
    job = pull(store.config, view.batch_source, ["item"], ["number"], "event_timestamp", "created_timestamp")
    return job.to_df().sort_values(["item", "event_timestamp"]).reset_index(drop=True)


def run(view: FeatureView, after: float = 0.0, target: int = MB) -> Compacted:
    return compact(view, grace_seconds=60.0, target_bytes=target, clock=lambda: time.time() + after)


def test_many_parts_become_one_and_the_old_ones_stay_for_the_grace_period(
    made: tuple[FeatureStore, FeatureView],
) -> None:
    store, view = made
    for i in range(10):
        push(store, view, [Row((f"k{i}",), i * 1000, i, i)])
    before = all_rows(store, view)
    done = run(view)
    assert (done.parts_before, done.parts_after, done.rows, done.removed, done.waiting) == (10, 1, 10, 0, 10)
    assert len(parts(view)) == 11
    assert len(counting(view)) == 1
    pd.testing.assert_frame_equal(all_rows(store, view), before)  # each row once, with both there
    assert run(view).rows == 0  # nothing is left to do
    done = run(view, after=LATER)
    assert (done.removed, done.waiting, done.parts_after) == (10, 0, 1)
    assert len(parts(view)) == 1
    pd.testing.assert_frame_equal(all_rows(store, view), before)


def test_rows_that_are_alike_become_one_and_others_of_their_key_and_time_stay(
    made: tuple[FeatureStore, FeatureView],
) -> None:
    store, view = made
    for number in (7, 7, 8, 7):
        push(store, view, [Row(("k0",), 0, 0, number), Row(("k0",), 0, number, number)])
    done = run(view)
    assert done.doubles >= 2
    assert found(store, 1) == [8]  # created last
    numbers = pq.read_table(Folder.at(view.batch_source.path).file(counting(view)[0]))["number"].to_pylist()
    assert set(numbers) == {7, 8}


def test_large_parts_are_left_alone_and_days_are_neighbours(made: tuple[FeatureStore, FeatureView]) -> None:
    store, view = made
    for i in range(12):
        push(store, view, [Row((f"k{i % 3}",), (i % 4) * 1440, 0, i)])
    size = max(e.size for e in Folder.at(view.batch_source.path).entries() if e.name in parts(view))
    run(view, target=4 * size + 100)
    names = counting(view)
    assert 2 <= len(names) <= 4
    spans = [name.split("_")[0].split("-") for name in names]
    assert all(first <= last for first, last in spans)
    assert run(view, after=LATER, target=size // 4).rows == 0


def test_what_replaced_others_stays_until_they_are_gone(made: tuple[FeatureStore, FeatureView]) -> None:
    store, view = made
    for turn in range(3):
        for i in range(5):
            push(store, view, [Row((f"k{turn * 5 + i}",), 0, 0, turn * 5 + i)])
        run(view)
    assert found(store, 15) == list(range(15))
    assert len(all_rows(store, view)) == 15
    for _ in range(3):
        run(view, after=LATER)
    assert found(store, 15) == list(range(15))
    assert len(all_rows(store, view)) == 15


def test_two_compactions_without_a_lock_leave_each_row_once(
    made: tuple[FeatureStore, FeatureView], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, view = made
    for i in range(6):
        push(store, view, [Row((f"k{i}",), 0, 0, i)])
    real = compaction._rewrite

    def rewrite_twice(
        *args: object,
    ) -> tuple[int, int, int]:  # as on an object store, where nothing keeps the other away
        real(*args)  # type: ignore[arg-type]
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(compaction, "_rewrite", rewrite_twice)
    run(view)
    monkeypatch.setattr(compaction, "_rewrite", real)
    assert found(store, 6) == list(range(6))
    done = run(view, after=LATER)
    assert done.doubles == 6
    assert len(counting(view)) == 1
    assert len(all_rows(store, view)) == 6


def test_a_second_compaction_on_this_machine_leaves_at_once(made: tuple[FeatureStore, FeatureView]) -> None:
    store, view = made
    push(store, view, [Row(("a",), 0, 0, 1)])
    with Folder.at(view.batch_source.path).locked(compaction.LOCK) as alone:
        assert alone
        assert run(view).busy
    assert not run(view).busy


def test_a_crash_at_any_file_operation_loses_and_doubles_nothing(
    made: tuple[FeatureStore, FeatureView], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, view = made
    for i in range(8):
        push(store, view, [Row((f"k{i}",), 0, 0, i)])

    class Crash(BaseException):
        pass

    def failing_at(turn: int, real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            nonlocal operations
            operations += 1
            if operations == turn:
                raise Crash
            return real(*args, **kwargs)

        return call

    crashed, pushed = 0, 8
    for turn in range(1, 31):
        operations = 0
        with monkeypatch.context() as patch:
            for module, name in ((os, "fsync"), (folder, "_write_parquet"), (Folder, "remove")):
                patch.setattr(module, name, failing_at(turn, getattr(module, name)))
            try:
                run(view, after=LATER * (turn % 2))
            except Crash:
                crashed += 1
        assert found(store, pushed) == list(range(pushed))
        assert len(all_rows(store, view)) == pushed
        if turn % 5 == 0:
            for _ in range(4):  # what there is to do next time
                push(store, view, [Row((f"k{pushed}",), 0, 0, pushed)])
                pushed += 1
    assert crashed > 3


def test_stock_feast_reads_what_was_compacted(made: tuple[FeatureStore, FeatureView], tmp_path: Path) -> None:
    store, view = made
    for i in range(8):
        push(store, view, [Row((f"k{i}",), i, i, i)])
    stock = open_store(tmp_path, STOCK)
    for after in (0.0, LATER):
        run(view, after=after)
        (tmp_path / "items" / ".torn.parquet.tmp").write_bytes(b"torn")
        job = stock.get_historical_features(entity_rows(("item",), [(f"k{i}", 50) for i in range(8)]), ["items:number"])
        assert sorted(job.to_df()["number"]) == list(range(8))
        assert len(pd.read_parquet(tmp_path / "items")) == (16 if after == 0 else 8)


def test_torn_files_are_removed_when_they_are_old(made: tuple[FeatureStore, FeatureView]) -> None:
    _, view = made
    torn = Path(view.batch_source.path) / ".x.parquet.12345678.tmp"
    torn.write_bytes(b"torn")
    run(view)
    assert torn.exists()
    run(view, after=LATER)
    assert not torn.exists()


def test_histories_are_compacted_by_name_or_all_together(tmp_path: Path) -> None:
    store = open_store(tmp_path, compaction_grace_seconds=0, compaction_target_mb=1)
    views = [item_view(tmp_path, name) for name in ("items", "others")]
    apply(store, *views)
    for _, view in views:
        for i in range(5):
            push(store, view, [Row((f"k{i}",), 0, 0, i)])
    (done,) = compact_history(store, "items")
    assert (done.view, done.parts_after) == ("items", 1)
    assert {d.view: d.removed for d in compact_history(store)} == {"items": 5, "others": 0}


def test_history_on_an_object_store_is_compacted(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    items = item_view(f"memory://compacted-{tmp_path.name}")
    apply(store, items)
    for i in range(6):
        push(store, items[1], [Row((f"k{i}",), 0, 0, i)])
    assert run(items[1]).rows == 6
    assert found(store, 6) == list(range(6))
    run(items[1], after=LATER)
    assert len(parts(items[1])) == 1
    assert found(store, 6) == list(range(6))


WRITER = """
import sys
from pathlib import Path
from tests.feature_repo.history import Row, item_view, open_store, push
folder, first = Path(sys.argv[1]), int(sys.argv[2])
store, (_, view) = open_store(folder), item_view(folder)
for i in range(first, first + 100_000):
    push(store, view, [Row((f"k{i}",), 0, 0, i)] * 50)
    print(i, flush=True)
"""


@pytest.mark.chaos
def test_a_writer_that_is_killed_loses_nothing_that_it_acknowledged(
    made: tuple[FeatureStore, FeatureView], tmp_path: Path
) -> None:
    store, view = made
    acknowledged: list[int] = []
    for turn, delay in enumerate((0.05, 0.13, 0.31, 0.4)):
        command = [sys.executable, "-W", "ignore", "-c", WRITER, str(tmp_path), str(turn * 100_000)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            acknowledged.append(int(writer.stdout.readline()))  # it is at work
            time.sleep(delay)
            os.kill(writer.pid, signal.SIGKILL)
            acknowledged += map(int, writer.stdout.read().splitlines())
    if len(acknowledged) > 50:
        run(view)
    entities = entity_rows(("item",), [(f"k{i}", 1) for i in acknowledged])
    numbers = store.get_historical_features(entities, ["items:number"]).to_arrow()["number"].to_pylist()
    assert numbers == acknowledged


def work_until_told(
    work: str, folder: Path, which: int, job: int, counts: Any, done: Any, stop: Any, failed: Any
) -> None:
    """What a process of its own does beside others: writes, compacts or reads, and says how much, or what failed."""
    try:
        store, view = open_store(folder), item_view(folder)[1]
        while not stop.is_set():
            if work == "write":
                i = counts[which]
                push(store, view, [Row((f"w{which}-{i}",), i, i, i), Row((f"all{which}",), i, i, i)])
                counts[which] = done[job] = i + 1  # durable
                time.sleep(0.01)
            elif work == "compact":
                # One read takes a second or two here: a grace period longer than that, and short enough to remove.
                done[job] += compact(view, grace_seconds=6.0, target_bytes=20_000).removed
                time.sleep(0.2)
            else:
                done[job] += check_rows(store, view, list(counts))
    except BaseException:  # noqa: BLE001 - the test itself raises it
        stop.set()
        failed.put(traceback.format_exc())


def check_rows(store: FeatureStore, view: FeatureView, written: list[int]) -> int:
    """That all rows which are durable are found, each once; how many they are."""
    rows = [(f"w{which}-{i}", 10**6) for which in range(2) for i in range(written[which])]
    if not rows:
        return 0
    table = store.get_historical_features(entity_rows(("item",), rows), ["items:number"]).to_arrow()
    assert table["number"].to_pylist() == [int(name.split("-")[1]) for name, _ in rows]
    pulled = all_rows(store, view)
    assert len(pulled) >= 2 * sum(written)
    assert not pulled[pulled["item"].str.startswith("w")].duplicated(["item"]).any()
    return len(rows)


def test_two_compactions_two_writers_and_ten_readers_at_once_see_every_row(
    made: tuple[FeatureStore, FeatureView], tmp_path: Path
) -> None:
    # Processes of their own, which a server forks that has imported everything once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    jobs = [("write", 0), ("write", 1), ("compact", 0), ("compact", 1), *(("read", i) for i in range(10))]
    counts, done = context.Array("q", 2), context.Array("q", len(jobs))
    stop, failed = context.Event(), context.SimpleQueue()
    processes = [
        context.Process(
            target=work_until_told, args=(work, tmp_path, which, job, counts, done, stop, failed), daemon=True
        )
        for job, (work, which) in enumerate(jobs)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + 60.0
    while not stop.wait(0.5) and time.monotonic() < deadline:
        if all(done[:2]) and any(done[2:4]) and all(done[4:]):  # parts were removed beside writers and readers
            stop.wait(3.0)
            break
    stop.set()
    for process in processes:
        process.join()
    if not failed.empty():
        raise AssertionError(failed.get())
    assert all(done[:2])
    assert any(done[2:4])
    assert all(done[4:])
    assert check_rows(*made, list(counts)) == sum(counts)
