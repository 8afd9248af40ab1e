"""What an encoder is, as declared in `feature_repo/catalog.py` and as every component reads it from the registry.

Free of torch: the look-up path imports this module.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Literal, Self

Modality = Literal["image", "text"]

NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")  # no double underscore: it separates name and version
VERSION = re.compile(r"v[0-9]+")
SEEDED = re.compile(r"seeded:[0-9]+")
URL_WEIGHTS = re.compile(r"https?://[^#\s]+#sha256=[0-9a-f]{64}")
FAMILIES: Mapping[str, tuple[tuple[Modality, ...], str]] = {  # what stands before the colon → modalities, the whole
    "torchvision": (("image",), "torchvision:<model>"),
    "timm": (("image",), "timm:<model>"),
    "sentence-transformers": (("text",), "sentence-transformers:<model>"),
    "text_lstm": (("text",), "text_lstm"),
    "checkpoint": (("image", "text"), "checkpoint:<file>"),
    "python": (("image", "text"), "python:<module>:<factory>"),
}
NETWORK = re.compile(
    r"(torchvision|timm):[A-Za-z0-9_.]+|sentence-transformers:\S+|text_lstm|checkpoint:.*[^\s]"
    r"|python:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"
)
MAX_DIM = 8192  # Cassandra's limit for a vector column
TAG_PREFIX = "embark."


def is_url(weights: str) -> bool:
    """Whether weights lie on a web server."""
    return weights.startswith(("http://", "https://"))


class SpecError(ValueError):
    """An encoder's declaration is wrong; the message names the field and what is allowed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderSpec:
    """One version of one encoder: a pure function from an image's URL or a text to `dim` float32 values.

    Attributes:
        name: lower-case words joined by single underscores, `inception_v3`.
        version: `v1`, `v2`, …; weights and preprocessing of a version never change.
        modality: `image` (the key is a URL) or `text` (the key is the text).
        dim: length of the embedding, 1 to 8192.
        network: for images `torchvision:<model>` or `timm:<model>`, for texts `text_lstm` or
            `sentence-transformers:<model>`, for both `checkpoint:<file>` (a component that training exported) or
            `python:<module>:<factory>` (a team's own network).
        weights: `DEFAULT` (those that belong to the network), the name of one of torchvision's, the path of a state
            dict, `https://…#sha256=<64 hex digits>`, or `seeded:<n>`: reproducible random weights. `docs/encoders.md`
            says which family takes which.
        fallback_weights: what `apply` pins instead, aloud, where `weights` cannot be had; empty: it fails.
        preprocessing: `default` (what the weights were trained with) or, for text, `tokens:<most>`.
        dtype: in which the network computes, `float32` or `bfloat16`; embeddings are always float32.
        drop_query_params: URL parameters that do not name the image (signatures), dropped from the key.
        pinned: what `weights` stood for when this version was first applied, with a digest of the file
            (`Inception_V3_Weights.IMAGENET1K_V1#0cc3c7bd`); empty before `apply`. Never written by hand.

    Raises:
        SpecError: a field has a value that is not allowed.
    """

    name: str
    version: str
    modality: Modality
    dim: int
    network: str
    weights: str = "DEFAULT"
    fallback_weights: str = ""
    preprocessing: str = "default"
    dtype: Literal["float32", "bfloat16"] = "float32"
    drop_query_params: tuple[str, ...] = ()
    pinned: str = ""

    def __post_init__(self) -> None:
        def require(holds: bool, field: str, allowed: str) -> None:
            if not holds:
                raise SpecError(f"encoder {self.name!r}: {field}={getattr(self, field)!r} is not allowed: {allowed}")

        require(NAME.fullmatch(self.name) is not None, "name", "lower-case words joined by single underscores")
        require(VERSION.fullmatch(self.version) is not None, "version", "v1, v2, …")
        require(self.modality in ("image", "text"), "modality", "image or text")
        require(type(self.dim) is int and 1 <= self.dim <= MAX_DIM, "dim", f"a whole number from 1 to {MAX_DIM}")
        require(
            NETWORK.fullmatch(self.network) is not None and self.modality in FAMILIES[self.family][0],
            "network",
            f"for {self.modality} {', '.join(form for of, form in FAMILIES.values() if self.modality in of)}",
        )
        require(bool(self.weights), "weights", "DEFAULT, a name, a path, a URL with its checksum, or seeded:<n>")
        require(
            not is_url(self.weights) or URL_WEIGHTS.fullmatch(self.weights) is not None,
            "weights",
            "a URL ends in #sha256= and the 64 hex digits of the file",
        )
        require(
            self.family != "checkpoint" or self.weights == "DEFAULT",
            "weights",
            "DEFAULT, since a checkpoint holds its own",
        )
        require(
            self.family != "checkpoint"
            or not is_url(self.network.partition(":")[2])
            or URL_WEIGHTS.fullmatch(self.network.partition(":")[2]) is not None,
            "network",
            "a URL ends in #sha256= and the 64 hex digits of the file",
        )
        require(
            not self.fallback_weights or SEEDED.fullmatch(self.fallback_weights) is not None,
            "fallback_weights",
            "seeded:<n>",
        )
        require(
            self.preprocessing == "default"
            or (
                self.family in ("text_lstm", "sentence-transformers")
                and re.fullmatch(r"tokens:[1-9][0-9]{0,3}", self.preprocessing) is not None
            ),
            "preprocessing",
            "default, or tokens:<most> for text_lstm and sentence-transformers",
        )
        require(self.dtype in ("float32", "bfloat16"), "dtype", "float32 or bfloat16")

    @property
    def view(self) -> str:
        """Name of the Feast feature view, `inception_v3__v1`."""
        return f"{self.name}__{self.version}"

    @property
    def family(self) -> str:
        """What stands before the network's colon: `torchvision`, `text_lstm`, `python`, …"""
        return self.network.partition(":")[0]

    @property
    def join_key(self) -> str:
        """Feast join key: the column that holds the input."""
        return "image_url" if self.modality == "image" else "text"

    @property
    def pretrained(self) -> bool:
        """Whether the pinned weights were learned; seeded ones are random and every output says so."""
        return SEEDED.match(self.pinned) is None

    @property
    def fingerprint(self) -> str:
        """16 hex digits over all that an embedding depends on: network, pinned weights, preprocessing, dim, dtype.

        Raises:
            SpecError: the weights are not pinned: the encoder has not been applied.
        """
        if not self.pinned:
            raise SpecError(f"encoder {self.view!r} has no pinned weights: run `feast apply`")
        return _fingerprint(self.network, self.pinned, self.preprocessing, self.dim, self.dtype)

    def pin(self, pinned: str) -> Self:
        """This spec with the identity of its weights written down."""
        return replace(self, pinned=pinned)

    def declares_the_same_as(self, other: "EncoderSpec") -> bool:
        """Whether the owner wrote the same: all but what `apply` resolved, and what no embedding depends on."""

        def essence(spec: EncoderSpec) -> EncoderSpec:
            return replace(spec, pinned="", fallback_weights="", drop_query_params=())

        return essence(self) == essence(other)

    def to_tags(self) -> dict[str, str]:
        """The declaration as tags of the feature view: how it travels through the registry."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            TAG_PREFIX + "encoder": json.dumps(values, sort_keys=True),
            TAG_PREFIX + "fingerprint": self.fingerprint,
        }

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> Self | None:
        """The spec in a feature view's tags; None for a view that is not an encoder's."""
        declared = tags.get(TAG_PREFIX + "encoder")
        if declared is None:
            return None
        values = json.loads(declared)
        values["drop_query_params"] = tuple(values["drop_query_params"])
        return cls(**values)


@cache  # a call of Retina asks for it six times; there are as many as encoders
def _fingerprint(network: str, pinned: str, preprocessing: str, dim: int, dtype: str) -> str:
    return hashlib.sha256("\0".join([network, pinned, preprocessing, str(dim), dtype]).encode()).hexdigest()[:16]
