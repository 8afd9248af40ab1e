"""A trained model on disk: its config, its vocabularies and its weights, in one file of plain values and tensors.

RUN/model.pt         the best model by validation: what evaluation, export and ranking load
RUN/checkpoint.pt    where training stands: what a run that was stopped goes on from
RUN/tensorboard/     the learning curves
"""

import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training.config import Config, ConfigError, parse
from training.model import CtrModel
from training.networks import learned_network
from training.vocabulary import Vocabulary

FORMAT = 1
MODEL, CHECKPOINT, TENSORBOARD = "model.pt", "checkpoint.pt", "tensorboard"
SIDES = ("item", "context")
# What torch raises for bytes that it did not save; it has no error class of its own
UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError)

Vocabularies = Mapping[str, Mapping[str, Vocabulary]]  # item or context → column → its values


class ModelError(Exception):
    """A file is no trained model, or one that cannot be used as asked; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """A model with all that is needed to use it.

    Attributes:
        config: it was trained by.
        vocabularies: of its categorical columns.
        dims: of the embedding of each part.
        model: with its parameters set.
    """

    config: Config
    vocabularies: Vocabularies
    dims: Mapping[str, int]
    model: CtrModel


def new_model(config: Config, vocabularies: Vocabularies, dims: Mapping[str, int], base_ctr: float = 0.5) -> Trained:
    """A model with initial weights, drawn from torch's random numbers."""
    networks = {name: learned_network(name, config.model) for name in config.learned}
    sizes = {side: tuple(map(len, vocabularies[side].values())) for side in SIDES}
    model = CtrModel(config.model, sizes, dims, networks, base_ctr)
    return Trained(config=config, vocabularies=vocabularies, dims=dims, model=model)


def save_model(path: Path, trained: Trained) -> None:
    """Writes a model; the file is there whole or not at all."""
    content = {
        "format": FORMAT,
        "config": trained.config.model_dump(mode="json"),
        "vocabularies": {
            side: {column: list(known.values) for column, known in columns.items()}
            for side, columns in trained.vocabularies.items()
        },
        "dims": dict(trained.dims),
        "state": trained.model.state_dict(),
    }
    write_whole(path, content)


def load_model(path: Path) -> Trained:
    """Reads a model, or that of a run's folder, onto the CPU and in evaluation mode.

    Raises:
        ModelError: no such file, or it is no trained model.
    """
    path = path / MODEL if path.is_dir() else path
    content = read_whole(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT or "vocabularies" not in content:
        raise ModelError(f"{path} is no model of `embark train`, or of another release")
    try:
        config = parse(content["config"])
    except ConfigError as error:
        raise ModelError(f"{path}: {error}") from error
    vocabularies = {
        side: {column: Vocabulary(tuple(values)) for column, values in columns.items()}
        for side, columns in content["vocabularies"].items()
    }
    with torch.random.fork_rng(devices=[]):  # initialisers draw numbers: not those of the caller
        trained = new_model(config, vocabularies, content["dims"])
    trained.model.load_state_dict(content["state"])
    trained.model.eval()
    return trained


def write_whole(path: Path, content: Mapping[str, Any]) -> None:
    """Saves plain values and tensors; after a crash the old file or the new one is there."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_whole(path: Path) -> Any:
    """What `write_whole` wrote.

    Raises:
        ModelError: no such file, or it was not written so.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}: `embark train` writes it") from None
    except UNREADABLE as error:
        raise ModelError(f"{path} is no model of `embark train`: {error}") from error
