"""A network's parameters: set from a seed, or from a state dict in a file that is here or elsewhere."""

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from encoders.downloads import CHECKSUM, HUB, Download, WeightsUnavailable, sha256
from encoders.seeded import seed_parameters
from encoders.spec import SEEDED, EncoderSpec, SpecError, is_url

FILE_DIGITS = 16  # of the SHA-256 of a file, in `pinned`
FILE_PREFIX = "file:"
# What torch raises for bytes that are no state dict; it has no error class of its own
UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError)

State = Mapping[str, Tensor]


def set_parameters(
    network: nn.Module,
    spec: EncoderSpec,
    weights: str,
    download: Download,
    rename: Callable[[nn.Module, State], State] = lambda network, state: state,
) -> str:
    """Sets all parameters, and says from what: `weights` with the digest of what was really read.

    Args:
        network: its parameters are arbitrary before.
        spec: for messages.
        weights: `seeded:<n>`, `file:<path>#<digest>` or a URL with its checksum.
        download: URL → local file.
        rename: a state dict's names as the network has them, without what the network leaves out.

    Raises:
        WeightsUnavailable: the file cannot be had.
        SpecError: it is no state dict, or does not fit the network.
    """
    if SEEDED.fullmatch(weights):
        seed_parameters(network, int(weights.partition(":")[2]))
        return weights
    path, identity = located(weights, download)
    state, digest = read_state(spec, path)
    load_state(network, spec, rename(network, state), path)
    return identity(digest)


def located(weights: str, download: Download) -> tuple[Path, Callable[[str], str]]:
    """Where the file of pinned weights lies, and its SHA-256 → how it is pinned."""
    if is_url(weights):
        url = weights.partition(CHECKSUM)[0]
        return download(weights), lambda digest: f"{url}{CHECKSUM}{digest}"
    if weights.startswith(HUB):
        address = weights.partition("#")[0]
        path = download(address)
        at_commit = with_commit(address, path)
        return path, lambda digest: f"{at_commit}#{digest[:FILE_DIGITS]}"
    name = weights.removeprefix(FILE_PREFIX).rpartition("#")[0]
    return Path(name), lambda digest: f"{FILE_PREFIX}{name}#{digest[:FILE_DIGITS]}"


def with_commit(address: str, path: Path) -> str:
    """An address on the hub with the commit that its cache's path tells: what is pinned is not moved by a new one."""
    owner, name, *file = address.removeprefix(HUB).split("/", 2)
    parts = path.parts
    if "@" in name or "snapshots" not in parts:
        return address
    commit = parts[parts.index("snapshots") + 1]
    return HUB + "/".join([owner, f"{name}@{commit}", *file])


def read_state(spec: EncoderSpec, path: Path) -> tuple[dict[str, Tensor], str]:
    """A state dict, and the SHA-256 of its file, 64 hex digits; no code in it is run.

    Raises:
        WeightsUnavailable: the file cannot be read.
        SpecError: it is no state dict.
    """
    try:
        with path.open("rb") as file:
            digest = sha256(file)
            file.seek(0)
            if path.suffix == ".safetensors":
                return _safetensors(spec, path, file.read()), digest
            state: Any = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsUnavailable(f"encoder {spec.view!r}: {error}") from error
    except UNREADABLE as error:
        raise SpecError(f"encoder {spec.view!r}: {path} is no state dict: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        holds = (
            f"its keys begin with {list(state)[:3]}"
            if isinstance(state, dict)
            else f"it holds a {type(state).__name__}"
        )
        raise SpecError(f"encoder {spec.view!r}: {path} is no state dict (name → tensor): {holds}")
    return state, digest


def _safetensors(spec: EncoderSpec, path: Path, content: bytes) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load
    except ImportError:
        raise SpecError(
            f"encoder {spec.view!r}: {path} needs safetensors, which is not installed: `uv sync --extra timm`"
        ) from None
    try:
        state: dict[str, Tensor] = load(content)
    except SafetensorError as error:
        raise SpecError(f"encoder {spec.view!r}: {path} is no file of safetensors: {error}") from error
    return state


def load_state(network: nn.Module, spec: EncoderSpec, state: State, path: Path) -> None:
    """Raises:
    SpecError: a parameter is missing, unknown, or of another shape.
    """
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise SpecError(f"encoder {spec.view!r}: {path} does not fit {spec.network}: {error}") from error
