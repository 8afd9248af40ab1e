import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from encoders.spec import EncoderSpec
from feature_repo.embeddings import OOV_KEY
from feature_repo.offline_store import EmbeddingOfflineStore
from tests.training.archive import IMAGE, NOON, SECOND, TEXT, Archived, table_of
from tests.training.archive import Embedded as Row
from training.archived_items import ArchivedItems, read_items
from training.duplicate_threshold import Labelled, Threshold, calibrate, precision_cut
from training.duplicates import DuplicatesError, Searched, find_duplicates, to_unit_length
from training.near_pairs import TooManyPairs, near_pairs
from training.vectors import MatrixPlace


def unit(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    found = vectors.astype(np.float32)
    to_unit_length(found, np.zeros(found.shape[1], dtype=np.float32))
    return found


def items_of(
    vectors: NDArray[np.float32], keys: list[str] | None = None, hashes: list[str] | None = None, first_id: int = 1
) -> ArchivedItems:
    count = len(vectors)
    return ArchivedItems(
        keys=pa.array(keys or [f"k{i}" for i in range(count)], pa.string()),
        ids=np.arange(first_id, first_id + count, dtype=np.int64),
        event=NOON + np.arange(count) * SECOND,
        content_hash=pa.array(hashes or [""] * count, pa.string()),
        vectors=vectors,
    )


def clustered(count: int, dim: int, copies: int, seed: int = 0) -> NDArray[np.float32]:
    """Points of a few hundred clouds; the last `copies` are near the first ones."""
    draw = np.random.default_rng(seed)
    clouds = draw.standard_normal((200, dim))
    base = clouds[draw.integers(200, size=count - copies)] + 0.8 * draw.standard_normal((count - copies, dim))
    near = base[:copies] + 0.1 * draw.standard_normal((copies, dim))
    return unit(np.concatenate([base, near]))


def test_the_newest_embedding_of_each_key_is_read_and_removed_keys_are_not(tmp_path: Path) -> None:
    archive = Archived.at(tmp_path / "repo")
    archive.push(IMAGE, [Row("a", 0, 1, 1.0), Row("b", 0, 1, 2.0), Row("gone", 0, 1, 3.0)])
    archive.push(IMAGE, [Row("a", 5, 6, 4.0), Row("late", 2, 9, 5.0)])
    removal = table_of(IMAGE, [Row("gone", 1, 2, 0.0)])
    for name in ("embedding", "embedding_id", "content_hash"):
        at = removal.column_names.index(name)
        removal = removal.set_column(at, name, pa.nulls(1, removal.schema.field(name).type))
    EmbeddingOfflineStore.offline_write_batch(archive.store.config, archive.views[IMAGE.view], removal, None)
    archive.push(IMAGE, [Row(OOV_KEY, 3, 3, 6.0)])  # no item
    items = read_items(archive.store, IMAGE, MatrixPlace())
    found = dict(zip(items.keys.to_pylist(), items.vectors[:, 0].tolist(), strict=True))
    assert found == {"a": 4.0, "b": 2.0, "late": 5.0}
    assert set(items.ids) == {
        Row("a", 5, 6, 4.0).id(IMAGE),
        Row("b", 0, 1, 2.0).id(IMAGE),
        Row("late", 2, 9, 5.0).id(IMAGE),
    }


def test_an_empty_history_has_no_items(tmp_path: Path) -> None:
    assert len(read_items(Archived.at(tmp_path / "repo").store, TEXT, MatrixPlace())) == 0


@given(count=st.integers(0, 40), threshold=st.sampled_from([0.3, 0.8, 0.99]), seed=st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_the_exact_search_finds_every_pair_once(count: int, threshold: float, seed: int) -> None:
    vectors = unit(np.random.default_rng(seed).standard_normal((count, 4)))
    found = near_pairs(vectors, threshold)
    similar = np.einsum("id,jd->ij", vectors, vectors)
    sure, maybe = similar >= threshold + 1e-5, similar >= threshold - 1e-5
    pairs = set(zip(found.left.tolist(), found.right.tolist(), strict=True))
    assert len(pairs) == len(found.left)
    assert {(i, j) for i, j in np.argwhere(sure).tolist() if i < j} <= pairs
    assert pairs <= {(i, j) for i, j in np.argwhere(maybe).tolist() if i < j}


def test_the_approximate_search_finds_what_the_exact_one_does_and_tells_its_recall() -> None:
    vectors = clustered(6000, 32, 600)
    exact = near_pairs(vectors, 0.9)
    found = near_pairs(vectors, 0.9, exact_items=0)
    truth = set(zip(exact.left.tolist(), exact.right.tolist(), strict=True))
    pairs = set(zip(found.left.tolist(), found.right.tolist(), strict=True))
    assert len(truth) >= 600
    assert pairs <= truth
    assert len(pairs) >= 0.95 * len(truth)
    assert not found.exact
    assert found.recall_from >= 30
    assert found.recall >= 0.95
    assert 0 < found.probes < found.lists


def test_a_threshold_that_all_pairs_pass_is_refused_before_they_fill_the_memory() -> None:
    vectors = unit(np.ones((10_200, 2)) + 0.01 * np.random.default_rng(0).standard_normal((10_200, 2)))
    with pytest.raises(TooManyPairs, match="raise the threshold"):
        near_pairs(vectors, 0.5)


def test_equal_content_comes_first_then_equal_embeddings_then_near_ones() -> None:
    vectors = unit(np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0.999, 0.04, 0], [0, 0, 1]]))
    found = find_duplicates(items_of(vectors, hashes=["h", "h", "", "", ""]), 0.99, texts=False)
    assert found.table.select(["group", "key", "kind"]).to_pylist() == [
        {"group": 1, "key": "k0", "kind": "first"},
        {"group": 1, "key": "k1", "kind": "same content"},
        {"group": 1, "key": "k2", "kind": "same embedding"},
        {"group": 1, "key": "k3", "kind": "near"},
    ]
    assert found.groups == 1
    assert found.table["similarity"].to_pylist()[2:] == pytest.approx([1.0, 0.9992], abs=1e-3)


def test_titles_that_differ_in_case_and_spaces_are_the_same_content() -> None:
    vectors = unit(np.eye(3))
    found = find_duplicates(items_of(vectors, ["A red  bicycle", "a RED bicycle ", "a blue one"]), 0.9, texts=True)
    assert found.table["key"].to_pylist() == ["A red  bicycle", "a RED bicycle "]
    assert found.table["kind"].to_pylist() == ["first", "same content"]


def test_a_thousand_copies_of_one_picture_are_one_group_and_not_half_a_million_pairs() -> None:
    found = find_duplicates(items_of(unit(np.ones((1000, 4)))), 0.9, texts=False)
    assert (found.groups, found.table.num_rows, len(found.found.left)) == (1, 1000, 0)


def test_an_archive_without_duplicates_has_no_groups() -> None:
    found = find_duplicates(items_of(unit(np.eye(4))), 0.9, texts=False)
    assert (found.groups, found.table.num_rows) == (0, 0)


@given(cut=st.integers(1, 79), gone=st.integers(0, 20), seed=st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_a_search_of_what_is_new_ends_where_a_search_of_all_does(cut: int, gone: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    vectors = unit(draw.standard_normal((80, 3)))
    vectors[draw.integers(80, size=10)] = vectors[0]  # equal ones, too
    whole = items_of(vectors)
    of_before, now = np.arange(cut), np.sort(draw.permutation(80)[gone:])
    before = find_duplicates(_some(whole, of_before), 0.97, texts=False).searched
    after = find_duplicates(_some(whole, now), 0.97, texts=False, before=before)
    anew = find_duplicates(_some(whole, now), 0.97, texts=False)
    assert after.table == anew.table
    assert after.new <= len(now)
    again = find_duplicates(_some(whole, now), 0.97, texts=False, before=after.searched)
    assert (again.new, again.table) == (0, anew.table)


def _some(items: ArchivedItems, rows: NDArray[np.int64]) -> ArchivedItems:
    return ArchivedItems(
        keys=items.keys.take(pa.array(rows)),
        ids=items.ids[rows],
        event=items.event[rows],
        content_hash=items.content_hash.take(pa.array(rows)),
        vectors=items.vectors[rows],
    )


def test_pairs_of_an_item_that_was_embedded_anew_are_forgotten() -> None:
    vectors = unit(np.array([[1, 0], [0.999, 0.04], [0, 1]]))
    before = find_duplicates(items_of(vectors), 0.99, texts=False).searched
    assert isinstance(before, Searched)
    assert len(before.left) == 1
    moved = replace(items_of(unit(np.array([[1, 0], [0, -1], [0, 1]]))), ids=np.array([1, 9, 3]))
    assert find_duplicates(moved, 0.99, texts=False, before=before).groups == 0


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.5, 0.7, 0.9]), st.booleans()), min_size=1, max_size=30))
def test_the_cut_is_the_lowest_one_with_the_precision(pairs: list[tuple[float, bool]]) -> None:
    similarity = np.array([s for s, _ in pairs])
    label = np.array([d for _, d in pairs])
    allowed = [t for t in sorted(set(similarity.tolist())) if label[similarity >= t].mean() >= 0.8]
    if not allowed or not label.any():
        return
    cut, precision, recall = precision_cut(similarity, label, 0.8)
    assert cut == allowed[0]
    assert precision == pytest.approx(label[similarity >= cut].mean())
    assert recall == pytest.approx(label[similarity >= cut].sum() / label.sum())


SPEC = EncoderSpec(
    name="tiny", version="v1", modality="image", dim=2, network="torchvision:resnet18", pinned="seeded:0"
)


def test_a_threshold_is_kept_with_its_fingerprint_and_refused_for_another(tmp_path: Path) -> None:
    keys = [f"http://a.example/{i}.jpg" for i in range(4)]
    items = items_of(unit(np.array([[1, 0], [0.99, 0.1], [0.5, 0.8], [0, 1]])), keys)
    pairs = pd.DataFrame(
        {
            "left": [keys[0], keys[0], keys[2], keys[0]],
            "right": [keys[1], keys[2], keys[3], "http://a.example/missing.jpg"],
            "duplicate": [1, 0, 0, 1],
        }
    )
    kept = calibrate(SPEC, Labelled.of(items, SPEC, pairs), np.zeros(2, dtype=np.float32), 0.99)
    assert (kept.precision, kept.recall, kept.pairs, kept.missing) == (1.0, 1.0, 3, 1)
    assert kept.similarity == pytest.approx(0.995, abs=1e-3)
    kept.write(tmp_path / "deep" / "threshold.json")
    assert Threshold.read(tmp_path / "deep" / "threshold.json", SPEC) == kept
    other = replace(SPEC, pinned="seeded:1")
    with pytest.raises(DuplicatesError, match=r"calibrated for tiny__v1 .* calibrate anew"):
        Threshold.read(tmp_path / "deep" / "threshold.json", other)
    (tmp_path / "broken.json").write_text(json.dumps({"view": "tiny__v1"}))
    with pytest.raises(DuplicatesError, match="holds no threshold"):
        Threshold.read(tmp_path / "broken.json", SPEC)


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ({"left": ["a"], "right": ["b"]}, "lack duplicate"),
        ({"left": ["a"], "right": ["b"], "duplicate": ["perhaps"]}, "holds 0 or 1"),
        ({"left": ["http://a.example/1"], "right": ["http://a.example/2"], "duplicate": [1]}, "0 are archived"),
    ],
)
def test_labels_that_cannot_be_used_are_refused_with_what_is_wrong(pairs: dict[str, list[object]], said: str) -> None:
    with pytest.raises(DuplicatesError, match=said):
        Labelled.of(items_of(unit(np.eye(2))), SPEC, pd.DataFrame(pairs))


def test_a_precision_that_no_threshold_reaches_is_an_error() -> None:
    with pytest.raises(DuplicatesError, match=r"reach 0\.500"):
        precision_cut(np.array([0.9, 0.9]), np.array([True, False]), 0.99)
