"""Distances between vectors, under the names that Feast has for them: less is nearer."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from feature_repo.online.columns import ValueRefused

LARGEST_COMPONENT = 1e17  # of a vector that Cassandra 5.0 indexes or searches with, found by trying

Distances = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Metric:
    """One way to tell near from far.

    Attributes:
        name: Feast's.
        distances: vectors (N, dim) and a query (dim,) → their distances (N,); NaN where a vector has none.
        similarity: Cassandra's name of it, in an index; None where no index knows it.
    """

    name: str
    distances: Distances
    similarity: str | None = None

    def check(self, vector: NDArray[np.float32]) -> None:
        """Raises ValueRefused for a vector that an index of this metric holds no place for.

        Cassandra would fail the write or the query without a word about why, and after it wrote to its commit log.
        """
        if not np.all(np.abs(vector) <= LARGEST_COMPONENT):  # nor NaN
            raise ValueRefused(f"not finite, or has a component beyond ±{LARGEST_COMPONENT:g}")
        if self.similarity == "cosine" and not vector.any():
            raise ValueRefused("all zeros, which has no cosine")


def _cosine(vectors: NDArray[np.float64], query: NDArray[np.float64]) -> NDArray[np.float64]:
    similarity = (vectors @ query) / (np.linalg.norm(vectors, axis=1) * np.linalg.norm(query))
    return np.asarray(1.0 - similarity)


COSINE = Metric("cosine", _cosine, "cosine")
L2 = Metric("L2", lambda vectors, query: np.asarray(np.linalg.norm(vectors - query, axis=1)), "euclidean")
L1 = Metric("L1", lambda vectors, query: np.abs(vectors - query).sum(axis=1))
INNER_PRODUCT = Metric("inner_product", lambda vectors, query: -(vectors @ query), "dot_product")
DEFAULT = COSINE  # where neither the field nor the caller names one

_BY_NAME = {
    "cosine": COSINE,
    "l2": L2,
    "euclidean": L2,
    "l1": L1,
    "inner_product": INNER_PRODUCT,
    "dot_product": INNER_PRODUCT,
    "dot": INNER_PRODUCT,
    "ip": INNER_PRODUCT,
}


def metric(name: str | None) -> Metric:
    """The metric of that name, in upper or lower case; DEFAULT where there is no name.

    Raises:
        ValueError: there is no such metric.
    """
    if not name:
        return DEFAULT
    found = _BY_NAME.get(name.lower())
    if found is None:
        raise ValueError(f"distance metric {name!r}: allowed are {', '.join(_BY_NAME)}, in any case")
    return found


def distances(of: Metric, vectors: NDArray[np.float64], query: NDArray[np.float64]) -> NDArray[np.float64]:
    """`of.distances`, NaN and infinity without a warning: vectors that no index saw may hold anything."""
    with np.errstate(all="ignore"):
        return of.distances(vectors, query)
