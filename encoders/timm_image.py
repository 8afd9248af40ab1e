"""Image encoders from timm, the library of image networks: the optional extra `timm`."""

import math
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from encoders.downloads import HUB, Download
from encoders.image import Preprocessing, within_aspect
from encoders.parameters import State, located, read_state, set_parameters
from encoders.spec import EncoderSpec, SpecError

PREFIX = "timm:"
DEFAULT_FILE = "model.safetensors"


def require_timm(spec: EncoderSpec) -> None:
    """Raises:
    SpecError: timm is not installed here.
    """
    if find_spec("timm") is None:
        raise SpecError(
            f"encoder {spec.view!r}: {spec.network} needs timm, which is not installed: `uv sync --extra timm`"
        )


def hub_address(spec: EncoderSpec) -> str:
    """Where the network's own weights lie, `hf://timm/resnet18.a1_in1k/model.safetensors`.

    Raises:
        SpecError: no such network, or none with weights.
    """
    config = _config(spec)
    if not config.hf_hub_id:
        raise SpecError(f"encoder {spec.view!r}: timm has no weights for {spec.network}: declare a path, or seeded:<n>")
    hub_id, _, commit = config.hf_hub_id.partition("@")
    return f"{HUB}{hub_id}{f'@{commit}' if commit else ''}/{config.hf_hub_filename or DEFAULT_FILE}"


def timm_network(spec: EncoderSpec, weights: str, download: Download) -> tuple[nn.Module, str]:
    """The network without its classifier, pictures (B, 3, H, W) → (B, dim), and what its parameters really are.

    What is left is what timm gives with `num_classes=0`: the features that the classifier would have been given.
    Weights of the hub go through timm's own filter, which brings older files to the names of now; with the classifier
    still in its place, so that a parameter that is missing is an error and not silently random.

    Args:
        spec: what it is.
        weights: pinned, of the hub or as `set_parameters` takes them.
        download: address → local file.

    Raises:
        WeightsUnavailable, SpecError: as of `set_parameters`; or another `dim` than declared.
    """
    if weights.startswith(HUB):
        path, identity = located(weights, download)
        state, digest = read_state(spec, path)
        try:
            network = _built(spec, state)
        except (RuntimeError, KeyError) as error:
            raise SpecError(f"encoder {spec.view!r}: {path} does not fit {spec.network}: {error}") from error
        pinned = identity(digest)
    else:
        network = _built(spec)
        pinned = set_parameters(network, spec, weights, download, _without_classifier)
    check_dim(spec)
    return network, pinned


def check_dim(spec: EncoderSpec) -> None:
    """Raises:
    SpecError: no such network, or it has another `dim`: seen by running it without data, on torch's `meta` device.
    """
    try:
        with torch.device("meta"):
            network = _built(spec)
    except (NotImplementedError, RuntimeError):  # some compute their sizes with tensors, which have no values there
        network = _built(spec).to("meta")
    with torch.inference_mode():
        features: Tensor = network.eval()(torch.empty(1, *_data_config(network)["input_size"], device="meta"))
    if features.shape != (1, spec.dim):
        shape = " x ".join(map(str, features.shape[1:]))
        raise SpecError(f"encoder {spec.view!r}: dim={spec.dim} is not allowed: {spec.network} has {shape} features")


def timm_preprocessing(network: nn.Module) -> Preprocessing:
    """What the network's weights were evaluated with, as timm's own transforms, for pictures of any aspect."""
    from timm.data.transforms_factory import create_transform

    config = _data_config(network)
    transform = create_transform(**config, is_training=False)

    def apply(picture: Image.Image) -> Tensor:
        # the other modes keep the whole picture, whatever its aspect
        picture_3HW: Tensor = transform(within_aspect(picture) if config["crop_mode"] == "center" else picture)
        return picture_3HW

    return Preprocessing(side=math.ceil(min(config["input_size"][1:]) / config["crop_pct"]), apply=apply)


def _data_config(network: nn.Module) -> dict[str, Any]:
    from timm.data.config import resolve_model_data_config

    config: dict[str, Any] = resolve_model_data_config(network)
    return config


def _config(spec: EncoderSpec) -> Any:
    from timm.models import get_pretrained_cfg, is_model, list_models

    name = spec.network.removeprefix(PREFIX)
    if not is_model(name):
        like = get_close_matches(name.partition(".")[0], list_models(), n=5)
        raise SpecError(
            f"encoder {spec.view!r}: network={spec.network!r} is not allowed: timm has {len(list_models())} models, "
            + (f"like {', '.join(like)}" if like else "none like it")
        )
    try:
        return get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        raise SpecError(f"encoder {spec.view!r}: network={spec.network!r} is not allowed: {error}") from None


def _built(spec: EncoderSpec, state: State | None = None) -> nn.Module:
    from timm import create_model

    _config(spec)  # names what is not known
    overlay = None if state is None else {"state_dict": dict(state)}
    with torch.random.fork_rng(devices=[]):  # initialisers draw numbers: not those of the caller
        network: Any = create_model(
            spec.network.removeprefix(PREFIX), pretrained=state is not None, pretrained_cfg_overlay=overlay
        )
    network.pretrained_cfg.pop("state_dict", None)  # or the weights would be kept twice
    network.reset_classifier(0)
    made: nn.Module = network
    return made


def _without_classifier(network: Any, state: State) -> State:
    classifier = network.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{name}." for name in ([classifier] if isinstance(classifier, str) else classifier))
    own = network.state_dict().keys()
    return {name: tensor for name, tensor in state.items() if name in own or not name.startswith(heads)}
