"""EmbArk's parts on a real Cassandra and a real Kafka."""

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from feast import FeatureStore
from feast.data_source import PushMode
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus, GetOnlineFeaturesResponse
from kafka import KafkaAdminClient, KafkaConsumer

from embark.servers import LocalServers
from encoders.client import memory_vector
from encoders.spec import EncoderSpec
from feature_repo.directory import EncoderDirectory
from feature_repo.embeddings import Status, embedding_id, oov_zeros
from feature_repo.failures import CassandraFailureMarks, MemoryFailureMarks
from feature_repo.online.table import table_name
from feature_repo.online_rows import FeastOnlineRows
from feature_repo.session import StoreUnavailable, connect
from feature_repo.views import encoder_specs, push_source_name, request_topic
from materializer.archive import EmbeddedBatch, table
from materializer.messages import EmbedRequest, Topics, ensure_topics
from serving.archive import EmbeddingArchive
from serving.feature_store import EmbArkFeatureStore
from serving.hot_caches import HotCaches
from serving.requests import MemoryRequests, RequestQueue, open_producer
from serving.store_reads import StoreReads

pytestmark = pytest.mark.servers

TEXT_VIEW = "text_lstm__v1"
IMAGE_VIEW = "mobilenet_v3_small__v1"
SECOND = 1_700_000_000_000_000  # µs


def end_session(store: FeatureStore) -> None:
    """Feast never ends the driver's sessions."""
    cluster = store._get_provider().online_store._cluster
    if cluster is not None:
        cluster.shutdown()


@pytest.fixture
def store(feature_repo_dir: Path) -> Iterator[FeatureStore]:
    store = FeatureStore(repo_path=str(feature_repo_dir))
    yield store
    end_session(store)


@pytest.fixture
def marks(store: FeatureStore) -> CassandraFailureMarks:
    return CassandraFailureMarks(connect(store), "embark", store.project)


def push(store: FeatureStore, view: str, *keys: str) -> EncoderSpec:
    """Archives the vectors of `MemoryRetina` for `keys`."""
    spec = encoder_specs(store)[view]
    batch = EmbeddedBatch.of(
        spec.view,
        keys=keys,
        vectors=np.stack([memory_vector(key, spec.dim) for key in keys]),
        event_time=np.full(len(keys), SECOND, dtype=np.int64),
        content_hash=("00",) * len(keys),
        created_at=SECOND + 1,
    )
    store.push(push_source_name(view), table(spec, batch).to_pandas(), to=PushMode.ONLINE)
    return spec


def values(response: GetOnlineFeaturesResponse, name: str) -> tuple[list[list[float]], list[str]]:
    """Vectors and statuses of one feature of a response."""
    column = response.results[list(response.metadata.feature_names.val).index(name)]
    return [list(v.float_list_val.val) for v in column.values], [FieldStatus.Name(s) for s in column.statuses]


def test_rows_come_back_as_they_were_pushed(store: FeatureStore) -> None:
    spec = push(store, TEXT_VIEW, "cat", "dog")
    rows = FeastOnlineRows(store).read(spec, ["dog", "bird", "cat"])
    versions = FeastOnlineRows(store).versions(spec, ["dog", "bird", "cat"])
    assert not any(each.deleted for each in versions.values())
    assert sorted(versions) == ["cat", "dog"]
    assert rows.found.tolist() == [True, False, True]
    assert np.array_equal(rows.vectors[0], memory_vector("dog", spec.dim))
    assert not rows.vectors[1].any()
    assert rows.embedding_id[0] == embedding_id(spec.view, "dog", SECOND, memory_vector("dog", spec.dim))
    assert rows.event_time.tolist() == [SECOND, 0, SECOND]


def test_an_empty_read_asks_nobody(store: FeatureStore) -> None:
    assert len(FeastOnlineRows(store).read(encoder_specs(store)[TEXT_VIEW], []).found) == 0


def test_marks_are_kept_by_view_run_out_and_can_be_cleared(marks: CassandraFailureMarks) -> None:
    marks.mark("v", {"a": "NotFound: 404", "b": "DecodeError: no picture"})
    marks.mark("v", {"c": "NotFound: 404"}, seconds=1)
    assert marks.read("v", ["a", "b", "x"]) == {"a": "NotFound: 404", "b": "DecodeError: no picture"}
    assert marks.read("w", ["a"]) == {}
    marks.clear("v", ["a"])
    time.sleep(2)
    assert marks.read("v", ["a", "b", "c"]) == {"b": "DecodeError: no picture"}


def test_a_store_that_is_not_there_is_named_with_the_command_that_starts_it(store: FeatureStore) -> None:
    store.config.online_store.port = 1
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:1 \(keyspace 'embark'\).*embark up"):
        connect(store)


@pytest.fixture
def live_topic(store: FeatureStore, servers: LocalServers) -> str:
    bootstrap, topic = request_topic(store)
    assert bootstrap == servers.kafka_bootstrap
    with closing(KafkaAdminClient(bootstrap_servers=bootstrap)) as admin:
        ensure_topics(admin, Topics(live=topic))
    return topic


def published(servers: LocalServers, topic: str, count: int) -> list[EmbedRequest]:
    """The first `count` requests on a topic; those that came within five seconds, if they are fewer."""
    found: list[EmbedRequest] = []
    consumer = KafkaConsumer(
        topic, bootstrap_servers=servers.kafka_bootstrap, auto_offset_reset="earliest", enable_auto_commit=False
    )
    with closing(consumer):
        deadline = time.monotonic() + 20
        while len(found) < count and time.monotonic() < deadline:
            for records in consumer.poll(timeout_ms=500).values():
                found += [EmbedRequest.decode(record.value) for record in records]
    return found


def test_a_miss_is_on_the_topic_once_however_often_it_is_looked_up(
    store: FeatureStore, marks: CassandraFailureMarks, live_topic: str, servers: LocalServers
) -> None:
    rows, directory = FeastOnlineRows(store), EncoderDirectory(lambda: encoder_specs(store))
    with closing(RequestQueue(open_producer(servers.kafka_bootstrap), live_topic)) as requests:
        caches = HotCaches(megabytes=1, seconds=60)
        archive = EmbeddingArchive(directory, StoreReads(rows, marks), requests, caches)
        for _ in range(5):
            assert archive.lookup(TEXT_VIEW, ["a", "b"]).status.tolist() == [Status.OOV] * 2
    asked = published(servers, live_topic, 2)
    assert sorted((r.view, r.key, r.attempt) for r in asked) == [(TEXT_VIEW, "a", 0), (TEXT_VIEW, "b", 0)]
    assert all(abs(r.requested_at / 1e6 - time.time()) < 60 for r in asked)


@pytest.fixture
def requests() -> MemoryRequests:
    return MemoryRequests()


@pytest.fixture
def embark(feature_repo_dir: Path, requests: MemoryRequests) -> Iterator[EmbArkFeatureStore]:
    known = MemoryFailureMarks({(IMAGE_VIEW, "http://a.example/gone.jpg"): "NotFound: 404"})
    store = EmbArkFeatureStore(repo_path=str(feature_repo_dir), requests=requests, marks=known)
    yield store
    end_session(store)


@pytest.mark.parametrize("form", ["rows", "columns"])
@pytest.mark.parametrize("full", [False, True])
def test_feast_answers_defaults_and_keeps_its_status(
    form: str, full: bool, embark: EmbArkFeatureStore, requests: MemoryRequests
) -> None:
    spec = push(embark, TEXT_VIEW, "cat")
    keys = ["cat", " dog ", "bad\0key"]
    entities = [{"text": key} for key in keys] if form == "rows" else {"text": keys}
    features = [f"{TEXT_VIEW}:{name}" for name in ("embedding", "embedding_id", "content_hash")]
    proto = embark.get_online_features(features, entities, full_feature_names=full).proto
    prefix = f"{TEXT_VIEW}__" if full else ""
    vectors, statuses = values(proto, f"{prefix}embedding")
    assert np.array_equal(np.array(vectors[0], dtype=np.float32), memory_vector("cat", spec.dim))
    assert vectors[1:] == [[0.0] * spec.dim] * 2
    assert statuses == ["PRESENT", "NOT_FOUND", "NOT_FOUND"]
    names = list(proto.metadata.feature_names.val)
    ids = [v.int64_val for v in proto.results[names.index(f"{prefix}embedding_id")].values]
    assert ids[1] == oov_zeros(spec.view, spec.dim).embedding_id
    assert requests.requests == [(TEXT_VIEW, "dog")]  # canonical; the bad key can be none


def test_a_feature_service_is_answered_with_defaults_for_each_view(
    embark: EmbArkFeatureStore, requests: MemoryRequests
) -> None:
    service = embark.get_feature_service("ctr_small")
    entities = [{"text": "cat", "image_url": "HTTP://a.example/x.jpg"}, {"text": "cat", "image_url": "no-url"}]
    proto = embark.get_online_features(service, entities, full_feature_names=True).proto
    assert [len(v) for v in values(proto, f"{IMAGE_VIEW}__embedding")[0]] == [576, 576]
    assert [len(v) for v in values(proto, f"{TEXT_VIEW}__embedding")[0]] == [256, 256]
    assert sorted(requests.requests) == [(IMAGE_VIEW, "http://a.example/x.jpg"), (TEXT_VIEW, "cat")]


def test_a_key_that_is_known_to_fail_is_not_asked_for(embark: EmbArkFeatureStore, requests: MemoryRequests) -> None:
    entities = [{"image_url": "http://a.example/gone.jpg"}]
    proto = embark.get_online_features([f"{IMAGE_VIEW}:embedding"], entities).proto
    assert values(proto, "embedding") == ([[0.0] * 576], ["NOT_FOUND"])
    assert requests.requests == []


@pytest.mark.parametrize("bad", ["x" * 40_000, "\ud800"])
def test_a_key_that_cassandra_could_not_take_costs_only_itself_an_answer(
    bad: str, embark: EmbArkFeatureStore, requests: MemoryRequests
) -> None:
    push(embark, TEXT_VIEW, "cat")
    proto = embark.get_online_features([f"{TEXT_VIEW}:embedding"], {"text": ["cat", bad]}).proto
    assert values(proto, "embedding")[1] == ["PRESENT", "NOT_FOUND"]
    assert requests.requests == []


def test_half_a_row_is_missing_for_feast_as_for_embark(embark: EmbArkFeatureStore, requests: MemoryRequests) -> None:
    spec = push(embark, TEXT_VIEW, "cat")
    session, table = connect(embark), f'"embark"."{table_name(embark.project, TEXT_VIEW)}"'
    (row,) = session.execute(f"SELECT entity_key, event_time, created_time, digest FROM {table}")  # noqa: S608
    version = "entity_key = %s AND event_time = %s AND created_time = %s AND digest = %s"
    session.execute(f'DELETE "embedding_id__int64" FROM {table} WHERE {version}', row)
    features = [f"{TEXT_VIEW}:embedding", f"{TEXT_VIEW}:embedding_id"]
    proto = embark.get_online_features(features, {"text": ["cat"]}).proto
    assert values(proto, "embedding") == ([[0.0] * spec.dim], ["NOT_FOUND"])
    assert not FeastOnlineRows(embark).read(spec, ["cat"]).found.any()
    assert requests.requests == [(TEXT_VIEW, "cat")]


def test_a_miss_through_feast_reaches_the_topic(feature_repo_dir: Path, live_topic: str, servers: LocalServers) -> None:
    store = EmbArkFeatureStore(repo_path=str(feature_repo_dir))
    try:
        store.get_online_features([f"{TEXT_VIEW}:embedding"], [{"text": "asked through Feast"}])
    finally:
        store.close_requests()
        end_session(store)
    assert [r.key for r in published(servers, live_topic, 1)] == ["asked through Feast"]


def test_entity_rows_of_a_frame_are_taken_too(embark: EmbArkFeatureStore) -> None:
    frame_of_keys = pd.DataFrame({"text": ["cat", "dog"]})
    proto = embark.get_online_features([f"{TEXT_VIEW}:embedding"], frame_of_keys.to_dict("records")).proto
    assert values(proto, "embedding")[1] == ["NOT_FOUND", "NOT_FOUND"]
