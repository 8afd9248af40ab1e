"""Metrics, on data whose answer is known."""

import math

import numpy as np
import pytest
import torch

from training.metrics import auc, calibration, grouped_auc, log_loss, ranks, true_ranks, within
from training.mixture import Mixture

CTR = np.array([0.1, 0.2, 0.4])
CLICKS = np.array([1.0, 0.0, 2.0])
SHOWN = np.array([2.0, 1.0, 2.0])


def test_click_metrics_are_the_same_of_cells_and_of_single_impressions() -> None:
    cell = np.array([0, 0, 1, 2, 2])
    clicked, one = np.array([1.0, 0.0, 0.0, 1.0, 1.0]), np.ones(5)
    assert log_loss(CTR, CLICKS, SHOWN) == pytest.approx(log_loss(CTR[cell], clicked, one))
    assert auc(CTR, CLICKS, SHOWN) == pytest.approx(auc(CTR[cell], clicked, one))
    expected = -(math.log(0.1) + math.log(0.9) + math.log(0.8) + 2 * math.log(0.4)) / 5
    assert log_loss(CTR, CLICKS, SHOWN) == pytest.approx(expected)


def test_auc_within_contexts_does_not_reward_knowing_the_context() -> None:
    score = np.array([0.1, 0.2, 0.8, 0.9])
    clicks, group = np.array([1.0, 0.0, 1.0, 0.0]), np.array([0, 0, 1, 1])
    assert auc(score, clicks, np.ones(4)) == 0.25
    assert grouped_auc(score, clicks, np.ones(4), group) == 0.0
    assert grouped_auc(score, np.zeros(4), np.ones(4), group) is None
    assert auc(score, np.ones(4), np.ones(4)) is None


def test_calibration_error_is_none_for_the_truth_and_what_is_added_else() -> None:
    draw = np.random.default_rng(0)
    ctr = draw.uniform(0.05, 0.5, 2000)
    shown = draw.integers(50, 150, 2000).astype(float)
    clicks = draw.binomial(shown.astype(int), ctr).astype(float)
    assert calibration(ctr, clicks, shown).ece < 0.005
    off = calibration(ctr + 0.1, clicks, shown)
    assert off.ece == pytest.approx(0.1, abs=0.005)
    assert off.impressions.sum() == shown.sum()
    assert np.allclose(off.impressions, shown.sum() / 15, rtol=0.05)


def test_ranks_are_uniform_under_the_density_that_counts_were_drawn_from() -> None:
    draw = np.random.default_rng(1)
    count = 4000
    weight, mean, sigma = [0.4, 0.6], [-3.0, -0.5], [0.3, 0.6]
    kind = (draw.random(count) > weight[0]).astype(int)
    logit = draw.normal(np.array(mean)[kind], np.array(sigma)[kind])
    ctr = 1 / (1 + np.exp(-logit))
    shown = draw.integers(1, 40, count).astype(float)
    clicks = draw.binomial(shown.astype(int), ctr).astype(float)
    each = (torch.tensor([values] * count, dtype=torch.float64) for values in (np.log(weight).tolist(), mean, sigma))
    density = Mixture(*each)
    for rank in (ranks(density, clicks, shown), true_ranks(density, ctr)):
        assert within(rank, 0.9) == pytest.approx(0.9, abs=0.02)
        assert np.allclose(np.histogram(rank, 5, (0, 1))[0] / count, 0.2, atol=0.03)
    sure = Mixture(density.log_weight_BK, density.mean_BK, torch.full_like(density.sigma_BK, 0.02))
    assert within(true_ranks(sure, ctr), 0.9) < 0.7
