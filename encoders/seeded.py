"""Reproducible random weights: what an encoder computes with where nothing trained can be had."""

import hashlib

import numpy as np
import torch
from torch import nn

HE_UNIFORM = 6.0  # bound² x fan-in: keeps the second moment through a ReLU (He et al. 2015, arXiv 1502.01852)


@torch.no_grad()
def seed_parameters(network: nn.Module, seed: int) -> None:
    """Sets all parameters: biases 0, matrices and kernels He-uniform, scales (of norms, say) as they were built.

    Each parameter has a random stream of its own, named by seed and parameter: so a parameter is the same whatever
    else the network has. Numbers come from numpy's Philox generator and one multiplication, not from torch's
    initialisers, whose last bits depend on the CPU's instruction set: the same seed gives the same bytes everywhere.
    """
    for name, parameter in network.named_parameters():
        if name.rpartition(".")[2].startswith("bias"):  # `bias`, and the LSTM's `bias_ih_l0`
            parameter.zero_()
        elif parameter.ndim >= 2 and parameter.numel() > parameter.shape[0]:
            fan_in = parameter.numel() // parameter.shape[0]
            stream = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=16).digest()
            uniform = np.random.Generator(np.random.Philox(key=int.from_bytes(stream, "little"))).random(
                parameter.numel(), dtype=np.float32
            )
            bound = np.float32((HE_UNIFORM / fan_in) ** 0.5)
            parameter.copy_(torch.from_numpy((uniform * 2 - 1) * bound).view(parameter.shape))
