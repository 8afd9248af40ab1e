"""What only a CUDA GPU can show; `test_truth.py` holds the same figures on a CPU. Without one, nothing runs here."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from encoders.batching import Batches
from encoders.compute import Forward, Plan, StreamPerThread, choose_device
from encoders.encoder import EncodeError, Encoder
from encoders.loading import load_encoder
from encoders.spec import EncoderSpec
from tests.encoders.families import (
    LSTM,
    OWN,
    TIMM,
    TORCHVISION,
    contents,
    image_checkpoint,
    in_dtype,
    own_module,
    pinned,
    text_checkpoint,
)
from training.photographs import photographs as catalogue

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

CUDA = torch.device("cuda")
# of the vector's length: sums of other batch sizes are rounded in another order, float32's products to TF32's 10 bits
TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}
FAMILIES = ["torchvision", "ViT", "timm", "text_lstm", "image checkpoint", "text checkpoint", "python"]
VIT = EncoderSpec(name="vit", version="v1", modality="image", dim=768, network="torchvision:vit_b_16")
VIT = replace(VIT, weights="seeded:0")
RESNET = replace(VIT, name="resnet", dim=2048, network="torchvision:resnet50")


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, EncoderSpec]]:
    folder = tmp_path_factory.mktemp("families")
    with own_module(folder):
        declared = [TORCHVISION, VIT, TIMM, LSTM, image_checkpoint(folder), text_checkpoint(folder), OWN]
        yield {name: pinned(spec) for name, spec in zip(FAMILIES, declared, strict=True)}


def loaded(spec: EncoderSpec, dtype: str, device: str = "cuda") -> Encoder:
    spec = spec if spec.pinned else pinned(spec)
    return load_encoder(in_dtype(spec, dtype), device, allowed_modules=["team_networks"])


def off(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The largest error, as a share of the vector's length."""
    return float((np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)).max())


def test_a_gpu_is_what_auto_chooses() -> None:
    assert choose_device().type == "cuda"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_on_a_gpu_an_embedding_does_not_depend_on_its_batch_nor_on_the_run(
    family: str, dtype: str, specs: dict[str, EncoderSpec]
) -> None:
    encoder = loaded(specs[family], dtype)
    inputs = [encoder.prepare(content) for content in contents(encoder.spec)]
    together = encoder.encode(inputs)
    alone = np.concatenate([encoder.encode([one]) for one in inputs])
    assert together.dtype == np.float32
    assert off(together, alone) < TOLERANCE[dtype]
    assert encoder.encode(inputs).tobytes() == together.tobytes()
    assert loaded(specs[family], dtype).encode(inputs).tobytes() == together.tobytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gpu_and_a_cpu_agree_but_for_rounding(family: str, specs: dict[str, EncoderSpec]) -> None:
    there, here = loaded(specs[family], "float32"), loaded(specs[family], "float32", "cpu")
    inputs = [here.prepare(content) for content in contents(here.spec)]
    assert off(there.encode(inputs), here.encode(inputs)) < TOLERANCE["float32"]


@pytest.mark.parametrize("spec", [TORCHVISION, RESNET, VIT, TIMM], ids=lambda spec: spec.network)
def test_bfloat16_errs_by_less_than_a_tenth_of_the_distance_between_photographs(spec: EncoderSpec) -> None:
    encoders = [loaded(spec, dtype) for dtype in ("float32", "bfloat16")]
    inputs = [encoders[0].prepare(photograph.jpeg) for photograph in catalogue()[::3]]
    exact, rounded = (found - found.mean(0) for found in (encoder.encode(inputs) for encoder in encoders))
    distances = np.linalg.norm(exact[:, None] - exact[None], axis=2)[np.triu_indices(len(exact), 1)]
    assert np.linalg.norm(exact - rounded, axis=1).max() < 0.1 * np.median(distances)


@pytest.mark.parametrize("family", ["torchvision", "ViT", "text_lstm"])
def test_batches_side_by_side_in_streams_of_their_own_get_the_bytes_that_they_get_alone(
    family: str, specs: dict[str, EncoderSpec]
) -> None:
    encoder = loaded(specs[family], "bfloat16")
    inputs = [encoder.prepare(content) for content in contents(encoder.spec)]
    batches = [inputs[n:] + inputs[:n] for n in range(len(inputs))]
    alone = [encoder.encode(batch).tobytes() for batch in batches]
    with ThreadPoolExecutor(2) as lanes:
        for _ in range(10):
            assert [found.tobytes() for found in lanes.map(encoder.encode, batches)] == alone


def test_threads_compute_in_different_streams_and_not_in_the_default_one() -> None:
    streams = StreamPerThread(CUDA)
    found: list[int] = []

    def note() -> None:
        with streams.entered():
            found.append(torch.cuda.current_stream().cuda_stream)

    for _ in range(2):
        thread = threading.Thread(target=note)
        thread.start()
        thread.join()
    assert len({*found, torch.cuda.default_stream().cuda_stream}) == 3


def test_what_goes_to_a_gpu_lies_in_pinned_memory() -> None:
    forward = Forward(nn.Identity(), CUDA, "float32")
    batch = forward.stacked([torch.rand(3, 4), torch.rand(3, 4)])
    assert batch.is_pinned()
    assert len(batch) == 8
    assert (forward(batch) == batch.numpy()).all()


class Greedy(nn.Module):
    """Takes a terabyte of memory for inputs that begin with a one."""

    def forward(self, input_B1: Tensor) -> Tensor:
        if input_B1[0, 0] == 1:
            torch.empty(1 << 40, device=input_B1.device)
        return input_B1


def test_a_pass_that_finds_no_memory_is_an_error_and_the_next_one_runs() -> None:
    forward = Forward(Greedy(), CUDA, "float32")
    with pytest.raises(EncodeError, match="OutOfMemory"):
        forward(torch.ones(2, 1))
    assert (forward(torch.zeros(2, 1)) == 0).all()


class Nowhere:
    async def fetch(self, url: str) -> bytes:
        raise AssertionError


def test_calls_share_passes_on_a_gpu_and_each_gets_its_own(specs: dict[str, EncoderSpec], tmp_path: Path) -> None:
    encoder = loaded(specs["text_lstm"], "float32")
    texts = [f"title {n} " * (1 + n % 7) for n in range(300)]
    alone = {text: encoder.encode([encoder.prepare(text.encode())])[0] for text in texts[::50]}

    async def embed() -> dict[str, NDArray[np.float32]]:
        batches = Batches(Nowhere(), plan=Plan.of("cuda"))
        await batches.warm(encoder)
        calls = [batches.embed(encoder, texts[n::3]) for n in range(3)]
        found = {text: each.vector for call in await asyncio.gather(*calls) for text, each in call.items()}
        batches.close()
        return found  # type: ignore[return-value]

    found = asyncio.run(embed())
    assert found.keys() == set(texts)
    assert all(off(found[text][None], vector[None]) < TOLERANCE["float32"] for text, vector in alone.items())
