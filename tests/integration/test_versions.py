"""Embeddings that change, on real Kafka and Cassandra: computed anew, removed, and replaced by another encoder's."""

import dataclasses
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from embark import repo
from feature_repo.failures import CassandraFailureMarks
from feature_repo.services import members_of
from feature_repo.views import encoder_specs, feast_objects
from materializer.announcements import Announcement, Announcements
from materializer.archive import EmbeddedBatch, FeastArchive
from materializer.deletions import AFTER
from materializer.messages import EmbedRequest
from materializer.process import open_announcement_reader, open_producer
from tests.integration.conftest import ENCODERS, SERVICES
from tests.integration.test_backfill import GONE, NOON, VIEW, Shop
from tests.integration.test_materializer import in_thread, wait_until

pytestmark = pytest.mark.servers

NEW = "text_lstm__v2"
SERVICE = "ctr_small"
KEYS = [f"key {number}" for number in range(20)]
AT = pd.Timestamp(NOON, unit="us", tz="UTC")


@pytest.fixture
def shop(feature_repo_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    made = Shop(feature_repo_dir, tmp_path)
    # A command's connection ends with its process, which here is the tests'.
    monkeypatch.setattr(repo, "open_store", lambda _: made.open_store())
    yield made
    for store in made.stores:
        if cluster := store._get_provider().online_store._cluster:
            cluster.shutdown()


@contextmanager
def heard(shop: Shop) -> Iterator[list[Announcement]]:
    """What is announced within the block; it begins when the reader reads."""
    told: list[Announcement] = []
    reading = threading.Event()

    def listen(stop: threading.Event) -> None:
        reader = Announcements(lambda: open_announcement_reader(shop.servers), shop.topics.embedded, missed=reading.set)
        with closing(reader):
            while not stop.is_set():
                told.extend(reader.poll(0.2))

    with in_thread(listen):
        wait_until(reading.is_set)
        yield told


def backfill(shop: Shop, file: Path, keys: Sequence[str]) -> None:
    file.write_text("key,at\n" + "".join(f"{key},2026-01-01T12:00:00Z\n" for key in keys))
    shop.told("backfill", "--view", VIEW, "--from", str(file), "--time-column", "at")


def served(shop: Shop, key: str) -> list[int | None]:
    """The ids that history says were served for a key at noon, and now."""
    rows = pd.DataFrame({"text": [key] * 2, "event_timestamp": [AT, pd.Timestamp.now(tz="UTC")]})
    job = shop.store.get_historical_features(rows, [f"{VIEW}:embedding_id"], filter_by_created_timestamp=True)
    ids: list[int | None] = job.to_arrow()["embedding_id"].to_pylist()  # pandas would make floats of them
    return ids


def test_embeddings_are_computed_anew_and_removed_and_come_back(shop: Shop, tmp_path: Path) -> None:
    file = tmp_path / "keys.csv"
    broken, gone, back, again, *others = KEYS
    with shop.working(), heard(shop) as told:

        def kinds(key: str) -> list[str]:
            return [each.kind for each in told if each.key == key]

        backfill(shop, file, KEYS)
        wait_until(lambda: bool(shop.online(KEYS).found.all()) and len(told) >= len(KEYS))
        first = shop.online(KEYS)
        assert {(each.kind, each.event_time) for each in told} == {("embedded", NOON)}
        assert {each.key: each.embedding_id for each in told} == dict(
            zip(KEYS, first.embedding_id.tolist(), strict=True)
        )

        # all anew: what was there is served until then, and kept where that fails
        shop.retina.outcomes = {broken: [GONE]}
        assert shop.told("reembed", "--view", VIEW, "--all", "--dry-run")["sent"] == len(KEYS)
        done = shop.told("reembed", "--view", VIEW, "--all")
        assert (done["sent"], done["archived"], done["complete"]) == (len(KEYS), 0, True)
        wait_until(lambda: bool((shop.online(KEYS[1:]).event_time > NOON).all()))
        wait_until(lambda: shop.count(shop.topics.dead_letters) == 1)
        assert (shop.online([broken]).found.all(), shop.online([broken]).event_time[0]) == (True, NOON)
        marks = CassandraFailureMarks.of(shop.store)
        assert marks.read(VIEW, KEYS) == {}
        wait_until(lambda: kinds(others[0]) == ["embedded", "embedded"])
        assert list((shop.settings.state / "reembeds").iterdir()) == []  # what it had found is done

        # removed, by name and from a file; twice makes no difference
        second = shop.online([gone, back, again])
        file.write_text(f"key\n{back}\n{again}\n")
        assert shop.told("invalidate", "--view", VIEW, gone, "never there", "")["removed"] == 1
        assert shop.told("invalidate", "--view", VIEW, "--from", str(file))["removed"] == 2
        repeated = shop.told("invalidate", "--view", VIEW, gone)
        assert (repeated["removed"], repeated["before"]) == (0, 1)
        assert shop.online([gone, back, again, *others]).found.tolist() == [False] * 3 + [True] * len(others)
        wait_until(lambda: kinds(gone)[2:] == ["invalidated"] * 2)
        removal = next(each for each in told if each.kind == "invalidated" and each.key == back)
        assert (removal.event_time, removal.embedding_id) == (second.event_time[1], second.embedding_id[1])

        # a late replay of the row does not bring it back: neither by the store nor by a worker
        archive = FeastArchive(shop.store, shop.rows)
        replay = EmbeddedBatch.of(
            VIEW,
            keys=[gone],
            vectors=second.vectors[:1],
            event_time=second.event_time[:1],
            content_hash=[""],
            created_at=int(second.event_time[0]) + 10**9,
        )
        archive.write_online(shop.spec, replay)
        assert not shop.online([gone]).found.any()

        # asked for again: by a look-up as of now, by a backfill as of just after the removal
        with closing(open_producer(shop.servers)) as producer:
            now = pd.Timestamp.now(tz="UTC").value // 1000
            request = EmbedRequest(view=VIEW, key=back, requested_at=now)
            producer.send(shop.topics.live, request.encode(), request.partition_key)
            producer.flush(timeout=30)
        backfill(shop, file, [again])
        wait_until(lambda: bool(shop.online([back, again]).found.all()))
        assert shop.online([back]).event_time[0] == now
        assert shop.online([again]).event_time[0] == second.event_time[2] + 2 * AFTER
        assert not shop.online([gone]).found.any()

    # history tells each of it, and keeps what was served
    assert served(shop, gone) == [None, None]  # nothing had been created by noon; removed now
    assert served(shop, again) == [None, int(shop.online([again]).embedding_id[0])]
    vectors = shop.store.get_historical_features(
        pd.DataFrame({"text": [gone], "event_timestamp": [pd.Timestamp.now(tz="UTC")]}), [f"{VIEW}:embedding_id"]
    ).to_df()
    assert int(vectors["embedding_id"][0]) == second.embedding_id[0]


def test_a_service_goes_over_to_another_encoder_at_once_and_back(shop: Shop, tmp_path: Path) -> None:
    # another version beside the first
    newer = dataclasses.replace(ENCODERS[1], version="v2", weights="seeded:1", dim=8)
    folder = shop.settings.repo

    def apply() -> None:
        kafka = shop.servers
        objects = feast_objects([*ENCODERS, newer], SERVICES, kafka=kafka, repo=folder)
        shop.store.apply(list(objects.values()))

    apply()
    shop.retina.specs = dict(encoder_specs(shop.store, allow_cache=False))
    impressions = tmp_path / "impressions.csv"
    impressions.write_text("key\n" + f"{KEYS[1]}\n" * 98 + f"{KEYS[0]}\n" * 2)
    command = ["migrate", VIEW, NEW, "--service", SERVICE]

    with shop.working():
        backfill(shop, tmp_path / "keys.csv", KEYS)
        wait_until(lambda: bool(shop.online(KEYS).found.all()))
    before = service(shop).to_proto().spec

    # nobody works: nothing is covered
    below = shop.run(*command, "--json")
    assert below.exit_code == 1, below.output
    assert json.loads(below.stdout)["coverage"] == {
        "keys": len(KEYS),
        "covered": 0,
        "failed": 0,
        "weight": len(KEYS),
        "covered_weight": 0,
        "failed_weight": 0,
    }
    assert members_of(service(shop))[1] == VIEW

    # one key fails: enough of the traffic, though not of the keys; no look-up at that moment mixes the two
    shop.retina.outcomes = {KEYS[0]: [GONE]}
    with shop.working(), answers(shop) as seen:
        wait_until(lambda: len(seen) > 0)
        done = shop.told(*command, "--threshold", "0.97", "--traffic", str(impressions), "--wait")
        assert (done["switched"], done["share"], done["coverage"]["weight"]) == (True, 0.98, 100)
        wait_until(lambda: seen[-1] == (f"{NEW}__embedding", newer.dim))
        wait_until(lambda: shop.count(shop.topics.dead_letters) > 0)
        assert set(seen) == {(f"{VIEW}__embedding", ENCODERS[1].dim), (f"{NEW}__embedding", newer.dim)}
        # of all keys more failed than the threshold allows: nobody waits for what will not come
        short = shop.run("migrate", VIEW, NEW, "--wait", "--json")
        assert short.exit_code == 1
        assert (json.loads(short.stdout)["coverage"]["failed"], json.loads(short.stdout)["enough"]) == (1, False)
        rows = shop.rows.read(shop.retina.specs[NEW], KEYS)
        assert set(rows.event_time[rows.found]) == {NOON}

        # the next apply keeps it; taken back it is exactly what it was
        apply()
        assert members_of(service(shop))[1] == NEW
        assert shop.told(*command, "--threshold", "0.9")["switched"]
        assert shop.told(*command, "--rollback")["rolled_back"]
        assert service(shop).to_proto().spec == before
        wait_until(lambda: seen[-1] == (f"{VIEW}__embedding", ENCODERS[1].dim))
    again = shop.run(*command, "--rollback")
    assert (again.exit_code, "was not switched" in again.stderr) == (1, True)


def service(shop: Shop) -> Any:
    (found,) = shop.store.registry.list_feature_services(shop.store.project)
    return found


@contextmanager
def answers(shop: Shop) -> Iterator[list[tuple[str, int]]]:
    """What a model that names the service gets, over and over: the text embedding's name and its length."""
    seen: list[tuple[str, int]] = []
    store = shop.open_store()

    def look_up(stop: threading.Event) -> None:
        while not stop.is_set():
            store.refresh_registry()
            asked = store.get_feature_service(SERVICE, allow_cache=True)
            rows = [{"text": KEYS[1], "image_url": "http://a.example/1"}]
            response = store.get_online_features(asked, rows, full_feature_names=True).proto
            names = list(response.metadata.feature_names.val)
            (name,) = (each for each in names if each.startswith("text_lstm") and each.endswith("__embedding"))
            seen.append((name, len(response.results[names.index(name)].values[0].float_list_val.val)))

    with in_thread(look_up):
        yield seen
