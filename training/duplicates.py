"""Items of one view that are the same, or nearly: by content first, then by the nearness of their embeddings.

Embeddings of two encoders, or of two versions of one, say nothing about each other: everything here is of one view and
one fingerprint, and refuses what was made with another.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from training.archived_items import ArchivedItems
from training.near_pairs import EXACT_ITEMS, NearPairs, near_pairs

SLICE = 16_384  # rows at a time
CENTRED_FROM = 100  # items, from which their mean says what all have in common

FIRST, SAME_CONTENT, SAME_EMBEDDING, NEAR = "first", "same content", "same embedding", "near"


class DuplicatesError(Exception):
    """Duplicates cannot be told; the message says why, and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Searched:
    """What an earlier search knows: only what is not among it is searched again.

    Attributes:
        ids: (R,) ascending embedding ids of what was searched.
        left, right: (M,) ids of pairs that are near.
        similarity: (M,) float32.
    """

    ids: NDArray[np.int64]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    similarity: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Duplicates:
    """Groups of items, the largest first.

    Attributes:
        table: a row for each item that has a duplicate: `group`, `size`, `key`, `kind`, `similarity` (cosine to the
            group's first item, which is its oldest), `embedding_id`, `event_timestamp`.
        searched: for the next search.
        found: the pairs that this search found, and how.
        items: how many there are.
        new: how many of them were searched.
    """

    table: pa.Table
    searched: Searched
    found: NearPairs
    items: int
    new: int

    @property
    def groups(self) -> int:
        return int(pc.count_distinct(self.table["group"]).as_py())


def centre_of(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean (dim,) of all: what every embedding of an encoder has in common hides in what they differ.

    Zeros where there are fewer than 100: the mean of few is mostly themselves.
    """
    if len(vectors) < CENTRED_FROM:
        return np.zeros(vectors.shape[1], dtype=np.float32)
    total = np.zeros(vectors.shape[1], dtype=np.float64)
    for start in range(0, len(vectors), SLICE):
        total += vectors[start : start + SLICE].sum(axis=0, dtype=np.float64)
    return (total / len(vectors)).astype(np.float32)


def to_unit_length(vectors: NDArray[np.float32], centre: NDArray[np.float32]) -> None:
    """Takes `centre` (dim,) off each of `vectors` (N, dim) and gives it the length 1, in place; zeros stay zeros."""
    for start in range(0, len(vectors), SLICE):
        part = vectors[start : start + SLICE] - centre
        length = np.linalg.norm(part, axis=1, keepdims=True)
        vectors[start : start + SLICE] = part / np.where(length > 0, length, 1)


def find_duplicates(
    items: ArchivedItems,
    threshold: float,
    *,
    texts: bool,
    before: Searched | None = None,
    exact_items: int = EXACT_ITEMS,
    advance: Callable[[int], None] = lambda done: None,
) -> Duplicates:
    """Groups what is the same, and what is nearer than `threshold`, over any number of steps.

    Args:
        items: their vectors are of unit length.
        texts: whether keys are texts: they are the same where case, spaces and compatible characters alone differ.
        before: an earlier search of this view with this threshold.
        exact_items: up to how many items all are compared.
        advance: told how many were searched.

    Raises:
        TooManyPairs: the threshold is too low.
    """
    same_content = firsts(content_codes(items, texts))  # (N,) row of the first item with that content
    same_vector = first_equal(items.vectors)
    everyone = np.arange(len(items))
    same = components(len(items), [(everyone, same_content), (everyone, same_vector)])  # (N,)

    # Of each set of equal ones a single item is searched: one that was searched before, where there is any.
    known = np.isin(items.ids, before.ids) if before is not None else np.zeros(len(items), dtype=np.bool_)
    order = np.lexsort((items.ids, ~known, same))
    searched = np.sort(order[np.unique(same[order], return_index=True)[1]])  # (R,) rows
    found = near_pairs(
        items.vectors if len(searched) == len(items) else items.vectors[searched],
        threshold,
        new=None if before is None else ~known[searched],
        exact_items=exact_items,
        advance=advance,
    )
    left, right, similarity = searched[found.left], searched[found.right], found.similarity
    if before is not None:
        kept_left, kept_right, kept = still_near(before, items.ids, searched)
        left, right = np.concatenate([kept_left, left]), np.concatenate([kept_right, right])
        similarity = np.concatenate([kept, similarity])

    group = components(len(items), [(everyone, same_content), (everyone, same_vector), (left, right)])
    ids = np.sort(items.ids[searched])
    return Duplicates(
        table=_table(items, group, same_content, same_vector),
        searched=Searched(ids=ids, left=items.ids[left], right=items.ids[right], similarity=similarity),
        found=found,
        items=len(items),
        new=int((~known[searched]).sum()),
    )


def content_codes(items: ArchivedItems, texts: bool) -> NDArray[np.int64]:
    """Numbers (N,), equal where the content is; each its own where it is not known."""
    if texts:
        plain = pc.utf8_lower(pc.utf8_normalize(items.keys, form="NFKC"))
        content = pc.utf8_trim_whitespace(pc.replace_substring_regex(plain, r"\s+", " "))
    else:
        content = pc.if_else(pc.equal(items.content_hash, ""), None, items.content_hash)
    codes: NDArray[np.int64] = pc.fill_null(content.dictionary_encode().indices, -1).to_numpy(zero_copy_only=False)
    return np.where(codes < 0, len(items) + np.arange(len(items)), codes)


def firsts(codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The row (N,) of the first that has the same number."""
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    return first[inverse]


def first_equal(vectors: NDArray[np.float32]) -> NDArray[np.int64]:
    """The row (N,) of the first equal vector: by 64 bits of hash, and then by the vectors themselves."""
    draw = np.random.default_rng(0)
    odd = draw.integers(0, 2**63, vectors.shape[1], dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    hashes = np.empty(len(vectors), dtype=np.uint64)
    for start in range(0, len(vectors), SLICE):
        words = np.ascontiguousarray(vectors[start : start + SLICE] + np.float32(0)).view(np.uint32)  # -0 is 0
        hashes[start : start + SLICE] = (words.astype(np.uint64) * odd).sum(axis=1, dtype=np.uint64)
    first = firsts(hashes.view(np.int64))
    for start in range(0, len(vectors), SLICE):
        rows = np.arange(start, min(start + SLICE, len(vectors)))
        rows = rows[first[rows] != rows]
        differs = rows[(vectors[rows] != vectors[first[rows]]).any(axis=1)]
        first[differs] = differs
    return first


def components(count: int, edges: list[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> NDArray[np.int64]:
    """The number (N,) of each row's connected component."""
    left = np.concatenate([one for one, _ in edges])
    right = np.concatenate([other for _, other in edges])
    graph = coo_array((np.ones(len(left), dtype=np.bool_), (left, right)), shape=(count, count))
    labels: NDArray[np.int64] = connected_components(graph, directed=False)[1].astype(np.int64)
    return labels


def still_near(
    before: Searched, ids: NDArray[np.int64], searched: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """The rows of pairs of before whose items are there with the same embeddings."""
    order = searched[np.argsort(ids[searched])]
    there = ids[order]
    both = np.isin(before.left, there) & np.isin(before.right, there)
    rows = [order[np.searchsorted(there, side[both])] for side in (before.left, before.right)]
    return rows[0], rows[1], before.similarity[both]


def in_groups(
    group: NDArray[np.int64], event: NDArray[np.int64], ids: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Rows that share their group with others: the largest group first, in a group the oldest item.

    Args:
        group, event, ids: (N,), each item's number of its group, its time, and what decides between equal times.

    Returns:
        (R,) each: the rows, the numbers of their groups from 1 on, the row of its group's first, its group's size.
    """
    sizes = np.bincount(group, minlength=1)
    rows = np.flatnonzero(sizes[group] > 1)
    rows = rows[np.lexsort((ids[rows], event[rows], group[rows], -sizes[group[rows]]))]
    starts = np.concatenate([[True], group[rows][1:] != group[rows][:-1]]) if len(rows) else np.empty(0, dtype=np.bool_)
    number = np.cumsum(starts)
    first = rows[starts][number - 1] if len(rows) else rows
    return rows, number, first, sizes[group[rows]]


def similarity_of(
    vectors: NDArray[np.float32], left: NDArray[np.int64], right: NDArray[np.int64]
) -> NDArray[np.float32]:
    """The inner products (R,) of rows of `vectors`, a slice at a time: it may be a file."""
    found = np.empty(len(left), dtype=np.float32)
    for at in range(0, len(left), SLICE):
        one, other = vectors[left[at : at + SLICE]], vectors[right[at : at + SLICE]]
        found[at : at + SLICE] = np.einsum("ij,ij->i", one, other)
    return found


def _table(
    items: ArchivedItems,
    group: NDArray[np.int64],
    same_content: NDArray[np.int64],
    same_vector: NDArray[np.int64],
) -> pa.Table:
    rows, number, first, size = in_groups(group, items.event, items.ids)
    kind = np.select(
        [rows == first, same_content[rows] == same_content[first], same_vector[rows] == same_vector[first]],
        [FIRST, SAME_CONTENT, SAME_EMBEDDING],
        NEAR,
    )
    return pa.table(
        {
            "group": pa.array(number, pa.int64()),
            "size": pa.array(size, pa.int64()),
            "key": items.keys.take(pa.array(rows)),
            "kind": pa.array(kind.tolist(), pa.string()),
            "similarity": similarity_of(items.vectors, rows, first),
            "embedding_id": items.ids[rows],
            "event_timestamp": pa.array(items.event[rows]).cast(pa.timestamp("us", tz="UTC")),
        }
    )
