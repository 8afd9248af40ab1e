"""What a trained model is worth on impressions that it has not seen, and against baselines.

Of clicks: log-loss and AUC, that within each context, and calibration. Of the density: its negative log-likelihood, and
whether intervals hold what they promise. Each for all examples, and for those with and without an OOV embedding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.examples import Examples
from training.metrics import (
    Calibration,
    auc,
    calibration,
    few,
    grouped_auc,
    log_loss,
    ranks,
    true_ranks,
    within,
)
from training.mixture import Mixture
from training.predict import nll, predict
from training.saved import Trained

INTERVAL = 0.9  # whose coverage is reported


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """Metrics of a slice of examples.

    Attributes:
        of_clicks: of the expected CTR; counted in impressions.
        of_density: of the mixture, counted in examples; empty for a baseline that has none.
        calibration: bins of it.
        rank_N: of the clicks in what was predicted of them; of at most 5,000 examples.
    """

    of_clicks: dict[str, float | None]
    of_density: dict[str, float]
    calibration: Calibration
    rank_N: NDArray[np.float64]

    def to_json(self) -> dict[str, Any]:
        return {"clicks": self.of_clicks, "density": self.of_density}


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Slices by name (`all`, `embedded`, `oov`), and what others make of the same impressions."""

    slices: dict[str, Slice]
    baselines: dict[str, dict[str, float | None]]
    curve: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        return {
            "slices": {name: each.to_json() for name, each in self.slices.items()},
            "baselines": self.baselines,
            "learning_curve": self.curve,
        }


def evaluate(
    trained: Trained,
    examples: Examples,
    baselines: Mapping[str, dict[str, float | None]] | None = None,
    curve: list[dict[str, Any]] | None = None,
) -> Report:
    """The report on a model.

    Args:
        trained: the model.
        examples: that it was not trained on.
        baselines: name → `of_clicks` of it. The best possible is added where the true CTR is known.
        curve: the model's learning curve.
    """
    others = dict(baselines or {})
    if examples.true_ctr_N is not None:
        others["the true CTR (the limit)"] = of_clicks(examples.true_ctr_N, examples)
    mixture = predict(trained.model, examples)
    kinds = {"all": np.ones(len(examples), np.bool_), "embedded": ~examples.oov_N, "oov": examples.oov_N}
    slices = {name: _slice(mixture, examples, np.flatnonzero(kind)) for name, kind in kinds.items() if kind.any()}
    return Report(slices=slices, baselines=others, curve=curve or [])


def of_clicks(ctr_N: NDArray[np.floating], examples: Examples) -> dict[str, float | None]:
    """How well CTRs of all examples tell their clicks."""
    clicks, impressions = examples.clicks_N, examples.impressions_N
    return {
        "impressions": float(impressions.sum()),
        "log_loss": log_loss(ctr_N, clicks, impressions),
        "auc": auc(ctr_N, clicks, impressions),
        "grouped_auc": grouped_auc(ctr_N, clicks, impressions, examples.context_N),
        "ece": calibration(ctr_N, clicks, impressions).ece,
    }


def _slice(mixture: Mixture, examples: Examples, at: NDArray[np.int64]) -> Slice:
    mixture, examples = mixture.at(at), examples.at(at)
    mean_N, deviation_N = (moment.numpy() for moment in mixture.moments())
    some = few(len(examples))
    measured = mixture.at(some)
    rank_N = ranks(measured, examples.clicks_N[some], examples.impressions_N[some])
    low_N, high_N = measured.quantiles((1 - INTERVAL) / 2, (1 + INTERVAL) / 2).numpy()
    density = {
        "examples": float(len(examples)),
        "nll": nll(mixture, examples),
        f"coverage_{INTERVAL:.0%}": within(rank_N, INTERVAL),
        "mean_deviation": float(deviation_N.mean()),
        f"mean_width_{INTERVAL:.0%}": float((high_N - low_N).mean()),
    }
    if examples.true_ctr_N is not None:
        truth = true_ranks(measured, examples.true_ctr_N[some])
        density[f"coverage_of_true_ctr_{INTERVAL:.0%}"] = within(truth, INTERVAL)
    return Slice(
        of_clicks=of_clicks(mean_N, examples),
        of_density=density,
        calibration=calibration(mean_N, examples.clicks_N, examples.impressions_N),
        rank_N=rank_N,
    )
