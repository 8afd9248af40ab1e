"""Each distinct vector of a history read once, into one matrix: in memory, or in a file where it is large."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from feast import FeatureStore, FeatureView
from numpy.typing import NDArray

from feature_repo.offline.history import History as Parts
from feature_repo.offline.history import read_whole
from feature_repo.offline.retrieval import open_history
from feature_repo.views import EMBEDDING, EMBEDDING_ID


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixPlace:
    """Where matrices go.

    Attributes:
        limit: bytes; a larger matrix lies in a file that is mapped into memory.
        folder: of these files, `<view>.npy`; None: files without a name, gone with the process.
    """

    limit: int = 2 << 30
    folder: Path | None = None

    def empty(self, view: str, rows: int, dim: int) -> NDArray[np.float32]:
        """A matrix (rows, dim) of zeros."""
        if rows * dim * 4 <= self.limit:
            return np.zeros((rows, dim), dtype=np.float32)
        if self.folder is None:
            with tempfile.TemporaryFile(prefix=f"{view}-") as file:  # the mapping keeps it
                return np.memmap(file, dtype=np.float32, mode="w+", shape=(rows, dim))
        self.folder.mkdir(parents=True, exist_ok=True)
        return np.lib.format.open_memmap(self.folder / f"{view}.npy", "w+", np.dtype(np.float32), (rows, dim))


class UnknownIds(LookupError):
    """Impressions name embeddings that history does not have; the message says how many."""


def gather(
    store: FeatureStore, view: FeatureView, ids: NDArray[np.int64], first: NDArray[np.float32], place: MatrixPlace
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The vectors that have the ids `ids` (V,), distinct and ascending.

    Args:
        first: (F, dim), which become the first rows.

    Returns:
        The matrix, (F + V, dim) float32, in the order of history; and the row of each of `ids`, (V,), from F on.

    Raises:
        UnknownIds: history lacks some of them.
        ValueError: a vector of the history has another length than the view's.
        FileNotFoundError: compactions removed what was being read, again and again.
    """
    return read_whole(lambda: _gathered(store, view, ids, first, place))


def _gathered(
    store: FeatureStore, view: FeatureView, ids: NDArray[np.int64], first: NDArray[np.float32], place: MatrixPlace
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    history, _ = open_history(store.config, view, None, None)
    at = _positions(history, view.name, ids)  # (V,)
    order = np.argsort(at)
    rows = np.empty(len(ids), dtype=np.int64)
    before, dim = first.shape
    rows[order] = np.arange(before, before + len(ids))
    vectors = place.empty(view.name, before + len(ids), dim)
    vectors[:before] = first
    history.vectors(at[order], EMBEDDING, vectors[before:])
    return vectors, rows


def _positions(history: Parts, view: str, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """The position in history of one row for each id, (V,); of the last, where a replay wrote several."""
    column: pa.ChunkedArray = history.index([EMBEDDING_ID], [])[EMBEDDING_ID]
    there = column.fill_null(0).to_numpy()  # (rows of history,)
    found = np.full(len(ids), -1, dtype=np.int64)
    if len(ids) and len(there):
        place = np.minimum(np.searchsorted(ids, there), len(ids) - 1)
        known = np.flatnonzero(ids[place] == there)
        found[place[known]] = known
    missing = ids[found < 0]
    if len(missing):
        raise UnknownIds(
            f"{len(missing)} of {len(ids)} embedding ids are not in the history of {view!r}, {missing[0]} for one: "
            "were they logged by another project, or is its history elsewhere?"
        )
    return found
