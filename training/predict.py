"""Mixtures for many examples, in batches."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from training.examples import Examples
from training.mixture import Mixture

BATCH = 1024  # examples: larger ones are no faster, and a batch's distinct pictures have to fit in memory


def predict(model: nn.Module, examples: Examples, device: torch.device | None = None) -> Mixture:
    """The mixtures of all examples, in float64 on the CPU; the model is left in evaluation mode."""
    model.eval()
    found = []
    with torch.inference_mode():
        for at in in_order(len(examples), BATCH):
            mixture = model(examples.batch(at).to(device or torch.device("cpu")))
            found.append(tuple(t.cpu() for t in (mixture.log_weight_BK, mixture.mean_BK, mixture.sigma_BK)))
    weights, means, sigmas = zip(*found, strict=True)
    return Mixture(torch.cat(weights), torch.cat(means), torch.cat(sigmas)).double()


def nll(mixture: Mixture, examples: Examples) -> float:
    """Negative log-likelihood of the examples' clicks, per example: what training makes small, whatever `noise` is."""
    clicks_N, impressions_N = examples.counts(np.arange(len(examples)))
    likelihood_N = mixture.log_likelihood(clicks_N.double(), impressions_N.double())
    return float(-likelihood_N.mean())


def in_order(count: int, size: int) -> Iterator[NDArray[np.int64]]:
    """The positions 0 to count, `size` at a time."""
    for start in range(0, count, size):
        yield np.arange(start, min(start + size, count))
