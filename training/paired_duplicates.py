"""Items whose pictures AND texts are the same, or nearly: two views of one catalogue, each with its own threshold.

Two cosines of different encoders cannot be compared, nor added up: a pair counts where each is above the threshold of
its own encoder. Searched for is one vector an item all the same: the two embeddings one after the other, weighted by
what their thresholds leave to 1, so that every pair above both lies above one cut. Of what is found there, the pairs
that fail either threshold are dropped, so the weights decide about speed alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from encoders.spec import EncoderSpec
from training.archived_items import ArchivedItems
from training.duplicates import (
    FIRST,
    NEAR,
    SAME_CONTENT,
    SLICE,
    Searched,
    components,
    content_codes,
    first_equal,
    firsts,
    in_groups,
    similarity_of,
    still_near,
)
from training.item_table import ItemTable
from training.near_pairs import EXACT_ITEMS, Keep, NearPairs, near_pairs
from training.vectors import MatrixPlace

SAME_IMAGE, SAME_TEXT = "same image, near text", "near image, same text"
LEAST_ROOM = 1e-3  # that a threshold leaves to 1, for the weights: a threshold of 1 would leave the other view none
ROUNDING = 2e-6  # of a sum of products in float32


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """One of the two views.

    Attributes:
        spec: its encoder.
        items: what it holds; vectors of unit length, less the centre.
        threshold: the least cosine.
    """

    spec: EncoderSpec
    items: ArchivedItems
    threshold: float


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedDuplicates:
    """Groups of items that are near in both views, the largest first.

    Attributes:
        table: a row for each item that has a duplicate: `group`, `size`, `item`, the two keys by their join keys,
            `kind`, `image_similarity` and `text_similarity` (to the group's first item, which is its oldest),
            `image_embedding_id`, `text_embedding_id`, `event_timestamp` (the later of its two).
        searched: for the next search.
        found: the pairs that this search found, and how.
        items: how many there are with both embeddings.
        new: how many different pairs of embeddings of them were searched.
        no_image, no_text: items without an archived embedding of the one, and of the other.
    """

    table: pa.Table
    searched: Searched
    found: NearPairs
    items: int
    new: int
    no_image: int
    no_text: int

    @property
    def groups(self) -> int:
        return int(pc.count_distinct(self.table["group"]).as_py())


@dataclass(frozen=True, slots=True)
class _Alike:
    """What is the same within a view, of each of the N items: numbers of equal content, and the row that stands for
    all that are equal."""

    content: NDArray[np.int64]
    row: NDArray[np.int64]


def find_paired_duplicates(
    table: ItemTable,
    images: Side,
    texts: Side,
    place: MatrixPlace,
    *,
    before: Searched | None = None,
    exact_items: int = EXACT_ITEMS,
    advance: Callable[[int], None] = lambda done: None,
) -> PairedDuplicates:
    """Groups items that are the same or near in both views, over any number of such steps.

    What has equal content in a view is near in it, whatever its embedding: all that are equal share one of them.

    Args:
        place: where the matrix of both embeddings goes.
        before: an earlier search of these views with these thresholds.
        exact_items: up to how many different items all are compared.
        advance: told how many were searched.

    Raises:
        TooManyPairs: the thresholds are too low.
    """
    rows = (
        images.items.rows_of(images.spec, table.images.to_pylist()),
        texts.items.rows_of(texts.spec, table.texts.to_pylist()),
    )
    there = np.flatnonzero((rows[0] >= 0) & (rows[1] >= 0))  # (N,) of the file's rows
    image_row, text_row = rows[0][there], rows[1][there]
    image, text = _alike(images, image_row, texts=False), _alike(texts, text_row, texts=True)

    # Of the items that are equal in both a single one is searched. Its name is made of two embedding ids: an item
    # with another picture, or embedded anew, has another one.
    named = _mixed(images.items.ids[image.row], texts.items.ids[text.row])  # (N,)
    ids, first, of = np.unique(named, return_index=True, return_inverse=True)  # (D,), (D,), (N,)
    known = np.isin(ids, before.ids) if before is not None else np.zeros(len(ids), dtype=np.bool_)
    joined, cut, keep = _joined(images, texts, image.row[first], text.row[first], place)
    found = near_pairs(
        joined, cut, new=None if before is None else ~known, exact_items=exact_items, advance=advance, keep=keep
    )
    left, right, similarity = found.left, found.right, found.similarity
    if before is not None:
        kept_left, kept_right, kept = still_near(before, ids, np.arange(len(ids)))
        left, right = np.concatenate([kept_left, left]), np.concatenate([kept_right, right])
        similarity = np.concatenate([kept, similarity])

    group = components(len(there), [(np.arange(len(there)), first[of]), (first[left], first[right])])
    event = np.maximum(images.items.event[image_row], texts.items.event[text_row])
    chosen, number, oldest, size = in_groups(group, event, there)
    same_image, same_text = (each.content[chosen] == each.content[oldest] for each in (image, text))
    kind = np.select(
        [chosen == oldest, same_image & same_text, same_image, same_text],
        [FIRST, SAME_CONTENT, SAME_IMAGE, SAME_TEXT],
        NEAR,
    )
    image_similarity, text_similarity = (
        similarity_of(side.items.vectors, alike.row[chosen], alike.row[oldest])
        for side, alike in ((images, image), (texts, text))
    )
    return PairedDuplicates(
        table=pa.table(
            {
                "group": pa.array(number, pa.int64()),
                "size": pa.array(size, pa.int64()),
                "item": table.names.take(pa.array(there[chosen])),
                images.spec.join_key: images.items.keys.take(pa.array(image_row[chosen])),
                texts.spec.join_key: texts.items.keys.take(pa.array(text_row[chosen])),
                "kind": pa.array(kind.tolist(), pa.string()),
                "image_similarity": image_similarity,
                "text_similarity": text_similarity,
                "image_embedding_id": images.items.ids[image_row[chosen]],
                "text_embedding_id": texts.items.ids[text_row[chosen]],
                "event_timestamp": pa.array(event[chosen]).cast(pa.timestamp("us", tz="UTC")),
            }
        ),
        searched=Searched(ids=ids, left=ids[left], right=ids[right], similarity=similarity),
        found=found,
        items=len(there),
        new=int((~known).sum()),
        no_image=int((rows[0] < 0).sum()),
        no_text=int((rows[1] < 0).sum()),
    )


def _alike(side: Side, rows: NDArray[np.int64], *, texts: bool) -> _Alike:
    items = side.items
    everyone = np.arange(len(items))
    content = firsts(content_codes(items, texts))
    same = components(len(items), [(everyone, content), (everyone, first_equal(items.vectors))])
    order = np.lexsort((items.ids, items.event, same))  # the oldest stands for all, wherever compactions move it
    _, first, of = np.unique(same[order], return_index=True, return_inverse=True)
    stands_for = np.empty(len(items), dtype=np.int64)
    stands_for[order] = order[first][of]
    return _Alike(content[rows], stands_for[rows])


def _mixed(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    """A 63-bit number (N,) of each two: the finalizer of splitmix64, over one and then the other."""
    word = np.zeros(len(one), dtype=np.uint64)
    for part in (one, other):
        word = word + part.view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        word ^= word >> np.uint64(31)
    return (word >> np.uint64(1)).view(np.int64)


def _joined(
    images: Side, texts: Side, image_row: NDArray[np.int64], text_row: NDArray[np.int64], place: MatrixPlace
) -> tuple[NDArray[np.float32], float, Keep]:
    """Both embeddings of each of D items as one vector of unit length (D, dim + dim), the least inner product that a
    pair above both thresholds has, and which pairs are above both.

    A pair that is equal in one view passes the cut down to twice the distance that the other view's threshold allows.
    """
    room = [max(1 - side.threshold, LEAST_ROOM) for side in (images, texts)]
    weights = (room[1] / sum(room), room[0] / sum(room))
    across = images.items.vectors.shape[1]
    columns = (slice(0, across), slice(across, across + texts.items.vectors.shape[1]))
    joined = place.empty(f"{images.spec.view}-{texts.spec.view}", len(image_row), columns[1].stop)
    for at in range(0, len(joined), SLICE):
        for side, rows, part, weight in zip((images, texts), (image_row, text_row), columns, weights, strict=True):
            joined[at : at + SLICE, part] = np.sqrt(weight) * side.items.vectors[rows[at : at + SLICE]]

    def keep(left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.bool_]:
        near = np.ones(len(left), dtype=np.bool_)
        for at in range(0, len(left), SLICE):
            one, other = joined[left[at : at + SLICE]], joined[right[at : at + SLICE]]
            for side, part, weight in zip((images, texts), columns, weights, strict=True):
                cosine = np.einsum("ij,ij->i", one[:, part], other[:, part]) / weight
                near[at : at + SLICE] &= cosine >= side.threshold - ROUNDING
        return near

    cut = weights[0] * images.threshold + weights[1] * texts.threshold - ROUNDING
    return joined, cut, keep
