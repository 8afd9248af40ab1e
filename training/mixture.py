"""The density of a click-through rate (CTR): a Gaussian mixture over its logit, told apart from measurement noise.

After Zeldes et al., Deep Density Networks and Uncertainty in Recommender Systems (arXiv 1711.02487): what is seen of an
item is not its CTR but `clicks` of `impressions`, and a likelihood that knows how noisy that is leaves in the mixture
only what the model does not know. The paper widens each Gaussian by the variance of the measured value. That is
`noise="gaussian"`, and poor for few impressions; `noise="binomial"` integrates the binomial distribution over the
mixture: exact for any number of them, and for one impression the log-loss of the expected CTR.

Shapes: B examples, K components, Q nodes of a quadrature.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

Noise = Literal["binomial", "gaussian", "none"]

NODES = 16  # of Gauss-Hermite quadrature; placed at the peak, they give the integral to 1e-4 (see the tests)
NEWTON_STEPS = 6  # from the Gaussian approximation to the peak
LONGEST_STEP = 2.0  # in logits: Newton's method overshoots where the sigmoid is flat
LEAST_SIGMA = 0.01  # in logits: 1 % of a CTR; below it a likelihood can grow without bound
HALVINGS = 26  # of an interval of a few logits: 1e-7

_NODE, _WEIGHT = np.polynomial.hermite.hermgauss(NODES)
NODE_Q = torch.tensor(_NODE)  # float64; taken to what it meets
LOG_WEIGHT_Q = torch.tensor(np.log(_WEIGHT))


@dataclass(frozen=True, slots=True)
class Mixture:
    """B Gaussian mixtures over logit CTR.

    Attributes:
        log_weight_BK: logarithms of the components' weights.
        mean_BK, sigma_BK: of each component, in logits.
    """

    log_weight_BK: Tensor
    mean_BK: Tensor
    sigma_BK: Tensor

    def log_likelihood(self, clicks_B: Tensor, impressions_B: Tensor, noise: Noise = "binomial") -> Tensor:
        """log p(clicks | impressions), (B,).

        Args:
            clicks_B, impressions_B: counts, at least one impression each.
            noise: `binomial` is a probability of the counts. `gaussian` and `none` are densities of the measured logit:
                the first widened by its variance, the second taking the measured CTR for the true one.
        """
        if noise == "binomial":
            return self._binomial(clicks_B, impressions_B)
        measured_B, variance_B = measured_logit(clicks_B, impressions_B)
        added_B1 = variance_B[:, None] if noise == "gaussian" else torch.zeros_like(variance_B)[:, None]
        log_density_BK = _log_normal(measured_B[:, None], self.mean_BK, (self.sigma_BK.square() + added_B1).sqrt())
        return torch.logsumexp(self.log_weight_BK + log_density_BK, 1)

    def _binomial(self, clicks_B: Tensor, impressions_B: Tensor) -> Tensor:
        clicks_B1, impressions_B1 = clicks_B[:, None], impressions_B[:, None]
        peak_BK, width_BK = self._peaks(clicks_B1, impressions_B1)
        node_Q, log_weight_Q = NODE_Q.to(peak_BK), LOG_WEIGHT_Q.to(peak_BK)
        at_BKQ = peak_BK[:, :, None] + math.sqrt(2) * width_BK[:, :, None] * node_Q
        log_joint_BKQ = (
            clicks_B[:, None, None] * at_BKQ
            - impressions_B[:, None, None] * F.softplus(at_BKQ)
            + _log_normal(at_BKQ, self.mean_BK[:, :, None], self.sigma_BK[:, :, None])
        )
        log_integral_BK = torch.logsumexp(log_joint_BKQ + log_weight_Q + node_Q.square(), 2) + torch.log(
            math.sqrt(2) * width_BK
        )
        ways_B = (
            torch.lgamma(impressions_B + 1) - torch.lgamma(clicks_B + 1) - torch.lgamma(impressions_B - clicks_B + 1)
        )
        return ways_B + torch.logsumexp(self.log_weight_BK + log_integral_BK, 1)

    @torch.no_grad()
    def _peaks(self, clicks_B1: Tensor, impressions_B1: Tensor) -> tuple[Tensor, Tensor]:
        """Where the nodes are placed: at the peak of binomial times Gaussian, as wide as it is there (Laplace).

        No gradient: the value of the integral does not depend on where its nodes are.
        """
        measured_B1, variance_B1 = measured_logit(clicks_B1, impressions_B1)
        prior_BK = self.sigma_BK.square().reciprocal()
        at_BK = (self.mean_BK * prior_BK + measured_B1 / variance_B1) / (prior_BK + 1 / variance_B1)
        for _ in range(NEWTON_STEPS):
            ctr_BK = torch.sigmoid(at_BK)
            slope_BK = clicks_B1 - impressions_B1 * ctr_BK - (at_BK - self.mean_BK) * prior_BK
            curvature_BK = impressions_B1 * ctr_BK * (1 - ctr_BK) + prior_BK
            at_BK = at_BK + (slope_BK / curvature_BK).clamp(-LONGEST_STEP, LONGEST_STEP)
        ctr_BK = torch.sigmoid(at_BK)
        return at_BK, (impressions_B1 * ctr_BK * (1 - ctr_BK) + prior_BK).rsqrt()

    def double(self) -> "Mixture":
        """In float64: with 10,000 impressions a likelihood in float32 is off by 0.01. Gradients do not suffer."""
        return Mixture(self.log_weight_BK.double(), self.mean_BK.double(), self.sigma_BK.double())

    def at(self, places: NDArray[np.int64]) -> "Mixture":
        """Those at `places`."""
        index = torch.from_numpy(places)
        return Mixture(self.log_weight_BK[index], self.mean_BK[index], self.sigma_BK[index])

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the CTR, (B,) each."""
        node_Q, weight_Q = NODE_Q.to(self.mean_BK), LOG_WEIGHT_Q.to(self.mean_BK).exp() / math.sqrt(math.pi)
        ctr_BKQ = torch.sigmoid(self.mean_BK[:, :, None] + math.sqrt(2) * self.sigma_BK[:, :, None] * node_Q)
        weight_BK = self.log_weight_BK.exp()
        mean_B = (weight_BK * (ctr_BKQ * weight_Q).sum(2)).sum(1)
        square_B = (weight_BK * ((ctr_BKQ - mean_B[:, None, None]).square() * weight_Q).sum(2)).sum(1)
        return mean_B, square_B.sqrt()

    def ucb(self, deviations: float) -> Tensor:
        """Upper confidence bound, (B,): mean CTR plus so many standard deviations. Ranking by it explores."""
        mean_B, deviation_B = self.moments()
        return mean_B + deviations * deviation_B

    @torch.no_grad()
    def quantiles(self, *shares: float) -> Tensor:
        """The CTRs below which the true one lies with each of these probabilities, (S, B)."""
        share_S1 = torch.tensor(shares, dtype=self.mean_BK.dtype, device=self.mean_BK.device)[:, None]
        # A mixture's quantile lies between those of its components.
        of_each_SBK = self.mean_BK + self.sigma_BK * torch.special.ndtri(share_S1)[:, :, None]
        low_SB, high_SB = of_each_SBK.amin(2), of_each_SBK.amax(2)
        for _ in range(HALVINGS):
            middle_SB = (low_SB + high_SB) / 2
            below_SB = self.below(middle_SB) < share_S1
            low_SB, high_SB = torch.where(below_SB, middle_SB, low_SB), torch.where(below_SB, high_SB, middle_SB)
        ctr_SB: Tensor = torch.sigmoid((low_SB + high_SB) / 2)
        return ctr_SB

    def below(self, logit_B: Tensor) -> Tensor:
        """Probability that the true logit CTR is below `logit_B`, (B,), or (…, B) for several each."""
        share_BK: Tensor = torch.special.ndtr((logit_B[..., None] - self.mean_BK) / self.sigma_BK)
        return (self.log_weight_BK.exp() * share_BK).sum(-1)


def measured_logit(clicks: Tensor, impressions: Tensor) -> tuple[Tensor, Tensor]:
    """Logit of the measured CTR and the variance of its error, of any one shape.

    With half a click and half a non-click added (Haldane, Anscombe), which removes most of the bias and gives a value
    where nobody clicked.
    """
    clicked, not_clicked = clicks + 0.5, impressions - clicks + 0.5
    return torch.log(clicked) - torch.log(not_clicked), 1 / clicked + 1 / not_clicked


def _log_normal(value: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
    return -0.5 * ((value - mean) / sigma).square() - torch.log(sigma) - 0.5 * math.log(2 * math.pi)


class MixtureHead(nn.Module):
    """The last layer: hidden values (B, W) → mixtures.

    Args:
        width: W.
        components: K.
        base_ctr: of the training data; where the means begin, half a logit around it.
    """

    def __init__(self, width: int, components: int, base_ctr: float = 0.5) -> None:
        super().__init__()
        self._out = nn.Linear(width, 3 * components)
        with torch.no_grad():
            self._out.weight.mul_(0.1)
            _, means, sigmas = self._out.bias.chunk(3)
            spread = torch.linspace(-0.5, 0.5, components) if components > 1 else torch.zeros(1)
            means.copy_(spread + math.log(base_ctr / (1 - base_ctr)))
            sigmas.zero_()

    def forward(self, hidden_BW: Tensor) -> Mixture:
        weight_BK, mean_BK, sigma_BK = self._out(hidden_BW).float().chunk(3, 1)  # float32 also under autocast
        return Mixture(torch.log_softmax(weight_BK, 1), mean_BK, F.softplus(sigma_BK) + LEAST_SIGMA)
