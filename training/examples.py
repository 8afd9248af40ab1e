"""What the model learns from: cells of equal inputs with their clicks and impressions, drawn in batches.

Impressions that are alike in all that the model sees are one example: fewer forward passes, and only several
impressions of one thing tell how far its CTR is known. Inputs of a part (pictures, texts, embeddings) lie in a table,
each distinct one once; an example holds row numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.impressions import Impressions
from training.model import Batch, Seen
from training.vocabulary import Vocabulary, indices

OOV_ROW = 0


class Table(Protocol):
    """The distinct inputs of a part; row 0 is OOV, and never taken."""

    def take(self, rows: NDArray[np.int64]) -> tuple[Tensor, ...]:
        """The inputs at `rows`, each (U, …)."""
        ...


@dataclass(frozen=True, slots=True)
class Rows:
    """A table in arrays, which may be memory-mapped.

    Attributes:
        arrays: each (1 + U, …): embeddings, or pictures.
    """

    arrays: tuple[NDArray[np.generic], ...]

    def take(self, rows: NDArray[np.int64]) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(np.ascontiguousarray(array[rows])) for array in self.arrays)


@dataclass(frozen=True, slots=True)
class Texts:
    """Token indices, padded, and how many there are of each.

    Attributes:
        index_UT: (1 + U, T) int64.
        count_U: (1 + U,) int64.
    """

    index_UT: NDArray[np.int64]
    count_U: NDArray[np.int64]

    def take(self, rows: NDArray[np.int64]) -> tuple[Tensor, ...]:
        count = self.count_U[rows]
        longest = int(count.max()) if len(count) else 0
        return torch.from_numpy(np.ascontiguousarray(self.index_UT[rows, :longest])), torch.from_numpy(count)


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """A part of N impressions: its table, and the row of each impression, 0 where it has no embedding."""

    table: Table
    row_N: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Examples:
    """N examples.

    Attributes:
        parts: of `image` and `text`, those that the model has.
        item_NF, context_NG: indices of categories.
        clicks_N, impressions_N: float32 counts.
        true_ctr_N: of a synthetic log.
    """

    parts: Mapping[str, Inputs]
    item_NF: NDArray[np.int64]
    context_NG: NDArray[np.int64]
    clicks_N: NDArray[np.float32]
    impressions_N: NDArray[np.float32]
    true_ctr_N: NDArray[np.float64] | None

    def __len__(self) -> int:
        return len(self.clicks_N)

    @property
    def base_ctr(self) -> float:
        """Clicks over impressions, with one impression of either kind added: never 0 or 1."""
        return float((self.clicks_N.sum() + 1) / (self.impressions_N.sum() + 2))

    @property
    def oov_N(self) -> NDArray[np.bool_]:
        """Whether any part is OOV."""
        oov_N = np.zeros(len(self), dtype=np.bool_)
        for part in self.parts.values():
            oov_N |= part.row_N == OOV_ROW
        return oov_N

    @property
    def context_N(self) -> NDArray[np.int64]:
        """A number for each distinct context."""
        if not self.context_NG.shape[1]:
            return np.zeros(len(self), dtype=np.int64)
        return np.unique(self.context_NG, axis=0, return_inverse=True)[1].reshape(-1)

    def batch(self, at: NDArray[np.int64]) -> Batch:
        """The examples at positions `at`, (B,); each distinct input once."""
        return Batch(
            {name: _seen(part.table, part.row_N[at]) for name, part in self.parts.items()},
            torch.from_numpy(self.item_NF[at]),
            torch.from_numpy(self.context_NG[at]),
        )

    def counts(self, at: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Clicks and impressions of the examples at `at`, (B,) each."""
        return torch.from_numpy(self.clicks_N[at]), torch.from_numpy(self.impressions_N[at])

    def at(self, places: NDArray[np.int64]) -> "Examples":
        """Those at `places`."""
        return replace(
            self,
            parts={name: replace(part, row_N=part.row_N[places]) for name, part in self.parts.items()},
            item_NF=self.item_NF[places],
            context_NG=self.context_NG[places],
            clicks_N=self.clicks_N[places],
            impressions_N=self.impressions_N[places],
            true_ctr_N=None if self.true_ctr_N is None else self.true_ctr_N[places],
        )

    def with_oov(self, rate: float, seed: int) -> "Examples":
        """These examples with a share of each part's embeddings missing, drawn anew."""
        draw = np.random.default_rng(seed)
        parts = {
            name: replace(part, row_N=np.where(draw.random(len(self)) < rate, OOV_ROW, part.row_N))
            for name, part in self.parts.items()
        }
        return replace(self, parts=parts)


def _seen(table: Table, row_B: NDArray[np.int64]) -> Seen:
    distinct, place_B = np.unique(row_B, return_inverse=True)
    place_B = place_B.reshape(-1)
    if len(distinct) and distinct[0] == OOV_ROW:
        return Seen(table.take(distinct[1:]), torch.from_numpy(place_B))
    return Seen(table.take(distinct), torch.from_numpy(place_B + 1))


def examples(
    impressions: Impressions,
    parts: Mapping[str, Inputs],
    vocabularies: Mapping[str, Mapping[str, Vocabulary]],
    *,
    aggregate: bool = True,
) -> Examples:
    """Examples of impressions.

    Args:
        impressions: M of them, which say whether they were clicked.
        parts: of the same M impressions.
        vocabularies: of the columns of `item` and of `context`.
        aggregate: whether equal ones become one. Two items are never one, even where the model cannot tell them apart:
            their CTRs differ, and that they do is what the density is to learn.

    Raises:
        ImpressionsError: a column is missing.
    """
    item, context = (
        indices(known, {name: impressions.values(name) for name in known}, tuple(known), len(impressions))
        for known in (vocabularies["item"], vocabularies["context"])
    )
    clicked = impressions.clicked.astype(np.float64)
    alone = np.arange(len(impressions), dtype=np.int64)
    cell = _cells(impressions, parts, item, context) if aggregate else alone
    first = np.unique(cell, return_index=True)[1]
    true_ctr = impressions.true_ctr
    counts = np.bincount(cell, minlength=len(first))
    return Examples(
        parts={name: Inputs(table=part.table, row_N=part.row_N[first]) for name, part in parts.items()},
        item_NF=item[first],
        context_NG=context[first],
        clicks_N=np.bincount(cell, clicked, len(first)).astype(np.float32),
        impressions_N=counts.astype(np.float32),
        true_ctr_N=None if true_ctr is None else np.bincount(cell, true_ctr, len(first)) / counts,
    )


def _cells(
    impressions: Impressions, parts: Mapping[str, Inputs], item: NDArray[np.int64], context: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The number of each impression's cell, (M,), from 0 in the order in which they first come."""
    columns = dict(enumerate([*(part.row_N for part in parts.values()), *item.T, *context.T]))
    frame = pd.DataFrame(columns, index=range(len(impressions)))
    if "item_id" in impressions.table.column_names:
        frame["item_id"] = pd.factorize(impressions.table["item_id"].to_pandas())[0]
    cells = frame.groupby(list(frame.columns), sort=False).ngroup()
    return np.asarray(cells, dtype=np.int64)
