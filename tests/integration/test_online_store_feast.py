"""What Feast does with an online store, done with ours: materialize, push, serve, services, projections, versions."""

import asyncio
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, PushSource, RequestSource
from feast.data_source import PushMode
from feast.errors import FeatureViewNotFoundException
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Array, Float32, Float64, Int64, String
from feast.value_type import ValueType

from embark.servers import LocalServers, free_port
from encoders.spec import EncoderSpec
from feature_repo.session import NotApplied
from tests.integration.online_repos import (
    ITEM,
    file_source,
    item,
    item_view,
    online,
    open_store,
    read_items,
    vector,
    write_online_repo,
)

pytestmark = [
    pytest.mark.servers,
    pytest.mark.filterwarnings("ignore:On demand feature view is an experimental feature:RuntimeWarning"),
]

NOW = datetime.now(UTC).replace(microsecond=0)
HOUR = timedelta(hours=1)
COUNT = Field(name="count", dtype=Int64)
EMBEDDING = Field(name="embedding", dtype=Array(Float32), vector_length=2)


@pytest.fixture(scope="module")
def store(servers: LocalServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FeatureStore]:
    with open_store(write_online_repo(tmp_path_factory.mktemp("feast"), servers)) as store:
        store.apply([ITEM])
        yield store


def frame(counts: dict[str, int], at: datetime = NOW) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "item": list(counts),
            "count": list(counts.values()),
            "embedding": [np.array([n, -n], dtype=np.float32) for n in counts.values()],
            "event_timestamp": at,
            "created": at,
        }
    )


def get(store: FeatureStore, features: Any, *keys: str, **options: Any) -> dict[str, list[Any]]:
    answer: dict[str, list[Any]] = store.get_online_features(
        features, [{"item": key} for key in keys], **options
    ).to_dict()
    return answer


def test_materialize_and_its_increments_bring_the_newest_rows_online(store: FeatureStore, tmp_path: Path) -> None:
    path = tmp_path / "history.parquet"
    view = item_view("history", COUNT, EMBEDDING, source=file_source("history", str(path)), ttl=timedelta(days=1))
    store.apply([view])
    rows = [frame({"a": 1, "b": 1}, NOW - 3 * HOUR), frame({"a": 2}, NOW - 2 * HOUR)]
    pd.concat(rows).to_parquet(path)
    store.materialize(NOW - 5 * HOUR, NOW - HOUR, ["history"])
    assert get(store, ["history:count", "history:embedding"], "a", "b", "c") == {
        "item": ["a", "b", "c"],
        "count": [2, 1, None],
        "embedding": [[2.0, -2.0], [1.0, -1.0], None],
    }
    pd.concat([*rows, frame({"b": 3, "c": 3}, NOW - HOUR / 2)]).to_parquet(path)
    store.materialize_incremental(NOW, ["history"])
    assert get(store, ["history:count"], "a", "b", "c")["count"] == [2, 3, 3]
    store.materialize(NOW - 5 * HOUR, NOW - HOUR, ["history"])  # a backfill changes nothing
    assert get(store, ["history:count"], "a", "b", "c")["count"] == [2, 3, 3]


@pytest.fixture(scope="module")
def pushed(store: FeatureStore) -> str:
    """A view that is pushed to, and holds a=1 and b=2."""
    source = PushSource(name="clicks_push", batch_source=file_source("clicks"))
    store.apply([item_view("clicks", COUNT, EMBEDDING, source=source)])
    store.push("clicks_push", frame({"a": 1, "b": 2}), to=PushMode.ONLINE)
    return "clicks"


def test_pushes_synchronous_and_not_are_seen_at_once(store: FeatureStore, pushed: str) -> None:
    assert get(store, [f"{pushed}:count"], "a", "b", "x")["count"] == [1, 2, None]

    async def push_and_read() -> Any:
        await asyncio.gather(
            *(store.push_async("clicks_push", frame({f"async{n}": n}), to=PushMode.ONLINE) for n in range(10))
        )
        entities = [{"item": f"async{n}"} for n in range(11)]
        return (await store.get_online_features_async([f"{pushed}:count"], entities)).to_dict()["count"]

    assert asyncio.run(push_and_read()) == [*range(10), None]


def test_an_embedding_of_another_length_cannot_be_pushed(store: FeatureStore, pushed: str) -> None:
    wrong = frame({"wrong": 1})
    wrong["embedding"] = [np.zeros(3, dtype=np.float32)]
    with pytest.raises(ValueError, match=r"embedding.*\b[23]\b.*\b[23]\b"):
        store.push("clicks_push", wrong, to=PushMode.ONLINE)
    assert get(store, [f"{pushed}:count"], "wrong")["count"] == [None]


def test_repeated_and_missing_entities_keep_their_places(store: FeatureStore, pushed: str) -> None:
    keys = ["b", "none", "a", "b", "b", "none"]
    assert get(store, [f"{pushed}:count"], *keys) == {"item": keys, "count": [2, None, 1, 2, 2, None]}


def test_features_of_several_views_come_in_the_order_asked(store: FeatureStore, pushed: str) -> None:
    other = item_view("other", COUNT)
    store.apply([other])
    store.write_to_online_store("other", frame({"a": 7})[["item", "count", "event_timestamp", "created"]])
    answer = get(store, ["other:count", f"{pushed}:embedding", f"{pushed}:count"], "a", full_feature_names=True)
    assert answer == {"item": ["a"], "other__count": [7], "clicks__embedding": [[1.0, -1.0]], "clicks__count": [1]}


def test_what_was_never_declared_is_told_by_feast(store: FeatureStore, pushed: str) -> None:
    with pytest.raises(FeatureViewNotFoundException):
        get(store, ["nothing:count"], "a")
    with pytest.raises(Exception, match="unknown"):
        get(store, [f"{pushed}:unknown"], "a")


def test_a_feature_service_answers_its_own_features(store: FeatureStore, pushed: str) -> None:
    view = store.get_feature_view(pushed)
    store.apply([FeatureService(name="service", features=[view[["count"]]])])
    assert get(store, store.get_feature_service("service"), "a", "x") == {"item": ["a", "x"], "count": [1, None]}


def test_a_view_is_asked_under_other_names_and_other_keys(store: FeatureStore, pushed: str) -> None:
    users = [Entity(name=name, join_keys=[name], value_type=ValueType.STRING) for name in ("seen", "bought")]
    views = [
        store.get_feature_view(pushed).with_name(f"{user.name}_clicks").with_join_key_map({"item": user.name})
        for user in users
    ]
    store.apply([*users, FeatureService(name="aliases", features=[view[["count"]] for view in views])])
    answer = store.get_online_features(
        store.get_feature_service("aliases"), {"seen": ["a", "b"], "bought": ["b", "x"]}, full_feature_names=True
    ).to_dict()
    assert answer["seen_clicks__count"] == [1, 2]
    assert answer["bought_clicks__count"] == [2, None]


def test_a_view_without_entities_has_one_row(store: FeatureStore, tmp_path: Path) -> None:
    path = tmp_path / "totals.parquet"
    frame({"ignored": 4, "ignored too": 5})[["count", "event_timestamp", "created"]].tail(1).to_parquet(path)
    source = file_source("totals", str(path))
    store.apply([FeatureView(name="totals", entities=[], schema=[COUNT], source=source, ttl=timedelta(0))])
    store.materialize(NOW - HOUR, NOW + HOUR, ["totals"])
    assert store.get_online_features(["totals:count"], {"item": ["a", "b"]}).to_dict()["count"] == [5, 5]


@pytest.fixture
def on_demand(store: FeatureStore, pushed: str) -> None:
    view = store.get_feature_view(pushed)
    asked = RequestSource(name="asked", schema=[Field(name="factor", dtype=Int64)])

    @on_demand_feature_view(
        sources=[view, asked], schema=[Field(name="product", dtype=Float64)], mode="python", singleton=False
    )
    def scaled(inputs: dict[str, Any]) -> dict[str, Any]:
        pairs = zip(inputs["count"], inputs["factor"], strict=True)
        return {"product": [None if n is None else float(n * factor) for n, factor in pairs]}

    store.apply([scaled])


def test_an_on_demand_view_is_computed_from_what_is_read(store: FeatureStore, on_demand: None) -> None:
    answer = store.get_online_features(["scaled:product"], {"item": ["a", "b"], "factor": [10, 20]}).to_dict()
    assert answer["product"] == [10.0, 40.0]


def test_an_on_demand_view_that_is_written_online_is_read_from_there(store: FeatureStore, pushed: str) -> None:
    view = store.get_feature_view(pushed)

    @on_demand_feature_view(
        sources=[view],
        entities=[ITEM],
        schema=[Field(name="item", dtype=String), Field(name="twice", dtype=Int64)],
        mode="python",
        write_to_online_store=True,
    )
    def doubled(inputs: dict[str, Any]) -> dict[str, Any]:
        return {"twice": [2 * n for n in inputs["count"]]}

    store.apply([doubled])
    rows = pd.DataFrame({"item": ["a"], "count": [21], "event_timestamp": [NOW], "created": [NOW]})
    store.write_to_online_store("doubled", rows)
    assert get(store, ["doubled:twice"], "a", "x")["twice"] == [42, None]


def test_keys_of_an_encoders_view_are_canonical_whoever_writes_or_reads(store: FeatureStore) -> None:
    spec = EncoderSpec(
        name="mobilenet_v3_small",
        version="v1",
        modality="image",
        dim=2,
        network="torchvision:mobilenet_v3_small",
        weights="seeded:0",
        pinned="seeded:0",
    )
    view = item_view("images", EMBEDDING, tags=spec.to_tags())
    store.apply([view])
    given = "HTTP://A.Example:80/x.jpg"
    online(store).online_write_batch(store.config, view, [(item(given), {"embedding": vector(1, 2)}, NOW, NOW)], None)
    urls = ["http://a.example/x.jpg", given, "http://a.example/X.jpg", "no url"]
    assert read_items(store, view, urls) == [{"embedding": vector(1, 2)}] * 2 + [None] * 2
    assert get(store, ["images:embedding"], *urls)["embedding"] == [[1.0, 2.0]] * 2 + [None] * 2
    matrix = online(store).read_matrix(store.config, view, urls[:1])
    assert matrix.vectors.tolist() == [[1.0, 2.0]]
    online(store).online_delete(store.config, view, [(item("http://A.EXAMPLE/x.jpg"), NOW)])
    assert read_items(store, view, urls[:1]) == [None]


def test_a_precomputed_service_needs_a_table_that_feast_never_applies(store: FeatureStore, pushed: str) -> None:
    """Feast keeps such vectors in a view that it makes up, and finds keys to compute them for in Redis alone."""
    view = store.get_feature_view(pushed)
    service = FeatureService(name="precomputed", features=[view[["count"]]], precompute_online=True)
    store.apply([service])
    with pytest.raises(RuntimeError, match="could not be read"):
        get(store, service, "a")
    with pytest.raises(NotApplied, match=r"^__precomputed__precomputed: "):
        online(store).write_precomputed_vector(store.config, "precomputed", store.project, item("a"), b"")


@contextmanager
def feast_serve(folder: Path) -> Iterator[str]:
    """`feast serve`, as one runs it."""
    port = free_port()
    command = [sys.executable, "-m", "feast.cli.cli", "-c", str(folder), "serve", "--port", str(port), "--workers", "1"]
    log = folder / "serve.log"
    with (
        log.open("w") as out,
        subprocess.Popen(command, stdout=out, stderr=out, cwd=Path(__file__).parents[2]) as process,
    ):
        try:
            deadline = time.monotonic() + 240
            while True:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                    break
                except OSError:
                    time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)


def post(url: str, asked: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(asked).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read() or b"null")


def test_feast_serve_takes_pushes_and_answers(store: FeatureStore, pushed: str) -> None:
    with feast_serve(Path(store.repo_path)) as url:
        asked = {"features": [f"{pushed}:count", f"{pushed}:embedding"], "entities": {"item": ["b", "served"]}}

        def answer() -> dict[str, Any]:
            told = post(f"{url}/get-online-features", asked)
            return dict(zip(told["metadata"]["feature_names"], told["results"], strict=True))

        before = answer()
        assert before["count"]["values"] == [2, None]
        assert before["embedding"]["values"] == [[2.0, -2.0], None]
        assert [before[name]["statuses"] for name in ("count", "embedding")] == [["PRESENT", "NOT_FOUND"]] * 2
        row = {"item": ["served"], "count": [9], "embedding": [[9.0, -9.0]]}
        times = {"event_timestamp": [str(NOW)], "created": [str(NOW)]}
        post(f"{url}/push", {"push_source_name": "clicks_push", "df": row | times, "to": "online"})
        after = answer()
        assert after["count"]["values"] == [2, 9]
        assert after["embedding"]["values"] == [[2.0, -2.0], [9.0, -9.0]]
