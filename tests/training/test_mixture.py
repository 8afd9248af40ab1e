"""The density: its likelihood against numerical integration, and what it recovers from counts alone."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom, norm
from torch import nn

from training.metrics import within
from training.mixture import Mixture, MixtureHead, Noise


def mixture(weights: list[float], means: list[float], sigmas: list[float]) -> Mixture:
    return Mixture(
        *(torch.tensor([values], dtype=torch.float64) for values in (np.log(weights).tolist(), means, sigmas))
    )


def one(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float64)


@settings(max_examples=30)
@given(
    impressions=st.integers(1, 30_000),
    share=st.floats(0, 1),
    mean=st.floats(-6, 3),
    sigma=st.floats(0.02, 2.5),
)
@example(impressions=1, share=0, mean=-5, sigma=2.5)
@example(impressions=1, share=1, mean=-5, sigma=2.5)
@example(impressions=30_000, share=0, mean=0, sigma=1)
def test_the_likelihood_is_the_binomial_integrated_over_the_density(
    impressions: int, share: float, mean: float, sigma: float
) -> None:
    centre = 1 / (1 + math.exp(-(mean + (share - 0.5) * 4 * sigma)))
    clicks = min(impressions, round(impressions * centre)) if 0 < share < 1 else round(share) * min(impressions, 3)
    logit = np.linspace(mean - 12 * sigma, mean + 12 * sigma, 20_001)
    integrand = binom.pmf(clicks, impressions, 1 / (1 + np.exp(-logit))) * norm.pdf(logit, mean, sigma)
    expected = np.trapezoid(integrand, logit)
    found = mixture([1.0], [mean], [sigma]).log_likelihood(one(clicks), one(impressions)).exp().item()
    assert found == pytest.approx(expected, rel=2e-3, abs=1e-12)


def test_one_impression_costs_the_log_loss_of_the_expected_ctr() -> None:
    density = mixture([0.3, 0.7], [-2.0, 0.5], [0.8, 0.3])
    ctr = density.moments()[0].item()
    assert density.log_likelihood(one(1), one(1)).item() == pytest.approx(math.log(ctr), abs=1e-5)
    assert density.log_likelihood(one(0), one(1)).item() == pytest.approx(math.log(1 - ctr), abs=1e-5)


def test_noise_widens_a_gaussian_by_the_variance_of_what_was_measured() -> None:
    density = mixture([1.0], [-1.0], [0.5])
    measured, variance = math.log(3.5 / 7.5), 1 / 3.5 + 1 / 7.5
    for noise, width in (("gaussian", math.sqrt(0.25 + variance)), ("none", 0.5)):
        found = density.log_likelihood(one(3), one(10), noise).item()  # type: ignore[arg-type]
        assert found == pytest.approx(norm.logpdf(measured, -1.0, width))


def test_mean_deviation_quantiles_and_bound_are_those_of_the_density() -> None:
    draw = np.random.default_rng(0)
    density = mixture([0.25, 0.75], [-3.0, -1.0], [0.4, 0.6])
    kind = draw.random(400_000) < 0.25
    ctr = 1 / (1 + np.exp(-np.where(kind, draw.normal(-3, 0.4, kind.size), draw.normal(-1, 0.6, kind.size))))
    mean, deviation = (moment.item() for moment in density.moments())
    assert mean == pytest.approx(ctr.mean(), rel=0.01)
    assert deviation == pytest.approx(ctr.std(), rel=0.01)
    assert density.ucb(2.0).item() == pytest.approx(mean + 2 * deviation)
    shares = (0.05, 0.5, 0.95)
    assert density.quantiles(*shares)[:, 0].tolist() == pytest.approx(np.quantile(ctr, shares), rel=0.01)


@settings(max_examples=30)
@given(st.integers(0, 999), st.floats(0.001, 0.999))
def test_a_quantile_has_its_share_of_each_density_below_it(seed: int, share: float) -> None:
    draw = np.random.default_rng(seed)
    weights, means, sigmas = draw.dirichlet([1, 1, 1], 5), draw.normal(-2, 3, (5, 3)), draw.uniform(0.01, 3, (5, 3))
    densities = Mixture(*(torch.from_numpy(each) for each in (np.log(weights), means, sigmas)))
    ctr = densities.quantiles(0.5, share)[1].numpy()
    below = (weights * norm.cdf((np.log(ctr / (1 - ctr))[:, None] - means) / sigmas)).sum(1)
    assert below == pytest.approx(share, abs=1e-4)


def fitted(noise: Noise, input_ND: torch.Tensor, clicks_N: torch.Tensor, impressions_N: torch.Tensor) -> MixtureHead:
    """A head on top of a small network, fitted to counts."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(input_ND.shape[1], 16), nn.Tanh(), MixtureHead(16, 2, 0.2))
    optimizer = torch.optim.Adam(network.parameters(), 0.03)
    order = np.random.default_rng(0)
    for step in range(250):
        if step == 170:
            optimizer.param_groups[0]["lr"] = 0.005
        at = torch.from_numpy(order.integers(0, len(input_ND), 512))
        loss = -network(input_ND[at]).log_likelihood(clicks_N[at], impressions_N[at], noise).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network  # type: ignore[return-value]


@pytest.fixture(scope="module")
def counts() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, NDArray[np.float64]]:
    """Items of two kinds, told by x up to chance, each seen 20 to 60 times: x (N, 1), clicks, impressions, true CTR."""
    draw = np.random.default_rng(1)
    count = 8000
    x = draw.random(count)
    low = draw.random(count) < x  # the weights depend on x, the means too
    logit = np.where(low, draw.normal(-2.6 + x, 0.25), draw.normal(0.2 - x, 0.35))
    ctr = 1 / (1 + np.exp(-logit))
    impressions = draw.integers(20, 60, count)
    clicks = draw.binomial(impressions, ctr)
    return (*(torch.from_numpy(each).float() for each in (x[:, None], clicks, impressions)), ctr)  # type: ignore[return-value]


def coverage(density: Mixture, ctr: NDArray[np.float64]) -> float:
    """How many true CTRs lie in the density's 90 % intervals."""
    with torch.no_grad():
        rank = density.double().below(torch.logit(torch.from_numpy(ctr))).numpy()
    return within(rank, 0.9)


def test_a_known_mixture_is_recovered_from_counts(
    counts: tuple[torch.Tensor, torch.Tensor, torch.Tensor, NDArray[np.float64]],
) -> None:
    x, clicks, impressions, ctr = counts
    head = fitted("binomial", x, clicks, impressions)
    assert 0.87 <= coverage(head(x), ctr) <= 0.93
    with torch.no_grad():
        at = head(torch.tensor([[0.25], [0.5], [0.75]]))
    for i, place in enumerate((0.25, 0.5, 0.75)):
        first, second = np.argsort(at.mean_BK[i].numpy())
        assert at.log_weight_BK[i, first].exp().item() == pytest.approx(place, abs=0.12)
        assert at.mean_BK[i, first].item() == pytest.approx(-2.6 + place, abs=0.3)
        assert at.mean_BK[i, second].item() == pytest.approx(0.2 - place, abs=0.3)
        assert at.sigma_BK[i, first].item() == pytest.approx(0.25, abs=0.2)
        assert at.sigma_BK[i, second].item() == pytest.approx(0.35, abs=0.2)


def test_without_the_noise_of_measurement_intervals_do_not_hold_what_they_promise(
    counts: tuple[torch.Tensor, torch.Tensor, torch.Tensor, NDArray[np.float64]],
) -> None:
    x, _, impressions, ctr = counts
    few = torch.where(torch.arange(len(x)) % 2 == 0, torch.minimum(impressions, torch.tensor(8.0)), impressions)
    seen = torch.from_numpy(np.random.default_rng(2).binomial(few.numpy().astype(int), ctr)).float()
    assert 0.87 <= coverage(fitted("binomial", x, seen, few)(x), ctr) <= 0.93
    assert coverage(fitted("none", x, seen, few)(x), ctr) > 0.95  # noise taken for truth: too wide, nothing to rely on
