"""Pairs of vectors that are nearer than a threshold: exactly among few, by an inverted index of faiss among many.

The approximate search tells its recall. Before it searches, it plants neighbours: vectors at exactly the threshold from
items of the index, in random directions, and looks into as many lists as it takes to find them. Afterwards it compares
what it found for a sample of items with an exact search of all.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

EXACT_ITEMS = 50_000  # up to which all are compared with all: 10 s of a core at 512 floats
QUERIES = 2048  # searched at a time
SAMPLE = 512  # items whose pairs are searched exactly, too
PLANTED = 2048
PLANTED_RECALL = 0.98  # above the 0.95 that is promised: real neighbours do not lie in random directions
ENOUGH = 30  # pairs in the sample, below which its recall says little
MARGIN = 0.005  # of similarity, which vectors of 8 bits a float may lose; what is found is compared again in float32
MOST_PAIRS = 50_000_000  # x 20 bytes
POINTS_A_LIST = 40  # that faiss trains with: it warns below 39

Keep = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.bool_]]  # rows (P,), (P,) → (P,); symmetric


class TooManyPairs(Exception):
    """The threshold lies so low that the answer would not fit into memory; the message says what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NearPairs:
    """M pairs of rows, each once.

    Attributes:
        left, right: (M,) int64 rows.
        similarity: (M,) float32, the inner product.
        exact: whether nothing was left out.
        recall: share of the pairs that was found; 1 where exact.
        recall_from: how many pairs, of a sample or planted, that was measured with.
        planted: whether they were planted ones: the sample held too few.
        probes, lists: into how many of the index's lists each vector looked; 0 where exact.
        compared: how many pairs lay within reach, found near or not.
    """

    left: NDArray[np.int64]
    right: NDArray[np.int64]
    similarity: NDArray[np.float32]
    exact: bool
    recall: float = 1.0
    recall_from: int = 0
    planted: bool = False
    probes: int = 0
    lists: int = 0
    compared: int = 0


def near_pairs(
    vectors: NDArray[np.float32],
    threshold: float,
    *,
    new: NDArray[np.bool_] | None = None,
    exact_items: int = EXACT_ITEMS,
    advance: Callable[[int], None] = lambda done: None,
    keep: Keep | None = None,
) -> NearPairs:
    """The pairs of rows with a similarity of at least `threshold`.

    Args:
        vectors: (N, dim) of unit length; a memory map is read in slices.
        new: (N,) which rows to find pairs for, against all; all of them otherwise.
        exact_items: up to how many rows all are compared.
        advance: told how many rows were searched.
        keep: which of these pairs count; all of them otherwise. Recall is that of the pairs that do.

    Raises:
        TooManyPairs: more than 50 million, by a sample.
    """
    count, dim = vectors.shape
    asked = np.arange(count) if new is None else np.flatnonzero(new)
    old = np.zeros(count, dtype=np.bool_) if new is None else ~new
    none = np.empty(0, dtype=np.int64)
    if count < 2 or not len(asked):
        return NearPairs(left=none, right=none, similarity=np.empty(0, dtype=np.float32), exact=True)
    draw = np.random.default_rng(0)
    sample = np.sort(draw.choice(asked, min(SAMPLE, len(asked)), replace=False))
    truth = _exactly(vectors, sample, threshold, keep)
    expected = len(truth) * len(asked) / len(sample)
    if expected > MOST_PAIRS:
        raise TooManyPairs(
            f"about {expected:,.0f} pairs are nearer than {threshold}: raise the threshold, or calibrate it"
        )
    if count <= exact_items:
        flat = faiss.IndexFlatIP(dim)
        flat.add(np.ascontiguousarray(vectors))
        left, right, similarity = _searched(flat, vectors, asked, old, threshold, 0.0, None, advance, keep)
        compared = len(asked) * (count - 1) - len(asked) * (len(asked) - 1) // 2
        return NearPairs(left=left, right=right, similarity=similarity, exact=True, compared=compared)
    lists = max(1, min(int(2 * np.sqrt(count)), count // POINTS_A_LIST))
    index = _inverted(vectors, lists, draw)
    probes, planted_recall = _probes(index, vectors, threshold, lists, draw)
    parameters = faiss.SearchParametersIVF(nprobe=probes)  # type: ignore[call-arg]
    left, right, similarity = _searched(index, vectors, asked, old, threshold, MARGIN, parameters, advance, keep)
    found = np.unique(np.concatenate([left * count + right, right * count + left]))
    enough = len(truth) >= ENOUGH
    return NearPairs(
        left=left,
        right=right,
        similarity=similarity,
        exact=False,
        recall=float(np.isin(truth[:, 0] * count + truth[:, 1], found).mean()) if enough else planted_recall,
        recall_from=len(truth) if enough else min(PLANTED, count),
        planted=not enough,
        probes=probes,
        lists=lists,
        compared=int(len(asked) * count * probes / lists),
    )


def _exactly(
    vectors: NDArray[np.float32], rows: NDArray[np.int64], threshold: float, keep: Keep | None
) -> NDArray[np.int64]:
    """The pairs (row, other row) of some rows with all, (P, 2)."""
    queries = vectors[rows]
    found = []
    for start in range(0, len(vectors), 16_384):
        near = queries @ vectors[start : start + 16_384].T >= threshold  # (rows, slice)
        at, other = np.nonzero(near)
        pairs = np.stack([rows[at], other + start], axis=1)
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        found.append(pairs if keep is None else pairs[keep(pairs[:, 0], pairs[:, 1])])
    return np.concatenate(found).astype(np.int64)


def _inverted(vectors: NDArray[np.float32], lists: int, draw: np.random.Generator) -> Any:
    """An index of all rows: a byte a float, in lists by their nearest of so many centres."""
    count, dim = vectors.shape
    index = faiss.index_factory(dim, f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors[np.sort(draw.choice(count, min(count, POINTS_A_LIST * lists), replace=False))])
    for start in range(0, count, 65_536):
        index.add(np.ascontiguousarray(vectors[start : start + 65_536]))
    return index


def _probes(
    index: Any, vectors: NDArray[np.float32], threshold: float, lists: int, draw: np.random.Generator
) -> tuple[int, float]:
    """How many lists to look into so that planted neighbours are found, and which share of them then is."""
    at = np.sort(draw.choice(len(vectors), min(PLANTED, len(vectors)), replace=False))
    items = vectors[at]
    aside = draw.standard_normal(items.shape, dtype=np.float32)
    aside -= (aside * items).sum(axis=1, keepdims=True) * items
    aside /= np.linalg.norm(aside, axis=1, keepdims=True)
    planted = threshold * items + np.sqrt(max(0.0, 1 - threshold**2)) * aside  # (P, dim), inner product = threshold
    own = index.quantizer.search(items, 1)[1]  # (P, 1)
    probes = 1
    while True:
        _, looked = index.quantizer.search(planted.astype(np.float32), probes)  # (P, probes)
        recall = float((looked == own).any(axis=1).mean())
        if recall >= PLANTED_RECALL or probes >= lists:
            return probes, recall
        probes = min(2 * probes, lists)


def _searched(
    index: Any,
    vectors: NDArray[np.float32],
    asked: NDArray[np.int64],
    old: NDArray[np.bool_],
    threshold: float,
    margin: float,
    parameters: Any,
    advance: Callable[[int], None],
    keep: Keep | None,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    lefts, rights, similarities = [], [], []
    for start in range(0, len(asked), QUERIES):
        rows = asked[start : start + QUERIES]
        queries = np.ascontiguousarray(vectors[rows])
        limits, _, labels = index.range_search(queries, threshold - margin - 1e-5, params=parameters)
        place = np.repeat(np.arange(len(rows)), limits[1:].astype(np.int64) - limits[:-1].astype(np.int64))
        left, right = rows[place], labels.astype(np.int64)
        once = (left < right) | ((left != right) & old[right])  # a pair of two that are asked for is found twice
        place, left, right = place[once], left[once], right[once]
        similarity = np.einsum("ij,ij->i", queries[place], vectors[right])
        near = similarity >= threshold
        if keep is not None:
            near[near] = keep(left[near], right[near])
        lefts.append(left[near])
        rights.append(right[near])
        similarities.append(similarity[near])
        advance(len(rows))
    return np.concatenate(lefts), np.concatenate(rights), np.concatenate(similarities).astype(np.float32)
