"""How good predictions are: of clicks, and of the density of CTR.

N examples, each with a predicted CTR and its clicks of so many impressions; every metric counts impressions, so that it
is the same whether equal ones were brought together or not. Those of the density do not: they are about examples.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import bdtr, ndtri
from sklearn.metrics import roc_auc_score

from training.mixture import Mixture

Floats = NDArray[np.floating]

BINS = 15  # of equal numbers of impressions
SMALLEST = 1e-12  # of a probability in a logarithm
POINTS = 64  # equally probable ones of each component, in place of an integral over it
MOST_EXAMPLES = 5000  # that coverage is measured on: a standard error of 0.4 %


def log_loss(ctr: Floats, clicks: Floats, impressions: Floats) -> float:
    """Negative log-likelihood of an impression, in nats."""
    sure = np.clip(ctr.astype(np.float64), SMALLEST, 1 - SMALLEST)
    return float(-(clicks * np.log(sure) + (impressions - clicks) * np.log1p(-sure)).sum() / impressions.sum())


def auc(ctr: Floats, clicks: Floats, impressions: Floats) -> float | None:
    """Probability that a clicked impression scores above one that was not; None where one kind is missing."""
    missed = impressions - clicks
    if not clicks.sum() or not missed.sum():
        return None
    kind = np.repeat([1, 0], len(ctr))
    return float(roc_auc_score(kind, np.tile(ctr, 2), sample_weight=np.concatenate([clicks, missed])))


def grouped_auc(ctr: Floats, clicks: Floats, impressions: Floats, group: NDArray[np.int64]) -> float | None:
    """The AUC within each group, weighted by impressions; groups without clicks, or with nothing else, say nothing.

    Ranking happens within a context, so this, and not the AUC over all, is what a ranker has of a model.
    """
    order = np.argsort(group, kind="stable")
    weighted = weight = 0.0
    for at in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        found = auc(ctr[at], clicks[at], impressions[at])
        if found is not None:
            weighted += found * float(impressions[at].sum())
            weight += float(impressions[at].sum())
    return weighted / weight if weight else None


@dataclass(frozen=True, slots=True)
class Calibration:
    """Bins of about equal numbers of impressions, by predicted CTR: what was predicted, what was seen, how often."""

    predicted: Floats
    seen: Floats
    impressions: Floats

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean distance of predicted and seen CTR."""
        return float((np.abs(self.predicted - self.seen) * self.impressions).sum() / self.impressions.sum())


def calibration(ctr: Floats, clicks: Floats, impressions: Floats, bins: int = BINS) -> Calibration:
    order = np.argsort(ctr, kind="stable")
    share = (np.cumsum(impressions[order]) - impressions[order] / 2) / impressions.sum()
    bin_of = np.minimum((share * bins).astype(np.int64), bins - 1)
    shown: NDArray[np.float64] = np.bincount(bin_of, impressions[order], bins).astype(np.float64)
    filled = shown > 0
    predicted = np.bincount(bin_of, (ctr * impressions)[order], bins)[filled] / shown[filled]
    seen = np.bincount(bin_of, clicks[order].astype(np.float64), bins)[filled] / shown[filled]
    return Calibration(predicted, seen, shown[filled])


def ranks(mixture: Mixture, clicks: Floats, impressions: Floats, seed: int = 0) -> NDArray[np.float64]:
    """Where the clicks of each example lie in what the model predicts of them, (N,): uniform if it is right.

    The randomised probability integral transform: counts are discrete, so each is given a random place in its step of
    the distribution function. Binomial noise is in it, so no truth has to be known.
    """
    quantile_P = torch.from_numpy(ndtri((np.arange(POINTS) + 0.5) / POINTS))
    ctr_NKP = torch.sigmoid(mixture.mean_BK[:, :, None] + mixture.sigma_BK[:, :, None] * quantile_P).numpy()
    weight_NK = mixture.log_weight_BK.exp().numpy()
    shown, clicked = impressions[:, None, None].astype(np.float64), clicks[:, None, None].astype(np.float64)
    up_to_N = (weight_NK * _binomial_cdf(clicked, shown, ctr_NKP).mean(2)).sum(1)
    below_N = (weight_NK * _binomial_cdf(clicked - 1, shown, ctr_NKP).mean(2)).sum(1)
    place_N = np.random.default_rng(seed).random(len(clicks))
    rank_N: NDArray[np.float64] = below_N + place_N * (up_to_N - below_N)
    return rank_N


def _binomial_cdf(
    count: NDArray[np.float64], shown: NDArray[np.float64], ctr: NDArray[np.float64]
) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.where(count < 0, 0.0, bdtr(np.maximum(count, 0), shown.astype(np.int64), ctr))
    return found


def within(rank: NDArray[np.float64], share: float) -> float:
    """How many of the examples lie in the middle interval that should hold `share` of them."""
    return float((np.abs(rank - 0.5) <= share / 2).mean())


def true_ranks(mixture: Mixture, true_ctr: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where the true CTR of each example lies in the density, (N,); only a synthetic log knows it."""
    below: NDArray[np.float64] = mixture.below(torch.logit(torch.from_numpy(true_ctr), eps=SMALLEST)).numpy()
    return below


def few(count: int, seed: int = 0, most: int = MOST_EXAMPLES) -> NDArray[np.int64]:
    """Positions of at most `most` of `count` examples, drawn anew."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))
