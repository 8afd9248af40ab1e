"""Items that are near in two views, against a comparison of all with all."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from encoders.spec import EncoderSpec
from tests.training.test_duplicates import items_of, unit
from training.duplicates import DuplicatesError
from training.item_table import ItemTable, read_item_table
from training.paired_duplicates import PairedDuplicates, Side, find_paired_duplicates
from training.vectors import MatrixPlace

IMAGE = EncoderSpec(
    name="tiny", version="v1", modality="image", dim=3, network="torchvision:resnet18", pinned="seeded:0"
)
TEXT = EncoderSpec(name="words", version="v1", modality="text", dim=2, network="text_lstm", pinned="seeded:0")
URL = "http://a.example/{}.jpg"


def table_of(rows: list[tuple[str, str | None, str | None]]) -> ItemTable:
    names, images, texts = zip(*rows, strict=True)
    return ItemTable(
        names=pa.array(names, pa.string()), images=pa.array(images, pa.string()), texts=pa.array(texts, pa.string())
    )


def sides(
    images: NDArray[np.float32],
    texts: NDArray[np.float32],
    thresholds: tuple[float, float] = (0.99, 0.9),
    hashes: list[str] | None = None,
    titles: list[str] | None = None,
) -> tuple[Side, Side]:
    urls = [URL.format(i) for i in range(len(images))]
    titles = titles or [f"title {i}" for i in range(len(texts))]
    return (
        Side(spec=IMAGE, items=items_of(images, urls, hashes), threshold=thresholds[0]),
        Side(spec=TEXT, items=items_of(texts, titles, first_id=1000), threshold=thresholds[1]),
    )


def found(table: ItemTable, images: Side, texts: Side, **others: object) -> PairedDuplicates:
    return find_paired_duplicates(table, images, texts, MatrixPlace(), **others)  # type: ignore[arg-type]


def groups_of(duplicates: PairedDuplicates) -> set[frozenset[str]]:
    groups: dict[int, set[str]] = {}
    for row in duplicates.table.to_pylist():
        groups.setdefault(row["group"], set()).add(row["item"])
    return {frozenset(each) for each in groups.values()}


def test_near_in_one_view_alone_is_no_duplicate_and_both_are_told_apart_by_kind() -> None:
    images = unit(np.array([[1, 0, 0], [1, 0.05, 0], [1, 0, 0.05], [0, 1, 0]]))
    texts = unit(np.array([[1, 0], [1, 0.3], [0, 1], [1, 0.01]]))
    table = table_of(
        [
            ("a", URL.format(0), "title 0"),
            ("b", URL.format(1), "title 1"),  # near a in both
            ("picture only", URL.format(1), "title 2"),
            ("text only", URL.format(3), "title 3"),
            ("c", URL.format(0), "title 3"),  # a's picture, and a text near its own
        ]
    )
    done = found(table, *sides(images, texts))
    assert groups_of(done) == {frozenset("abc")}
    kinds = dict(zip(done.table["item"].to_pylist(), done.table["kind"].to_pylist(), strict=True))
    assert kinds == {"a": "first", "b": "near", "c": "same image, near text"}
    by_item = {row["item"]: row for row in done.table.to_pylist()}
    assert by_item["b"]["image_similarity"] == pytest.approx(0.99875, abs=1e-4)
    assert by_item["b"]["text_similarity"] == pytest.approx(0.9578, abs=1e-3)
    assert (by_item["c"]["image_url"], by_item["c"]["text"]) == (URL.format(0), "title 3")


def test_equal_content_is_near_whatever_its_embedding() -> None:
    images, texts = unit(np.eye(3)), unit(np.array([[1, 0], [0, 1], [-1, 0]]))
    given_sides = sides(images, texts, hashes=["h", "h", "other"], titles=["A red bicycle", "a RED  bicycle", "a cup"])
    table = table_of(
        [("a", URL.format(0), "A red bicycle"), ("b", URL.format(1), "a RED  bicycle"), ("c", URL.format(0), "a cup")]
    )
    done = found(table, *given_sides)
    assert groups_of(done) == {frozenset("ab")}
    assert done.table["kind"].to_pylist() == ["first", "same content"]
    assert done.new == 2  # a and b are searched once


def test_items_without_one_of_the_two_are_counted_and_left_out() -> None:
    images, texts = unit(np.ones((1, 3))), unit(np.ones((1, 2)))
    table = table_of(
        [
            ("a", URL.format(0), "title 0"),
            ("b", "HTTP://A.example:80/0.jpg", "  title 0 "),  # the same keys, not in their canonical form
            ("no picture", None, "title 0"),
            ("not archived", URL.format(7), "title 0"),
            ("no key", "not a url", "nor archived"),
        ]
    )
    done = found(table, *sides(images, texts))
    assert (done.items, done.no_image, done.no_text, groups_of(done)) == (2, 3, 1, {frozenset("ab")})


@given(
    seed=st.integers(0, 20),
    thresholds=st.sampled_from([(0.9, 0.9), (0.5, 0.99), (0.99, 0.3), (1.0, 0.8)]),
    cut=st.integers(1, 29),
)
@settings(max_examples=25, deadline=None)
def test_it_finds_what_comparing_all_with_all_does_at_once_and_bit_by_bit(
    seed: int, thresholds: tuple[float, float], cut: int
) -> None:
    draw = np.random.default_rng(seed)
    images, texts = unit(draw.standard_normal((12, 3))), unit(draw.standard_normal((10, 2)))
    images[3], texts[2] = images[0], texts[0]
    rows = [(f"i{i}", int(draw.integers(12)), int(draw.integers(10))) for i in range(30)]
    table = table_of([(name, URL.format(i), f"title {t}") for name, i, t in rows])
    two = sides(images, texts, thresholds)
    done = found(table, *two)

    joined = {name: {name} for name, _, _ in rows}
    for name, i, t in rows:
        for other, j, u in rows:
            if images[i] @ images[j] >= thresholds[0] - 1e-6 and texts[t] @ texts[u] >= thresholds[1] - 1e-6:
                merged = joined[name] | joined[other]
                for each in merged:
                    joined[each] = merged
    assert groups_of(done) == {frozenset(each) for each in joined.values() if len(each) > 1}

    some = table_of([(name, URL.format(i), f"title {t}") for name, i, t in rows[:cut]])
    later = found(table, *two, before=found(some, *two).searched)
    assert later.table == done.table
    assert later.new <= done.new
    assert found(table, *two, before=later.searched).new == 0


def test_the_approximate_search_of_both_finds_at_least_95_percent() -> None:
    draw = np.random.default_rng(0)
    images, texts = draw.standard_normal((4000, 24)), draw.standard_normal((4000, 16))
    images[2000:] = images[:2000] + 0.1 * draw.standard_normal((2000, 24))
    texts[2000:3000] = texts[:1000] + 0.1 * draw.standard_normal((1000, 16))  # of the rest the picture alone is near
    two = [
        Side(
            spec=replace(IMAGE, dim=24),
            items=items_of(unit(images), [URL.format(i) for i in range(4000)]),
            threshold=0.95,
        ),
        Side(
            spec=replace(TEXT, dim=16), items=items_of(unit(texts), [f"title {i}" for i in range(4000)]), threshold=0.95
        ),
    ]
    table = table_of([(str(i), URL.format(i), f"title {i}") for i in range(4000)])
    exact, near = found(table, *two), found(table, *two, exact_items=0)
    assert len(exact.found.left) >= 900
    assert not near.found.exact
    assert near.found.recall >= 0.95
    assert len(near.found.left) >= 0.95 * len(exact.found.left)


def test_a_table_of_items_is_read_from_csv_and_parquet_and_refused_with_what_is_wrong(tmp_path: Path) -> None:
    csv, parquet = tmp_path / "items.csv", tmp_path / "items.parquet"
    csv.write_text("sku,image_url,title\n007,http://a.example/1.jpg,a cup\n8,,a bowl\n")
    names = {"item": "sku", "image": "image_url", "text": "title"}
    read = read_item_table(csv, **names)
    assert (read.names.to_pylist(), read.images.to_pylist()) == (["007", "8"], ["http://a.example/1.jpg", None])
    pq.write_table(pa.table({"sku": [7, 8], "image_url": ["x", None], "title": ["a", "b"]}), parquet)
    assert read_item_table(parquet, **names).names.to_pylist() == ["7", "8"]
    with pytest.raises(DuplicatesError, match=r"lacks the column item; it has sku, image_url, title: name yours"):
        read_item_table(csv, **(names | {"item": "item"}))
    csv.write_text("sku,image_url,title\n1,a,b\n1,c,d\n")
    with pytest.raises(DuplicatesError, match="sku '1' stands there more than once"):
        read_item_table(csv, **names)
    csv.write_text("sku,image_url,title\n,a,b\n")
    with pytest.raises(DuplicatesError, match="row 1 has no sku"):
        read_item_table(csv, **names)
    with pytest.raises(DuplicatesError, match="cannot be read"):
        read_item_table(tmp_path, **names)
