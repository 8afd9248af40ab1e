"""The file in which training hands a component to Retina: the network's sizes, its preprocessing and its parameters.

A dictionary of plain values and tensors, saved by `torch.save`, so that it loads with `weights_only=True`:

    format         1
    modality       "image" or "text"
    architecture   the fields of `ConvArchitecture` or `TextArchitecture`
    preprocessing  the fields of `PicturePreprocessing` or `TextPreprocessing`
    dim            length of the embedding
    state          the network's state dict: name → tensor

Both sides build the network from it, so a component computes in Retina what it computed in training.
"""

import os
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from encoders.conv import ConvArchitecture, ConvNetwork, PicturePreprocessing
from encoders.spec import MAX_DIM, Modality
from encoders.text import TextArchitecture, TextNetwork, TextPreprocessing

FORMAT = 1
# What torch raises for bytes that it did not save; it has no error class of its own
UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError)

Architecture = ConvArchitecture | TextArchitecture
Preprocessing = PicturePreprocessing | TextPreprocessing
PARTS: Mapping[str, tuple[type[Any], type[Any], type[Any]]] = {
    "image": (ConvNetwork, ConvArchitecture, PicturePreprocessing),
    "text": (TextNetwork, TextArchitecture, TextPreprocessing),
}


class CheckpointError(ValueError):
    """A file is no checkpoint, or does not hold together; the message says in what."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A component that was read back.

    Attributes:
        modality: what it embeds.
        network: with its parameters set, in evaluation mode.
        preprocessing: the one that it was trained with.
    """

    modality: Modality
    network: ConvNetwork | TextNetwork
    preprocessing: Preprocessing

    @property
    def dim(self) -> int:
        return self.network.dim


def save_checkpoint(path: Path, network: ConvNetwork | TextNetwork, preprocessing: Preprocessing) -> None:
    """Writes a component; the file is there whole or not at all.

    Args:
        path: replaced where it exists.
        network: its parameters are copied to the CPU as float32.
        preprocessing: of the network's modality.

    Raises:
        ValueError: the preprocessing of another modality.
    """
    modality = "image" if isinstance(network, ConvNetwork) else "text"
    if not isinstance(preprocessing, PARTS[modality][2]):
        raise ValueError(f"preprocessing={preprocessing!r} is not allowed: {PARTS[modality][2].__name__} is")
    content = {
        "format": FORMAT,
        "modality": modality,
        "architecture": asdict(network.architecture),
        "preprocessing": asdict(preprocessing),
        "dim": network.dim,
        "state": {name: t.detach().to("cpu", torch.float32).clone() for name, t in network.state_dict().items()},
    }
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load_checkpoint(source: Path | IO[bytes]) -> Checkpoint:
    """Reads a component and builds its network on the CPU.

    Args:
        source: a path, or an open binary file.

    Raises:
        OSError: the file cannot be read.
        CheckpointError: it is no checkpoint, of another format, or its parameters do not fit its sizes.
    """
    try:
        content: Any = torch.load(source, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise CheckpointError(f"no checkpoint: {error}") from error
    if not isinstance(content, dict) or "format" not in content:
        raise CheckpointError(
            "no checkpoint: it has no field 'format'; `encoders.checkpoint.save_checkpoint` writes one"
        )
    if content["format"] != FORMAT:
        raise CheckpointError(f"format={content['format']!r} is not known here: {FORMAT} is")
    missing = {"modality", "architecture", "preprocessing", "dim", "state"} - content.keys()
    if missing:
        raise CheckpointError(f"no checkpoint: it has no field {', '.join(sorted(missing))}")
    if content["modality"] not in PARTS:
        raise CheckpointError(f"modality={content['modality']!r} is not allowed: {', '.join(PARTS)}")
    if type(content["dim"]) is not int or not 1 <= content["dim"] <= MAX_DIM:
        raise CheckpointError(f"dim={content['dim']!r} is not allowed: a whole number from 1 to {MAX_DIM}")
    network_class, architecture_class, preprocessing_class = PARTS[content["modality"]]
    network = _network(network_class, content["dim"], _fields(architecture_class, content, "architecture"))
    _fill(network, content["state"])
    return Checkpoint(
        modality=content["modality"],
        network=network.eval(),
        preprocessing=_fields(preprocessing_class, content, "preprocessing"),
    )


def _fields(kind: type[Any], content: Mapping[str, Any], name: str) -> Any:
    try:
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in content[name].items()})
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{name}: {error}") from error


def _network(kind: type[Any], dim: int, architecture: Architecture) -> Any:
    with torch.random.fork_rng(devices=[]):  # initialisers draw numbers: not those of the caller
        return kind(dim, architecture)


def _fill(network: ConvNetwork | TextNetwork, state: Mapping[str, Tensor]) -> None:
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise CheckpointError(f"the parameters do not fit the sizes: {error}") from error
