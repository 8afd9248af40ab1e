"""What an embedding may be relied upon: the figures stand in docs/encoders.md."""

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchvision.models import get_model_weights

from encoders.compute import compute_in_threads
from encoders.encoder import Encoder
from encoders.image import torchvision_preprocessing
from encoders.pixels import decode
from encoders.spec import EncoderSpec
from tests.encoders.families import (
    LSTM,
    OWN,
    TIMM,
    TORCHVISION,
    contents,
    image_checkpoint,
    in_dtype,
    loaded,
    own_module,
    pinned,
    text_checkpoint,
)
from tests.encoders.pictures import file_of, photographs
from training.photographs import photographs as catalogue

ROOT = Path(__file__).parents[2]
# of the vector's length: sums of other batch sizes are rounded in another order
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, EncoderSpec]]:
    """A small encoder of each family but sentence-transformers, which has tests of its own."""
    folder = tmp_path_factory.mktemp("families")
    with own_module(folder):
        declared = {
            "torchvision": TORCHVISION,
            "timm": TIMM,
            "text_lstm": LSTM,
            "image checkpoint": image_checkpoint(folder),
            "text checkpoint": text_checkpoint(folder),
            "python": OWN,
        }
        yield {name: pinned(spec) for name, spec in declared.items()}


def embedded(encoder: Encoder, inputs: list[bytes]) -> NDArray[np.float32]:
    return encoder.encode([encoder.prepare(content) for content in inputs])


@pytest.mark.parametrize(
    "network",
    ["inception_v3", "resnet50", "mobilenet_v3_small", "vit_b_16", "convnext_tiny", "efficientnet_b0", "swin_v2_t"],
)
def test_preprocessing_is_torchvisions_to_the_last_bit(network: str) -> None:
    weights = get_model_weights(network).DEFAULT
    preprocessing, reference = torchvision_preprocessing(weights), weights.transforms()
    assert preprocessing.side == reference.resize_size[0]
    for picture in photographs().values():
        assert torch.equal(preprocessing.apply(decode(file_of(picture, "PNG"))), reference(picture))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "family", ["torchvision", "timm", "text_lstm", "image checkpoint", "text checkpoint", "python"]
)
def test_an_embedding_does_not_depend_on_its_batch(family: str, dtype: str, specs: dict[str, EncoderSpec]) -> None:
    encoder = loaded(in_dtype(specs[family], dtype))
    inputs = [encoder.prepare(content) for content in contents(encoder.spec)]
    together = encoder.encode(inputs)
    alone = np.concatenate([encoder.encode([one]) for one in inputs])
    assert together.dtype == np.float32
    assert (np.linalg.norm(together - alone, axis=1) < TOLERANCE[dtype] * np.linalg.norm(alone, axis=1)).all()
    assert encoder.encode(inputs).tobytes() == together.tobytes()


@pytest.mark.parametrize("spec", [TORCHVISION, TIMM], ids=lambda spec: spec.network)
def test_bfloat16_errs_by_less_than_a_tenth_of_the_distance_between_photographs(spec: EncoderSpec) -> None:
    inputs = [photograph.jpeg for photograph in catalogue()[::3]]
    exact, rounded = (embedded(loaded(in_dtype(spec, dtype)), inputs) for dtype in ("float32", "bfloat16"))
    exact, rounded = exact - exact.mean(0), rounded - rounded.mean(0)
    distances = np.linalg.norm(exact[:, None] - exact[None], axis=2)[np.triu_indices(len(exact), 1)]
    assert np.linalg.norm(exact - rounded, axis=1).max() < 0.1 * np.median(distances)


def digests(names: list[str], folder: Path) -> dict[str, str]:
    """Of the bytes of all embeddings of some families, computed as Retina's lanes do on two cores."""
    compute_in_threads(1)
    specs = {"torchvision": TORCHVISION, "text_lstm": LSTM, "image checkpoint": image_checkpoint(folder)}
    return {
        name: hashlib.sha256(embedded(loaded(specs[name]), contents(specs[name])).tobytes()).hexdigest()
        for name in names
    }


def test_the_same_inputs_give_the_same_bytes_in_two_processes(tmp_path: Path) -> None:
    names = ["torchvision", "text_lstm", "image checkpoint"]
    code = (
        "from pathlib import Path\nfrom tests.encoders.test_truth import digests\n"
        f"print(digests({names!r}, Path({str(tmp_path)!r})))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(digests(names, tmp_path))
