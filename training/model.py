"""The click-through-rate model: what an item is, where it is shown, how the two meet, and the density of its CTR.

    image ─ learned network or archived view ─┐
    text ── learned network or archived view ─┼─ item module ──┐
    item categories ──────────────────────────┘                ├─ fusion ─ mixture head
    context categories ───────────────── context module ───────┘

The modules are those of Zeldes et al. (arXiv 1711.02487). A part that is learned and one that is archived differ in one
thing: whether a network of ours or EmbArk makes the embedding. So a trained network can become an encoder, and the rest
runs on what is looked up.

Shapes: B examples, U distinct inputs of a part in a batch, D values of an embedding, W hidden width, F and G
categories.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.config import NONE, Model
from training.mixture import Mixture, MixtureHead

PARTS = ("image", "text")
LEAST_DEVIATION = 1e-6  # of a value of an embedding; one that never changes tells nothing


@dataclass(frozen=True, slots=True)
class Seen:
    """What a batch has of one part.

    Attributes:
        inputs: of U distinct inputs: what the network takes, each (U, …); or the embeddings, one (U, D).
        row_B: which of them each example has: 0 is OOV, 1 + u the one at u.
    """

    inputs: tuple[Tensor, ...]
    row_B: Tensor

    def to(self, device: torch.device) -> "Seen":
        return Seen(tuple(each.to(device) for each in self.inputs), self.row_B.to(device))


@dataclass(frozen=True, slots=True)
class Batch:
    """B examples as the model takes them.

    Attributes:
        parts: `image` and `text`, those that the model has.
        item_BF, context_BG: indices of categories; 0 is one that was not seen in training.
    """

    parts: Mapping[str, Seen]
    item_BF: Tensor
    context_BG: Tensor

    def to(self, device: torch.device) -> "Batch":
        parts = {name: seen.to(device) for name, seen in self.parts.items()}
        return Batch(parts, self.item_BF.to(device), self.context_BG.to(device))


class Part(nn.Module):
    """An image or a text: embedded, OOV where it has no embedding, brought to the width of the item module.

    Args:
        dim: D.
        width: W.
        oov_dropout: share of examples that are taken for OOV while training.
        network: inputs → (U, D); None where the embeddings are looked up.
    """

    def __init__(self, dim: int, width: int, oov_dropout: float = 0.0, network: nn.Module | None = None) -> None:
        super().__init__()
        self.network = network
        self._oov_dropout = oov_dropout
        self.register_buffer("centre_D", torch.zeros(dim))
        self.register_buffer("scale_D", torch.ones(dim))
        self.centre_D: Tensor
        self.scale_D: Tensor
        # learned in units of the embeddings' own spread, so that one learning rate suits all views; 0 is their mean
        self.oov_D = nn.Parameter(torch.zeros(dim))
        self.project = nn.Linear(dim, width)

    def standardise(self, embedding_UD: Tensor) -> None:
        """Has each value of embeddings scaled by its mean and deviation in `embedding_UD`, from the training data."""
        deviation_D, centre_D = torch.std_mean(embedding_UD, dim=0, correction=0)
        self.centre_D.copy_(centre_D)
        self.scale_D.copy_(torch.where(deviation_D > LEAST_DEVIATION, deviation_D, torch.ones_like(deviation_D)))

    @property
    def oov_embedding(self) -> Tensor:
        """The learned OOV embedding in the units of the view, (D,)."""
        return (self.centre_D + self.scale_D * self.oov_D).detach()

    def embed(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """(U, D)"""
        if self.network is None:
            return inputs[0]
        if len(inputs[0]) == 0:  # an LSTM takes no empty batch
            return self.oov_D.new_zeros((0, len(self.oov_D)))
        embedding_UD: Tensor = self.network(*inputs)
        return embedding_UD

    def forward(self, seen: Seen) -> Tensor:
        """(B, W)"""
        standard_UD = (self.embed(seen.inputs) - self.centre_D) / self.scale_D
        known_VD = torch.cat([self.oov_D[None].to(standard_UD.dtype), standard_UD])  # V = 1 + U: the OOV one first
        row_B = seen.row_B
        if self.training and self._oov_dropout:
            row_B = row_B.masked_fill(torch.rand(len(row_B), device=row_B.device) < self._oov_dropout, 0)
        projected_VW = F.relu(self.project(known_VD))  # before the rows are drawn: each distinct one once
        return projected_VW.index_select(0, row_B)  # unlike [row_B], its gradient is the same in every run


class Categories(nn.Module):
    """Embeddings of F categorical columns, side by side: indices (B, F) → (B, F x E)."""

    def __init__(self, sizes: tuple[int, ...], dim: int) -> None:
        super().__init__()
        self.width = len(sizes) * dim
        tables = [nn.Embedding(size, dim) for size in sizes]
        for table in tables:
            nn.init.normal_(table.weight, std=0.1)
        self._tables = nn.ModuleList(tables)

    def forward(self, index_BF: Tensor) -> Tensor:
        if not self._tables:
            return index_BF.new_zeros((len(index_BF), 0), dtype=torch.float32)
        return torch.cat([table(index_BF[:, f]) for f, table in enumerate(self._tables)], 1)


class CtrModel(nn.Module):
    """Batches → mixtures over logit CTR.

    Args:
        config: the `[model]` section.
        sizes: how many categories each column of `item` and of `context` has, the unseen one included.
        dims: D of each part that the model has.
        networks: of the parts that are learned.
        base_ctr: of the training data.
    """

    def __init__(
        self,
        config: Model,
        sizes: Mapping[str, tuple[int, ...]],
        dims: Mapping[str, int],
        networks: Mapping[str, nn.Module],
        base_ctr: float = 0.5,
    ) -> None:
        super().__init__()
        width, category = config.width, max(1, config.width // 4)
        self.parts = nn.ModuleDict(
            {
                name: Part(dims[name], width, config.oov_dropout, networks.get(name))
                for name in PARTS
                if getattr(config, name) != NONE
            }
        )
        self.item_categories = Categories(sizes["item"], category)
        self.context_categories = Categories(sizes["context"], category)
        self.item = _hidden(len(self.parts) * width + self.item_categories.width, width, config.dropout)
        self.context = _hidden(self.context_categories.width, width, config.dropout)
        self.fusion = nn.Sequential(
            _hidden(3 * width, width, config.dropout),
            *(_hidden(width, width, config.dropout) for _ in range(config.layers - 1)),
        )
        self.head = MixtureHead(width, config.components, base_ctr)

    def part(self, name: str) -> Part:
        part = self.parts[name]
        assert isinstance(part, Part)  # noqa: S101 - for mypy: a ModuleDict holds modules
        return part

    def forward(self, batch: Batch) -> Mixture:
        embedded = [self.parts[name](batch.parts[name]) for name in self.parts]
        item_BW = self.item(torch.cat([*embedded, self.item_categories(batch.item_BF)], 1))
        context_BW = self.context(self.context_categories(batch.context_BG))
        fused_BW = self.fusion(torch.cat([item_BW, context_BW, item_BW * context_BW], 1))
        mixture: Mixture = self.head(fused_BW)
        return mixture


def _hidden(wide: int, width: int, dropout: float) -> nn.Module:
    """(B, wide) → (B, width). Of no input at all: its bias alone."""
    return nn.Sequential(nn.Linear(wide, width), nn.ReLU(), nn.Dropout(dropout)) if wide else _Constant(width)


class _Constant(nn.Module):
    """(B, 0) → (B, width): the same values for every example."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.value_W = nn.Parameter(torch.ones(width))

    def forward(self, nothing_B0: Tensor) -> Tensor:
        return self.value_W.expand(len(nothing_B0), -1)
