"""How a network runs: on which device, in which dtype, and what its failures are called. The boundary to torch."""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from encoders.encoder import EncodeError

Dtype = Literal["float32", "bfloat16"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class DeviceUnavailable(Exception):
    """This machine has no such device, or torch was built without it."""


def choose_device(name: str = "auto") -> torch.device:
    """The device of a name: `auto` is a CUDA GPU where there is one, else Apple's (`mps`), else the CPU.

    Raises:
        DeviceUnavailable: no such device here.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, here in available.items() if here)
    if not available.get(name.partition(":")[0], False):
        here = ", ".join(device for device, is_here in available.items() if is_here)
        raise DeviceUnavailable(f"device {name!r} is not available; here are: auto, {here}")
    return torch.device(name)


class Forward:
    """A network that only runs forward.

    Args:
        network: takes tensors of batch B, answers (B, dim); it is moved to the device and cast.
        device: where it computes.
        dtype: in which it computes; autocast stays off, so that it is the same everywhere.
    """

    def __init__(self, network: nn.Module, device: torch.device, dtype: Dtype) -> None:
        self._device = device
        self._dtype = DTYPES[dtype]
        self._network = network.eval().requires_grad_(False)
        # channels_last concerns the convolutions alone: their kernels are faster so, on CPU and GPU
        self._network.to(device=device, dtype=self._dtype).to(memory_format=torch.channels_last)

    def __call__(self, *inputs: Tensor) -> NDArray[np.float32]:
        """Embeddings (B, dim) float32 of a batch; floating inputs are cast, whole numbers are not.

        Raises:
            EncodeError: the network failed; out of memory, say.
        """
        try:
            with torch.inference_mode():
                embedding_BD: Tensor = self._network(*map(self._placed, inputs))
                return embedding_BD.to(device="cpu", dtype=torch.float32).numpy()  # waits for the device
        except Exception as error:
            raise EncodeError(f"the network failed: {type(error).__name__}: {error}") from error

    def _placed(self, tensor: Tensor) -> Tensor:
        dtype = self._dtype if tensor.is_floating_point() else tensor.dtype
        if tensor.ndim == 4:
            return tensor.to(device=self._device, dtype=dtype, memory_format=torch.channels_last)
        return tensor.to(device=self._device, dtype=dtype)
