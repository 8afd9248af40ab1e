"""How a network runs: on which device, in which dtype, and what its failures are called. The boundary to torch."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from encoders.encoder import EncodeError, Encoder
from encoders.spec import Modality

Dtype = Literal["float32", "bfloat16"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MAX_LANES = 8
MAX_DECODING = 16
# Inputs of a pass on CUDA. cuDNN plans each convolution anew for each size of batch that it has not seen in a process,
# which takes much longer than computing it. With passes of any size MobileNetV3-small took 23 ms of CPU an image on an
# H200, and ever less as more sizes had been seen.
PASS_SIZES = (1, 8, 32, 128)


class DeviceUnavailable(Exception):
    """This machine has no such device, or torch was built without it, or it cannot compile for it."""


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How a device is kept busy.

    Attributes:
        lanes: passes at a time, each in a thread of its own.
        threads: that torch's kernels may use within a pass, on a CPU.
        images: most pictures of a pass.
        texts: most texts of a pass.
        decoding: threads that decode.
        age: seconds for which an input waits for others to share its pass.
        sizes: that passes of pictures are filled up to; none: of any size.
        shared: cores that passes share with decoding; 0: they have a device of their own.
    """

    lanes: int
    threads: int
    images: int
    texts: int
    decoding: int
    age: float
    sizes: tuple[int, ...] = ()
    shared: int = 0

    def batch(self, modality: Modality) -> int:
        return self.texts if modality == "text" else self.images

    @classmethod
    def of(cls, kind: str, cores: int | None = None) -> "Plan":
        """What was found to be good for a device: `cpu`, `cuda` or `mps`; `cores` are those that this process may use.

        On a CPU, passes side by side on one core each, not one pass on all cores: OpenMP's threads wait for each other
        by spinning, and beside decoding threads that have the cores, they wait for long. On a busy machine of two cores
        a pass on both embedded 1.5 images a second, on one core 21.

        On CUDA two lanes: while the kernels of one batch run, the next one is copied, in a stream of its own. Starting
        the kernels of a pass takes Python milliseconds, however few its inputs are, so they wait longer for others.
        """
        cores = cores or os.cpu_count() or 1
        decoding = min(cores, MAX_DECODING)
        if kind == "cpu":
            lanes = min(cores, MAX_LANES)
            return cls(
                lanes=lanes,
                threads=max(1, cores // lanes),
                images=16,
                texts=64,
                decoding=decoding,
                age=0.005,
                shared=cores,
            )
        cuda = kind == "cuda"
        return cls(
            lanes=2 if cuda else 1,
            threads=1,
            images=128,
            texts=256,
            decoding=decoding,
            age=0.025,
            sizes=PASS_SIZES if cuda else (),
        )


def compute_in_threads(count: int) -> None:
    """Has torch's kernels that the calling thread starts use so many threads."""
    torch.set_num_threads(count)


class StreamPerThread:
    """Copies and kernels of each thread in a CUDA stream of its own, beside those of the other threads.

    A batch goes from pinned memory, which the device reads by itself, so that the copy runs beside the kernels of the
    batch before. All that a batch allocates is used in one stream, as torch's allocator expects.

    Args:
        device: a CUDA device.
        cuda: `torch.cuda`; another in tests.
    """

    def __init__(self, device: torch.device, cuda: Any = torch.cuda) -> None:
        self._device = device
        self._cuda = cuda
        self._own = threading.local()
        # Parameters were copied and cast in the default stream, for which no other stream waits by itself.
        cuda.synchronize(device)

    @contextmanager
    def entered(self) -> Iterator[None]:
        stream = getattr(self._own, "stream", None)
        if stream is None:
            stream = self._own.stream = self._cuda.Stream(self._device)
        with self._cuda.stream(stream):
            yield


class Forward:
    """A network that only runs forward; several threads may run it at a time.

    Args:
        network: takes tensors of batch B, answers (B, dim); it is moved to the device and cast.
        device: where it computes.
        dtype: in which it computes; autocast stays off, so that it is the same everywhere.
    """

    def __init__(self, network: nn.Module, device: torch.device, dtype: Dtype) -> None:
        self._device = device
        self._dtype = DTYPES[dtype]
        self._network: Callable[..., Tensor] = network.eval().requires_grad_(False)
        # channels_last concerns the convolutions alone: their kernels are faster so, on CPU and GPU
        network.to(device=device, dtype=self._dtype).to(memory_format=torch.channels_last)
        for module in network.modules():
            if isinstance(module, nn.RNNBase):
                module.flatten_parameters()  # the cast took them apart, and cuDNN would join them in every pass
        self.bytes = network_bytes(network)
        self._streams = StreamPerThread(device) if device.type == "cuda" else None

    def compile(self) -> None:
        """Has torch compile the network when it next runs, for any batch size."""
        self._network = torch.compile(self._network, dynamic=True)

    def __call__(self, *inputs: Tensor) -> NDArray[np.float32]:
        """Embeddings (B, dim) float32 of a batch; floating inputs are cast, whole numbers are not.

        Raises:
            EncodeError: the network failed; out of memory, say.
        """
        try:
            with torch.inference_mode(), self._streams.entered() if self._streams else nullcontext():
                embedding_BD = self._network(*map(self._placed, inputs))
                return embedding_BD.to(device="cpu", dtype=torch.float32).numpy()  # waits for the device
        except Exception as error:
            raise EncodeError(f"the network failed: {type(error).__name__}: {error}") from error

    def stacked(self, inputs: Sequence[Tensor]) -> Tensor:
        """B inputs of one shape as a batch, pictures with their channels last in memory; on CUDA in memory that it
        copies from by itself, with rows of zeros at the end up to one of `PASS_SIZES`."""
        pictures = inputs[0].ndim == 3
        # Put in order here, where each is copied anyway, rather than the whole batch once more
        parts = [each.permute(1, 2, 0) for each in inputs] if pictures else list(inputs)
        if self._streams is None:
            batch = torch.stack(parts)
        else:
            count = len(parts)
            size = next((size for size in PASS_SIZES if size >= count), count)
            batch = torch.empty(size, *parts[0].shape, dtype=parts[0].dtype, pin_memory=True)
            torch.stack(parts, out=batch[:count])
            batch[count:] = 0
        return batch.permute(0, 3, 1, 2) if pictures else batch

    def _placed(self, tensor: Tensor) -> Tensor:
        dtype = self._dtype if tensor.is_floating_point() else tensor.dtype
        memory_format = torch.channels_last if tensor.ndim == 4 else torch.preserve_format
        if self._streams is None:
            return tensor.to(device=self._device, dtype=dtype, memory_format=memory_format)
        # Copied first and cast there: the GPU is faster at it. What is pinned already is not copied again.
        there = tensor.pin_memory().to(self._device, non_blocking=True)
        return there.to(dtype=dtype, memory_format=memory_format)


def network_bytes(network: nn.Module) -> int:
    """Bytes of a network's parameters and buffers."""
    tensors = [*network.parameters(), *network.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def encoder_bytes(encoder: Encoder) -> int:
    """Bytes of the networks that an encoder holds, wherever it keeps them."""
    held = vars(encoder).values()
    return sum(each.bytes if isinstance(each, Forward) else network_bytes(each) for each in held if _is_network(each))


def _is_network(held: object) -> bool:
    return isinstance(held, Forward | nn.Module)


def compile_encoder(encoder: Encoder) -> None:
    """Has the networks of an encoder compiled when they next run."""
    for each in vars(encoder).values():
        if isinstance(each, Forward):
            each.compile()


def check_compiler(device: torch.device) -> None:
    """Compiles something small.

    Raises:
        DeviceUnavailable: torch cannot compile here; the message says what is missing.
    """
    try:
        torch.compile(torch.sin)(torch.ones(8, device=device))
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise DeviceUnavailable(
            f"networks cannot be compiled for {device} here: {reason}; install a C++ compiler (g++), or leave"
            " retina_compile off"
        ) from error
