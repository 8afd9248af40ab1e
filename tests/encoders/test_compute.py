import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from encoders.compute import (
    DeviceUnavailable,
    Forward,
    Plan,
    StreamPerThread,
    check_compiler,
    compile_encoder,
    encoder_bytes,
)
from encoders.encoder import EncodeError

CPU = torch.device("cpu")


class Holder:
    def __init__(self, network: nn.Module) -> None:
        self.forward = Forward(network, CPU, "float32")


class FakeCuda:
    """`torch.cuda`, as far as streams go: notes what is done to which."""

    def __init__(self) -> None:
        self.done: list[Any] = []
        self.made = 0

    def synchronize(self, device: torch.device) -> None:
        self.done.append("synchronized")

    def Stream(self, device: torch.device) -> int:
        self.made += 1
        return self.made

    @contextmanager
    def stream(self, number: int) -> Iterator[None]:
        self.done.append(("in", number))
        yield
        self.done.append(("out", number))


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_a_cpu_runs_passes_of_one_thread_side_by_side() -> None:
    assert (Plan.of("cpu", 2).lanes, Plan.of("cpu", 2).threads) == (2, 1)
    assert (Plan.of("cpu", 64).lanes, Plan.of("cpu", 64).threads) == (8, 8)
    assert Plan.of("cuda").lanes == 2
    assert Plan.of("mps").lanes == 1


def test_each_thread_has_a_stream_of_its_own_once_the_parameters_are_there() -> None:
    cuda = FakeCuda()
    streams = StreamPerThread(torch.device("cuda"), cuda)

    def use() -> None:
        for _ in range(2):
            with streams.entered():
                pass

    for _ in range(2):
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
    assert cuda.done[0] == "synchronized"
    assert cuda.done[1:] == [(way, number) for number in (1, 2) for _ in range(2) for way in ("in", "out")]


def test_inputs_of_a_gpu_go_through_pinned_memory_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Forward(small(), CPU, "float32")
    expected = forward(torch.ones(2, 3, 8, 8))
    cuda = FakeCuda()
    forward._streams = StreamPerThread(CPU, cuda)
    pinned: list[torch.Size] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor.shape)
        assert cuda.done[-1] == ("in", 1)
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    assert (forward(torch.ones(2, 3, 8, 8)) == expected).all()
    assert pinned == [(2, 3, 8, 8)]
    assert cuda.done[-1] == ("out", 1)


def test_passes_of_a_gpu_have_few_sizes_since_each_is_planned_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Forward(small(), CPU, "float32")
    inputs = [torch.full((3, 8, 8), float(n)) for n in range(9)]
    assert forward.stacked(inputs).shape == (9, 3, 8, 8)  # a CPU has no use for more
    assert forward.stacked(inputs).is_contiguous(memory_format=torch.channels_last)
    forward._streams = StreamPerThread(CPU, FakeCuda())
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory, **given: empty(*shape, **given))
    for count, size in ((1, 1), (2, 8), (9, 32)):
        batch = forward.stacked(inputs[:count])
        assert batch.shape == (size, 3, 8, 8)
        assert torch.equal(batch[:count], torch.stack(inputs[:count]))
        assert batch.is_contiguous(memory_format=torch.channels_last)
        assert not batch[count:].any()


def test_an_encoder_weighs_what_its_parameters_do() -> None:
    assert encoder_bytes(Holder(small())) == 4 * (3 * 4 * 9 + 4)  # type: ignore[arg-type]


def test_a_compiled_network_answers_what_it_did_before() -> None:
    encoder = Holder(nn.Sequential(nn.Linear(8, 8), nn.ReLU()))
    inputs_BD = torch.rand(4, 8)
    before = encoder.forward(inputs_BD)
    compile_encoder(encoder)  # type: ignore[arg-type]
    try:
        compiled = encoder.forward(inputs_BD)
    except EncodeError as error:
        assert "compiler" in str(error)  # noqa: PT017 - either way is right, by what is installed
        return
    np.testing.assert_allclose(compiled, before, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(encoder.forward(inputs_BD[:3]), before[:3], rtol=1e-5, atol=1e-6)


def test_a_machine_without_a_compiler_says_so_before_anything_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_nothing(function: Any) -> Any:
        raise RuntimeError("No working C++ compiler found\nin a long trace")

    monkeypatch.setattr(torch, "compile", compile_nothing)
    with pytest.raises(DeviceUnavailable, match=r"compiled for cpu here: No working C\+\+ compiler found; install"):
        check_compiler(CPU)
