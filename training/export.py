"""A trained component becomes an encoder: its file, its declaration, and the model that runs on what is looked up.

The encoder holds the very network and preprocessing that were trained; the model keeps all the rest, the learned OOV
embedding included. Together they compute what the whole did.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from encoders.checkpoint import save_checkpoint
from encoders.conv import ConvNetwork
from encoders.spec import NAME, VERSION
from encoders.text import TextNetwork
from training.networks import preprocessing
from training.saved import MODEL, ModelError, Trained, new_model, save_model


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What an export wrote.

    Attributes:
        view: the feature view that `feast apply` will make of it.
        encoder: file of the network, for Retina.
        model: folder of the model that looks the view up.
        declaration: the encoder, as `catalog.py` declares it.
    """

    view: str
    encoder: Path
    model: Path
    declaration: str


def export(trained: Trained, component: str, name: str, version: str, folder: Path) -> Exported:
    """Takes a component out of a model.

    Args:
        trained: a model that learned the component.
        component: `image` or `text`.
        name, version: of the encoder.
        folder: where `<name>__<version>.pt` and `on_<name>__<version>/model.pt` are written.

    Raises:
        ModelError: the component was not learned, the name or version is none, or this version is exported already.
    """
    if component not in trained.config.learned:
        has = getattr(trained.config.model, component)
        raise ModelError(
            f"--component {component}: this model's {component} is {has!r}, not learned; "
            f"learned are: {', '.join(trained.config.learned) or 'none'}"
        )
    if NAME.fullmatch(name) is None:
        raise ModelError(f"--name {name!r} is not allowed: lower-case words joined by single underscores")
    if VERSION.fullmatch(version) is None:
        raise ModelError(f"--version {version!r} is not allowed: v1, v2, …")
    view = f"{name}__{version}"
    encoder, model = folder.resolve() / f"{view}.pt", folder.resolve() / f"on_{view}"
    if encoder.exists():
        raise ModelError(f"{encoder} exists, and a version never changes: export as v{int(version[1:]) + 1}")
    model.mkdir(parents=True, exist_ok=True)
    composed = without_network(trained, component, view)
    save_model(model / MODEL, composed)
    network = trained.model.part(component).network
    assert isinstance(network, ConvNetwork | TextNetwork)  # noqa: S101 - as `training.networks` makes them
    save_checkpoint(encoder, network, preprocessing(component, trained.config.model))
    return Exported(
        view=view,
        encoder=encoder,
        model=model,
        declaration=declaration(name, version, component, trained.dims[component], encoder),
    )


def without_network(trained: Trained, component: str, view: str) -> Trained:
    """The model with a component's embeddings looked up in `view`; all other parameters are the same."""
    config = trained.config.changed(**{component: view})
    composed = new_model(config, trained.vocabularies, trained.dims)
    composed.model.load_state_dict(_kept(trained.model.state_dict(), f"parts.{component}.network."))
    composed.model.eval()
    return composed


def _kept(state: Mapping[str, Tensor], left_out: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.startswith(left_out)}


def declaration(name: str, version: str, modality: str, dim: int, encoder: Path) -> str:
    """An encoder of a file, in the words of `feature_repo/catalog.py`."""
    return "\n".join(
        [
            "EncoderSpec(",
            f'    name="{name}",',
            f'    version="{version}",',
            f'    modality="{modality}",',
            f"    dim={dim},",
            f"    network={json.dumps(f'checkpoint:{encoder}')},",
            ")",
        ]
    )


def declare(catalog: Path, declared: str) -> None:
    """Adds a declaration at the end of a feature repo's `catalog.py`.

    Raises:
        ModelError: there is no such file.
    """
    if not catalog.is_file():
        raise ModelError(f"{catalog} is not there: set EMBARK_REPO, or leave --declare out and declare it by hand")
    catalog.write_text(f"{catalog.read_text().rstrip()}\n\nENCODERS.append(\n{_indented(declared)}\n)\n")


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines()) + ","
