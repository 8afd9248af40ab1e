"""`EmbArkFeatureStore` on Feast's own SQLite store: what needs no server."""

import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, PushSource, ValueType
from feast.data_source import PushMode
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus, GetOnlineFeaturesResponse
from feast.types import Float64

from embark.servers import free_port
from encoders.client import memory_vector
from encoders.spec import EncoderSpec
from feature_repo.embeddings import OOV_KEY, embedding_id, oov_zeros
from feature_repo.failures import FailureMarks, MemoryFailureMarks
from feature_repo.views import encoder_specs, feast_objects, push_source_name
from materializer.archive import EmbeddedBatch, table
from serving.feature_store import EmbArkFeatureStore
from serving.memory import DownMarks
from serving.oov import REFRESH_SECONDS
from serving.requests import MemoryRequests
from tests.serving.fakes import Clock

ROOT = Path(__file__).parent.parent.parent
URL = "http://a.example/x.jpg"
SIGNED = URL + "?sig=1"
NETWORK = "torchvision:mobilenet_v3_small"
SIGNS = EncoderSpec(
    name="signs",
    version="v1",
    modality="image",
    dim=576,
    network=NETWORK,
    weights="seeded:0",
    drop_query_params=("sig",),
)
PHOTO = EncoderSpec(name="photo", version="v1", modality="image", dim=576, network=NETWORK, weights="seeded:0")
TEXT = EncoderSpec(name="text_lstm", version="v1", modality="text", dim=256, network="text_lstm", weights="seeded:0")

Opened = Callable[..., EmbArkFeatureStore]


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A feature repo with three encoders, a view of prices by URL, and a service that shows one view twice."""
    folder = tmp_path_factory.mktemp("repo")
    (folder / "feature_store.yaml").write_text(
        "project: embark_unit\n"
        "provider: local\n"
        "registry: registry.db\n"
        "online_store: {type: sqlite, path: online.db}\n"
        "offline_store: {type: feature_repo.offline_store.EmbeddingOfflineStore}\n"
        "entity_key_serialization_version: 3\n"
    )
    store = FeatureStore(repo_path=str(folder))
    services = {"both": [SIGNS.view, TEXT.view]}
    objects = feast_objects([SIGNS, PHOTO, TEXT], services, kafka=f"127.0.0.1:{free_port()}", repo=folder)
    prices = FeatureView(
        name="prices",
        entities=[Entity(name="image", join_keys=["image_url"], value_type=ValueType.STRING)],
        schema=[Field(name="price", dtype=Float64)],
        source=PushSource(
            name="prices_push",
            batch_source=FileSource(name="prices", path=str(folder / "prices.parquet"), timestamp_field="at"),
        ),
        ttl=timedelta(0),
    )
    store.apply([*objects.values(), prices])
    signs = store.get_feature_view(SIGNS.view)
    twice = FeatureService(
        name="twice",
        features=[
            signs[["embedding", "embedding_id"]].with_name("ad").with_join_key_map({"image_url": "ad_url"}),
            signs[["embedding"]].with_name("page").with_join_key_map({"image_url": "page_url"}),
        ],
    )
    store.apply([twice])
    store.push(
        "prices_push",
        pd.DataFrame({"image_url": [SIGNED], "price": [3.5], "at": [datetime(2026, 1, 1, tzinfo=UTC)]}),
        to=PushMode.ONLINE,
    )
    for view, key in ((SIGNS.view, URL), (PHOTO.view, SIGNED), (TEXT.view, "cat")):
        archive(store, view, key)
    return folder


def archive(store: FeatureStore, view: str, key: str) -> None:
    spec = encoder_specs(store)[view]
    batch = EmbeddedBatch.of(
        spec.view,
        keys=(key,),
        vectors=memory_vector(view + key, spec.dim)[None],
        event_time=np.full(1, 1_700_000_000_000_000, dtype=np.int64),
        content_hash=("00",),
        created_at=1_700_000_000_000_001,
    )
    store.push(push_source_name(view), table(spec, batch).to_pandas(), to=PushMode.ONLINE)


@pytest.fixture
def requests() -> MemoryRequests:
    return MemoryRequests()


@pytest.fixture
def opened(repo: Path, requests: MemoryRequests) -> Opened:
    def open_one(marks: FailureMarks | None = None, clock: Callable[[], float] = time.monotonic) -> EmbArkFeatureStore:
        return EmbArkFeatureStore(
            repo_path=str(repo), requests=requests, marks=marks or MemoryFailureMarks({}), clock=clock
        )

    return open_one


def column(proto: GetOnlineFeaturesResponse, name: str) -> tuple[list[list[float]], list[str]]:
    """Vectors and statuses of one feature of a response."""
    found = proto.results[list(proto.metadata.feature_names.val).index(name)]
    return [list(v.float_list_val.val) for v in found.values], [FieldStatus.Name(s) for s in found.statuses]


def keys(proto: GetOnlineFeaturesResponse, name: str) -> list[str]:
    return [v.string_val for v in proto.results[list(proto.metadata.feature_names.val).index(name)].values]


def test_each_view_of_a_url_finds_and_asks_for_its_own_key(opened: Opened, requests: MemoryRequests) -> None:
    urls = [SIGNED, "http://a.example/new.jpg?sig=2"]
    features = [f"{SIGNS.view}:embedding", f"{PHOTO.view}:embedding"]
    proto = opened().get_online_features(features, {"image_url": urls}, full_feature_names=True).proto
    for view, key in ((SIGNS.view, URL), (PHOTO.view, SIGNED)):
        vectors, statuses = column(proto, f"{view}__embedding")
        assert np.array_equal(np.array(vectors[0], dtype=np.float32), memory_vector(view + key, 576))
        assert statuses == ["PRESENT", "NOT_FOUND"]
        assert vectors[1] == [0.0] * 576
    assert sorted(requests.requests) == [(PHOTO.view, urls[1]), (SIGNS.view, "http://a.example/new.jpg")]


def test_a_view_that_is_no_encoders_is_found_under_the_key_as_it_was_given(opened: Opened) -> None:
    features = ["prices:price", f"{SIGNS.view}:embedding"]
    proto = opened().get_online_features(features, [{"image_url": SIGNED}]).proto
    names = list(proto.metadata.feature_names.val)
    assert proto.results[names.index("price")].values[0].double_val == 3.5
    assert column(proto, "embedding")[1] == ["PRESENT"]


def test_views_that_are_no_encoders_are_answered_by_feast_alone(opened: Opened, requests: MemoryRequests) -> None:
    proto = opened().get_online_features(["prices:price"], [{"image_url": SIGNED}, {"image_url": "none"}]).proto
    found = proto.results[list(proto.metadata.feature_names.val).index("price")]
    assert [v.WhichOneof("val") for v in found.values] == ["double_val", None]
    assert requests.requests == []


@pytest.mark.parametrize("bad", ["x" * 40_000, "\ud800", "bad\0key", ""])
def test_a_key_that_can_be_none_costs_only_itself_an_answer(bad: str, opened: Opened, requests: MemoryRequests) -> None:
    proto = opened().get_online_features([f"{TEXT.view}:embedding"], {"text": ["cat", bad]}).proto
    vectors, statuses = column(proto, "embedding")
    assert statuses == ["PRESENT", "NOT_FOUND"]
    assert vectors[1] == [0.0] * 256
    assert keys(proto, "text") == ["cat", bad.replace("\ud800", "\\ud800")]
    assert requests.requests == []


def test_marks_that_cannot_be_read_cost_no_answer_and_make_no_request_storm(
    opened: Opened, requests: MemoryRequests, caplog: pytest.LogCaptureFixture
) -> None:
    proto = opened(DownMarks()).get_online_features([f"{TEXT.view}:embedding"], {"text": ["cat", "dog"]}).proto
    assert column(proto, "embedding")[1] == ["PRESENT", "NOT_FOUND"]
    assert requests.requests == []
    assert "1 missing keys are not asked for" in caplog.text


# A process of its own: Kafka's client leaves sockets open when it is given up while it connects.
WITHOUT_KAFKA = f"""
import sys
from feature_repo.failures import MemoryFailureMarks
from serving.feature_store import EmbArkFeatureStore
store = EmbArkFeatureStore(repo_path=sys.argv[1], marks=MemoryFailureMarks({{}}))
proto = store.get_online_features(["{TEXT.view}:embedding"], {{"text": ["cat", "dog"]}}).proto
store.close_requests(timeout=0)
print([list(result.statuses) for result in proto.results][-1])
"""


def test_kafka_that_does_not_answer_costs_no_answer(repo: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_KAFKA, str(repo)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([int(FieldStatus.PRESENT), int(FieldStatus.NOT_FOUND)])


def test_a_view_that_is_shown_twice_is_filled_and_asked_for_under_both_names(
    opened: Opened, requests: MemoryRequests
) -> None:
    store = opened()
    rows = [{"ad_url": SIGNED, "page_url": "http://a.example/new.jpg?sig=9"}]
    proto = store.get_online_features(store.get_feature_service("twice"), rows, full_feature_names=True).proto
    assert column(proto, "ad__embedding")[1] == ["PRESENT"]
    assert column(proto, "page__embedding") == ([[0.0] * 576], ["NOT_FOUND"])
    assert requests.requests == [(SIGNS.view, "http://a.example/new.jpg")]


def test_the_oov_embedding_has_its_own_id_and_no_content_hash(opened: Opened) -> None:
    features = [f"{TEXT.view}:embedding_id", f"{TEXT.view}:content_hash"]
    proto = opened().get_online_features(features, [{"text": "dog"}]).proto
    names = list(proto.metadata.feature_names.val)
    spec = encoder_specs(opened())[TEXT.view]
    assert proto.results[names.index("embedding_id")].values[0].int64_val == oov_zeros(TEXT.view, spec.dim).embedding_id
    assert proto.results[names.index("content_hash")].values[0].WhichOneof("val") is None


def test_the_oov_embedding_that_was_set_is_answered_with_its_id(opened: Opened) -> None:
    clock = Clock()
    store = opened(clock=clock)
    ask = [f"{PHOTO.view}:embedding", f"{PHOTO.view}:embedding_id"]
    new = {"image_url": ["http://a.example/unseen.jpg", SIGNED]}
    assert column(store.get_online_features(ask, new).proto, "embedding")[0][0] == [0.0] * PHOTO.dim
    archive(store, PHOTO.view, OOV_KEY)
    assert column(store.get_online_features(ask, new).proto, "embedding")[0][0] == [0.0] * PHOTO.dim  # until read anew
    clock.now += REFRESH_SECONDS
    proto = store.get_online_features(ask, new).proto
    vectors, told = column(proto, "embedding")
    was_set = memory_vector(PHOTO.view + OOV_KEY, PHOTO.dim)
    assert np.array_equal(np.array(vectors[0], dtype=np.float32), was_set)
    assert not np.array_equal(np.array(vectors[1], dtype=np.float32), was_set)
    assert told == ["NOT_FOUND", "PRESENT"]
    ids = proto.results[list(proto.metadata.feature_names.val).index("embedding_id")].values
    assert ids[0].int64_val == embedding_id(PHOTO.view, OOV_KEY, 1_700_000_000_000_000, was_set)


def test_a_repeated_key_is_asked_for_once_and_a_failed_one_never(opened: Opened, requests: MemoryRequests) -> None:
    marks = MemoryFailureMarks({(TEXT.view, "gone"): "DecodeError: planted"})
    opened(marks).get_online_features([f"{TEXT.view}:embedding"], {"text": ["dog", " dog ", "gone"]})
    assert requests.requests == [(TEXT.view, "dog")]


def test_the_name_of_the_entity_is_taken_for_the_join_key(opened: Opened, requests: MemoryRequests) -> None:
    proto = opened().get_online_features([f"{SIGNS.view}:embedding"], [{"image": SIGNED}, {"image": "no-url"}]).proto
    assert column(proto, "embedding")[1] == ["PRESENT", "NOT_FOUND"]
    assert requests.requests == []


def test_an_unknown_view_is_feasts_own_error(opened: Opened) -> None:
    with pytest.raises(Exception, match="nope"):
        opened().get_online_features(["nope__v1:embedding"], [{"text": "x"}])


class Switched(EmbArkFeatureStore):
    """One whose service `both` is switched to PHOTO and TEXT at the first read, behind its back."""

    def switch(self) -> None:
        if not hasattr(self, "switched"):
            self.switched = True
            service = self.get_feature_service("both")
            self.was = service
            photo, text = self.get_feature_view(PHOTO.view), self.get_feature_view(TEXT.view)
            self.apply([FeatureService(name="both", features=[photo, text], tags=service.tags)])
            self.refresh_registry()

    def _get_provider(self) -> Any:
        if hasattr(self, "armed"):
            self.switch()  # Feast has resolved the features, and is about to read them
        return super()._get_provider()


def test_a_service_that_is_switched_while_it_is_read_is_read_again(repo: Path, requests: MemoryRequests) -> None:
    store = Switched(repo_path=str(repo), requests=requests, marks=MemoryFailureMarks({}))
    service = store.get_feature_service("both")
    entities = {"image_url": [SIGNED, "http://a.example/new.jpg?sig=2"], "text": ["cat", "cat"]}
    store.armed = True
    try:
        proto = store.get_online_features(service, entities, full_feature_names=True).proto
    finally:
        store.apply([store.was])
    assert not any(name.startswith(SIGNS.view) for name in proto.metadata.feature_names.val)
    alone = EmbArkFeatureStore(repo_path=str(repo), requests=MemoryRequests(), marks=MemoryFailureMarks({}))
    asked = {"image_url": ["http://a.example/unknown.jpg"]}
    photos, _ = column(alone.get_online_features([f"{PHOTO.view}:embedding"], asked).proto, "embedding")
    vectors, statuses = column(proto, f"{PHOTO.view}__embedding")
    assert np.array_equal(np.array(vectors[0], dtype=np.float32), memory_vector(PHOTO.view + SIGNED, 576))
    assert statuses == ["PRESENT", "NOT_FOUND"]
    assert vectors[1] == photos[0]  # filled: of this view, not of the one before
    assert requests.requests == [(PHOTO.view, "http://a.example/new.jpg?sig=2")]  # nothing of the view before
