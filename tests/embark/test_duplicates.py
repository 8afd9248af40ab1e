"""`embark duplicates` over a history of pictures, served by a web server of this machine."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from feast import FeatureStore

from embark.duplicates import duplicates
from embark.settings import Settings
from encoders.spec import EncoderSpec
from feature_repo.embeddings import embedding_id
from feature_repo.offline_store import EmbeddingOfflineStore
from feature_repo.views import encoder_specs, feast_objects
from tests.encoders.families import LSTM, image_checkpoint
from tests.encoders.pictures import file_of, photographs
from tests.encoders.web import Web, serving

NAMES = ("cat", "cat-again", "cat-near", "coffee")


@pytest.fixture
def site() -> Iterator[Web]:
    pictures = {name: file_of(picture) for name, picture in photographs().items()}
    with serving({f"/{n}.jpg": pictures["coffee" if n == "coffee" else "cat"] for n in NAMES[:-1]}) as running:
        yield running


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    repo = tmp_path / "repo"
    repo.mkdir()
    (repo / "feature_store.yaml").write_text(
        "project: shop\nprovider: local\nregistry: registry.db\n"
        "online_store: {type: sqlite, path: online.db}\n"
        "offline_store: {type: feature_repo.offline_store.EmbeddingOfflineStore}\n"
        "entity_key_serialization_version: 3\n"
    )
    declared = [LSTM, image_checkpoint(repo)]
    FeatureStore(repo_path=str(repo)).apply(list(feast_objects(declared, {}, kafka="broker:9092", repo=repo).values()))
    return Settings(repo=repo)


def archive(settings: Settings, rows: dict[str, tuple[float, str]], at: int = 0, view: str = "conv__v1") -> EncoderSpec:
    """Key → an angle, in degrees, for its embedding; and its content hash."""
    store = FeatureStore(repo_path=str(settings.repo))
    spec = encoder_specs(store, allow_cache=False)[view]
    registered = store.get_feature_view(spec.view)
    vectors = np.zeros((len(rows), spec.dim), dtype=np.float32)
    angles = np.radians([angle for angle, _ in rows.values()])
    vectors[:, 0], vectors[:, 1] = np.cos(angles), np.sin(angles)
    event = 1_767_268_800_000_000 + at + np.arange(len(rows))
    ids = [embedding_id(spec.view, key, int(t), v) for key, t, v in zip(rows, event, vectors, strict=True)]
    table = pa.table(
        {
            spec.join_key: list(rows),
            "embedding": pa.array(list(vectors), pa.list_(pa.float32())),
            "embedding_id": pa.array(ids, pa.int64()),
            "content_hash": [content for _, content in rows.values()],
            "event_timestamp": pa.array(event).cast(pa.timestamp("us", tz="UTC")),
            "created_timestamp": pa.array(event).cast(pa.timestamp("us", tz="UTC")),
        }
    )
    EmbeddingOfflineStore.offline_write_batch(store.config, registered, table, None)
    return spec


def run(settings: Settings, *arguments: object) -> Result:
    return CliRunner().invoke(duplicates, ["--view", "conv__v1", *map(str, arguments)], obj=settings)


def test_groups_are_found_shown_side_by_side_and_searched_again_for_what_is_new_alone(
    settings: Settings, site: Web, tmp_path: Path
) -> None:
    cat, again, near, coffee = (site.url(f"/{name}.jpg") for name in NAMES)
    archive(settings, {cat: (0, "aa"), again: (0, "aa"), near: (5, "bb"), coffee: (90, "cc")})
    given = ("--out", tmp_path / "out", "--threshold", 0.99, "--allow-network", "127.0.0.0/8", "--json")
    done = run(settings, *given)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["items"], told["searched"], told["groups"]) == (4, 3, 1)  # of two equal ones one is searched
    assert (told["same_content"], told["near"]) == (1, 1)
    assert told["search"]["exact"] is True
    assert told["calibrated"] is False
    table = pq.read_table(tmp_path / "out" / "groups.parquet")
    assert table["key"].to_pylist() == [cat, again, near]
    assert table["kind"].to_pylist() == ["first", "same content", "near"]
    assert table.schema.metadata[b"embark.fingerprint"].decode() == told["fingerprint"]
    page = (tmp_path / "out" / "groups.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 3
    assert cat in page
    assert coffee not in page
    assert re.findall(r"(?:src|href)=", page) == []  # nothing outside of it
    assert "not calibrated" in page

    later = site.url("/later.jpg")
    archive(settings, {later: (91, "dd")}, at=1000)
    told = json.loads(run(settings, *given).stdout)
    assert (told["searched"], told["groups"], told["items"]) == (1, 2, 5)
    anew = json.loads(run(settings, *given, "--anew").stdout)
    assert (anew["searched"], anew["groups"]) == (4, 2)


def test_a_threshold_is_learned_kept_and_used_from_then_on(settings: Settings, tmp_path: Path) -> None:
    keys = [f"http://a.example/{i}.jpg" for i in range(4)]
    archive(settings, dict(zip(keys, [(0, ""), (8, ""), (30, ""), (120, "")], strict=True)))
    (tmp_path / "pairs.csv").write_text(
        f"left,right,duplicate\n{keys[0]},{keys[1]},1\n{keys[1]},{keys[2]},0\n{keys[0]},{keys[3]},0\n"
    )
    out = ("--out", tmp_path / "out")
    learned = run(settings, *out, "--calibrate", tmp_path / "pairs.csv", "--json")
    assert learned.exit_code == 0, learned.output
    assert json.loads(learned.stdout)["similarity"] == pytest.approx(np.cos(np.radians(8)), abs=1e-4)
    assert (tmp_path / "out" / "threshold.png").stat().st_size > 5000
    done = run(settings, *out, "--no-pictures")
    assert done.exit_code == 0, done.output
    assert "1 groups of 2 among 4 items" in done.stdout
    assert "not calibrated" not in done.stdout

    # never across versions
    for name in ("threshold.json", "state.json"):
        kept = (tmp_path / "out" / name).read_text()
        other = re.sub(r'"fingerprint": "\w+"', '"fingerprint": "0000"', kept)
        assert other != kept
        (tmp_path / "out" / name).write_text(other)
        refused = run(settings, *out, "--no-pictures")
        assert refused.exit_code == 1
        assert "fingerprint 0000" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
        (tmp_path / "out" / name).write_text(kept)


def test_an_empty_archive_and_an_unknown_view_are_told_in_one_line(settings: Settings, tmp_path: Path) -> None:
    empty = run(settings, "--out", tmp_path / "out")
    assert empty.exit_code == 1
    assert "holds nothing of conv__v1 yet" in empty.stderr
    unknown = CliRunner().invoke(duplicates, ["--view", "nope__v1"], obj=settings)
    assert unknown.exit_code == 1
    assert "conv__v1" in unknown.stderr


def test_items_near_in_picture_and_text_are_grouped_shown_and_searched_again_for_what_is_new_alone(
    settings: Settings, site: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cat, again, near, coffee = (site.url(f"/{name}.jpg") for name in NAMES)
    archive(settings, {cat: (0, "aa"), again: (0, "aa"), near: (5, "bb"), coffee: (90, "cc")})
    texts = archive(
        settings, {"a cat": (0, ""), "A  CAT": (40, ""), "one cat": (4, ""), "a cup": (90, "")}, view="lstm__v1"
    )
    rows = [
        (1, cat, "a cat"),
        (2, again, "A  CAT"),
        (3, near, "one cat"),
        (4, cat, "a cup"),
        (5, coffee, "a cat"),
        (6, cat, ""),
    ]
    items = tmp_path / "items.csv"
    items.write_text("sku,image_url,title\n" + "".join(f"{sku},{url},{title}\n" for sku, url, title in rows))
    views = ("--image-view", "conv__v1", "--text-view", "lstm__v1", "--items", items)
    columns = ("--item-column", "sku", "--text-column", "title")

    def search(*arguments: object) -> Result:
        given = [*views, *columns, "--allow-network", "127.0.0.0/8", *arguments]
        return CliRunner().invoke(duplicates, [*map(str, given)], obj=settings)

    done = search("--image-threshold", 0.99, "--text-threshold", 0.99, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["items"], told["no_image"], told["no_text"]) == (5, 0, 1)
    assert (told["groups"], told["in_groups"], told["same_content"], told["near"]) == (1, 3, 1, 1)
    assert told["text_view"]["fingerprint"] == texts.fingerprint
    folder = tmp_path / "duplicates" / "conv__v1+lstm__v1"
    table = pq.read_table(folder / "groups.parquet")
    assert table["item"].to_pylist() == ["1", "2", "3"]
    assert table["kind"].to_pylist() == ["first", "same content", "near"]
    page = (folder / "groups.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 3
    assert page.count("not calibrated") == 2
    assert "picture 0.996, text 0.998" in page
    assert re.findall(r"(?:src|href)=", page) == []

    archive(settings, {"one cup": (91, "")}, at=1000, view="lstm__v1")
    with items.open("a") as file:
        file.write(f"7,{near},one cup\n")
    told = json.loads(search("--image-threshold", 0.99, "--text-threshold", 0.99, "--json").stdout)
    assert (told["searched"], told["groups"], told["items"]) == (1, 2, 6)  # 7 is near 4

    # each view's threshold is its own, calibrated for its fingerprint
    (tmp_path / "pairs.csv").write_text(f"left,right,duplicate\n{cat},{near},1\n{cat},{coffee},0\n")
    assert run(settings, "--calibrate", tmp_path / "pairs.csv").exit_code == 0
    shown = search("--text-threshold", 0.9999, "--no-pictures")
    assert shown.exit_code == 0, shown.output
    assert "1 groups of 2 among 6 items" in shown.stdout
    assert "of lstm__v1 is not calibrated" in shown.stdout
    assert "of conv__v1 is not calibrated" not in shown.stdout
    kept = tmp_path / "duplicates" / "conv__v1" / "threshold.json"
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"fingerprint": "0000"}))
    refused = search("--text-threshold", 0.9, "--no-pictures")
    assert refused.exit_code == 1
    assert "calibrated for conv__v1 with fingerprint 0000" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "give --view, or --image-view, --text-view and --items"),
        ("--image-view conv__v1", "give --text-view and --items, too"),
        ("--view conv__v1 --text-view lstm__v1", "--view searches one view: --text-view belong"),
        ("--view conv__v1 --text-threshold 0.9", "--text-threshold belong to --image-view"),
        ("--image-view conv__v1 --text-view lstm__v1 --items ITEMS --threshold 0.9", "by --image-threshold and"),
        ("--image-view conv__v1 --text-view lstm__v1 --items ITEMS --calibrate ITEMS", "calibrated view by view"),
        ("--view conv__v1 --calibrate ITEMS --threshold 0.9", "leave out --threshold"),
        ("--image-view lstm__v1 --text-view conv__v1 --items ITEMS", "lstm__v1 is an encoder of texts"),
    ],
)
def test_options_that_do_not_go_together_are_refused_with_what_to_do(
    arguments: str, said: str, settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "items.csv").write_text("item,image_url,text\n1,a,b\n")
    given = arguments.replace("ITEMS", str(tmp_path / "items.csv")).split()
    done = CliRunner().invoke(duplicates, given, obj=settings)
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.replace("│", " ").split())


def test_items_of_which_none_has_both_embeddings_are_an_error(settings: Settings, tmp_path: Path) -> None:
    archive(settings, {"http://a.example/1.jpg": (0, "")})
    archive(settings, {"a cup": (0, "")}, view="lstm__v1")
    (tmp_path / "items.csv").write_text("item,image_url,text\n1,http://a.example/1.jpg,a bowl\n")
    given = ["--image-view", "conv__v1", "--text-view", "lstm__v1", "--items", str(tmp_path / "items.csv")]
    done = CliRunner().invoke(duplicates, [*given, "--out", str(tmp_path / "out")], obj=settings)
    assert done.exit_code == 1
    assert "0 lack that of conv__v1, 1 that of lstm__v1" in done.stderr
