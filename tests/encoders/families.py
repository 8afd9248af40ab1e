"""One small encoder of each family, with what it embeds: for tests that all families have to hold."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from encoders.checkpoint import save_checkpoint
from encoders.conv import ConvArchitecture, ConvNetwork, PicturePreprocessing
from encoders.encoder import Encoder
from encoders.loading import load_encoder
from encoders.seeded import seed_parameters
from encoders.spec import EncoderSpec
from encoders.text import TextArchitecture, TextNetwork, TextPreprocessing
from encoders.weights import pin_weights
from tests.encoders.pictures import file_of, photographs

TITLES = ["a red bicycle", "a red bicycle, as good as new", "coffee and cake", "x " * 60, "the cup", "?"]
TORCHVISION = EncoderSpec(
    name="tv", version="v1", modality="image", dim=1024, network="torchvision:shufflenet_v2_x0_5", weights="seeded:0"
)
TIMM = EncoderSpec(name="ti", version="v1", modality="image", dim=64, network="timm:test_vit", weights="seeded:0")
LSTM = EncoderSpec(name="lstm", version="v1", modality="text", dim=32, network="text_lstm", weights="seeded:0")
OWN = EncoderSpec(
    name="own", version="v1", modality="image", dim=6, network="python:team_networks:colours", weights="seeded:3"
)
OWN_SOURCE = '''
import io

import numpy as np
import torch
from PIL import Image
from torch import nn


class Colours:
    """Means of the three colours and their spread, mixed."""

    def __init__(self, dim):
        self.network = nn.Linear(6, dim)

    def prepare(self, content):
        pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(content)).convert("RGB"))).float().flatten(0, 1) / 255
        return torch.cat([pixels.mean(0), pixels.std(0)])


class Lengths:
    """An encoder without any network."""

    def prepare(self, content):
        return len(content)

    def encode(self, batch):
        return [[length, 1.0] for length in batch]


def colours(spec):
    return Colours(spec.dim)


def lengths(spec):
    return Lengths()


def nothing(spec):
    return 3


def fails(spec):
    raise RuntimeError("no such licence")
'''


@contextmanager
def own_module(folder: Path, source: str = OWN_SOURCE, name: str = "team_networks") -> Iterator[Path]:
    """A team's module where Python looks for it."""
    path = folder / f"{name}.py"
    path.write_text(source)
    sys.path.append(str(folder))
    try:
        yield path
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop(name, None)


def silent(line: str) -> None:
    """Takes what is announced."""


def pinned(spec: EncoderSpec) -> EncoderSpec:
    return pin_weights(spec, silent, allowed_modules=["team_networks"])


def loaded(spec: EncoderSpec) -> Encoder:
    return load_encoder(spec if spec.pinned else pinned(spec), "cpu", allowed_modules=["team_networks"])


def image_checkpoint(folder: Path) -> EncoderSpec:
    """A trained image component."""
    path = folder / "image.pt"
    network = ConvNetwork(16, ConvArchitecture(channels=(8, 16, 32)))
    seed_parameters(network, 1)
    save_checkpoint(path, network, PicturePreprocessing(size=64))
    return EncoderSpec(name="conv", version="v1", modality="image", dim=16, network=f"checkpoint:{path}")


def text_checkpoint(folder: Path) -> EncoderSpec:
    """A trained text component."""
    path = folder / "text.pt"
    network = TextNetwork(8, TextArchitecture(buckets=500, width=16, heads=2))
    seed_parameters(network, 1)
    save_checkpoint(path, network, TextPreprocessing(tokens=20))
    return EncoderSpec(name="words", version="v1", modality="text", dim=8, network=f"checkpoint:{path}")


def sentence_model(folder: Path) -> EncoderSpec:
    """A tiny BERT with a vocabulary of a few words, as sentence-transformers saves it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = "[PAD] [UNK] [CLS] [SEP] [MASK] a red bicycle as good new coffee and cake the cup x , ?".split()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words))
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=40,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder / "bert")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    transformer = modules.Transformer(str(folder / "bert"), max_seq_length=32)
    model = SentenceTransformer(modules=[transformer, modules.Pooling(32), modules.Normalize()], device="cpu")
    model.save(str(folder / "model"))
    return EncoderSpec(
        name="st",
        version="v1",
        modality="text",
        dim=32,
        network="sentence-transformers:tiny",
        weights=str(folder / "model"),
    )


def in_dtype(spec: EncoderSpec, dtype: str) -> EncoderSpec:
    return replace(spec, dtype=dtype)  # type: ignore[arg-type]


def contents(spec: EncoderSpec) -> list[bytes]:
    """What an encoder of this modality may be given."""
    if spec.modality == "text":
        return [title.encode() for title in TITLES]
    return [file_of(picture, "PNG") for picture in photographs().values()]
