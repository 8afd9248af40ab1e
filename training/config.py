"""What `embark train` is told: a TOML file, checked before anything runs.

[data]                                      # paths are relative to this file
train = "log/train.parquet"
valid = "log/valid.parquet"
test = "log/test.parquet"
images = "log/images"

[model]
image = "mobilenet_v3_small__v1"            # a registered view, "learned" or "none"
text = "learned"
item = ["publisher"]                        # categorical columns that describe the item
context = ["hour", "device"]                # and those that describe the occasion

[training]
epochs = 20
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from encoders.conv import ConvArchitecture
from encoders.spec import MAX_DIM, NAME, VERSION
from encoders.text import TextArchitecture, TextPreprocessing
from training.mixture import Noise

LEARNED, NONE = "learned", "none"
Part = Annotated[str, Field(pattern=rf"^({LEARNED}|{NONE}|{NAME.pattern}__{VERSION.pattern})\z")]
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]


class ConfigError(Exception):
    """A config is wrong; the message names the setting and what is allowed."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(_Section):
    """Where impressions lie, in the layout of `training.impressions`.

    Attributes:
        train, valid, test: files of impressions; `valid` stops training early, `test` is for `embark evaluate`.
        images: folder of image files, named as the last segment of their URLs; where an image network is learned.
        reading: which history of archived embeddings is read (decision 3 of the design).
    """

    train: Path
    valid: Path
    test: Path
    images: Path | None = None
    reading: Literal["as_logged", "as_served", "as_of_content"] = "as_served"


class Conv(_Section):
    """A learned image network: convolutions and a fully connected layer (`encoders.conv`).

    Attributes:
        size: pixels of the square that it sees.
        channels: of its convolutions, multiples of 8; each halves the sides.
        dim: of its embedding.
    """

    size: Annotated[int, Field(ge=8, le=1024)] = 64
    channels: tuple[int, ...] = (16, 32, 64)
    dim: Annotated[int, Field(ge=1, le=MAX_DIM)] = 64

    @model_validator(mode="after")
    def _is_possible(self) -> "Conv":
        ConvArchitecture(channels=self.channels)
        return self


class Lstm(_Section):
    """A learned text network: LSTM and self-attention (`encoders.text`).

    Attributes:
        buckets: how many different tokens it can tell apart.
        width: of token embeddings, and of the LSTM in each direction.
        heads: of the attention; 2 x width is a multiple of it.
        tokens: of a text that are read, at most.
        dim: of its embedding.
    """

    buckets: int = 4096
    width: int = 32
    heads: int = 2
    tokens: int = 32
    dim: Annotated[int, Field(ge=1, le=MAX_DIM)] = 64

    @model_validator(mode="after")
    def _is_possible(self) -> "Lstm":
        TextArchitecture(buckets=self.buckets, width=self.width, heads=self.heads)
        TextPreprocessing(tokens=self.tokens)
        return self


class Model(_Section):
    """The network.

    Attributes:
        image, text: name of a registered view, `learned` (trained with the rest), or `none`.
        item, context: categorical columns.
        width: of hidden layers; category embeddings have a quarter of it.
        layers: fully connected ones after item and context have met.
        components: of the mixture.
        noise: how the likelihood accounts for the noise of a measured CTR; see `training.mixture`.
        dropout: of hidden values.
        oov_dropout: share of examples whose embedding is replaced by the OOV one while training, for each of image and
            text: the OOV embedding is learned from them, and the model learns to do without.
    """

    image: Part = NONE
    text: Part = NONE
    item: tuple[str, ...] = ()
    context: tuple[str, ...] = ()
    width: Annotated[int, Field(ge=4)] = 64
    layers: Positive = 2
    components: Positive = 3
    noise: Noise = "binomial"
    dropout: Share = 0.0
    oov_dropout: Share = 0.1
    conv: Conv = Conv()
    lstm: Lstm = Lstm()

    @model_validator(mode="after")
    def _has_inputs(self) -> "Model":
        if self.image == self.text == NONE and not self.item and not self.context:
            raise ValueError("nothing to learn from: name an image, a text, item or context columns")
        twice = set(self.item) & set(self.context)
        if twice:
            raise ValueError(f"{', '.join(sorted(twice))}: a column belongs to the item or to the context, not to both")
        return self


class Training(_Section):
    """How it is trained.

    Attributes:
        epochs: at most.
        patience: epochs without a better validation loss after which training stops.
        batch_size: examples, each a cell of equal inputs with its clicks and impressions.
        aggregate: whether impressions of equal inputs become one example; without it each is one. Only examples of
            several impressions tell how wide a density is.
        seed: of initial weights, data order and dropout.
        precision: of the forward pass; weights stay float32.
        compile: whether torch compiles the network.
        checkpoint_seconds: time between two checkpoints, besides those at the end of each epoch.
    """

    epochs: Positive = 20
    patience: Positive = 3
    batch_size: Positive = 256
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    aggregate: bool = True
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 60.0


class Config(_Section):
    """The whole file."""

    data: Data
    model: Model
    training: Training = Training()

    @model_validator(mode="after")
    def _has_images(self) -> "Config":
        if self.model.image == LEARNED and self.data.images is None:
            raise ValueError("model.image is learned: data.images must name the folder of image files")
        return self

    @property
    def views(self) -> dict[str, str]:
        """The registered views that embeddings are taken from: `image` or `text` → name."""
        parts = {"image": self.model.image, "text": self.model.text}
        return {name: view for name, view in parts.items() if view not in (LEARNED, NONE)}

    @property
    def learned(self) -> tuple[str, ...]:
        """Of `image` and `text`, those that a network of the model embeds."""
        return tuple(name for name in ("image", "text") if getattr(self.model, name) == LEARNED)

    def changed(self, **model: object) -> "Config":
        """This config with other settings of the model.

        Raises:
            ConfigError: a value that is not allowed.
        """
        values = self.model_dump()
        return parse({**values, "model": values["model"] | model})


def load_config(path: Path) -> Config:
    """The config in a TOML file; its paths are taken from the file's folder.

    Raises:
        ConfigError: no such file, no TOML, an unknown setting, or a value that is not allowed.
    """
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is no TOML: {error}") from None
    try:
        config = parse(values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    paths = {name: path.parent.resolve() / value for name, value in config.data if isinstance(value, Path)}
    return config.model_copy(update={"data": config.data.model_copy(update=paths)})


def parse(values: Mapping[str, Any]) -> Config:
    """A config of plain values.

    Raises:
        ConfigError: an unknown setting, or a value that is not allowed.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(_described(problem) for problem in error.errors())) from None


def _described(problem: Any) -> str:
    """A line for one mistake."""
    where = ".".join(map(str, problem["loc"])) or "config"
    if problem["type"] == "string_pattern_mismatch":
        return f"{where}={problem['input']!r}: '{LEARNED}', '{NONE}' or the name of a view, as inception_v3__v1"
    if problem["type"] == "extra_forbidden":
        sections: dict[str, type[BaseModel]] = {"data": Data, "model": Model, "training": Training}
        sections |= {"conv": Conv, "lstm": Lstm}
        known = sections.get(str(problem["loc"][-2]) if len(problem["loc"]) > 1 else "", Config).model_fields
        return f"{where}: no such setting; there are {', '.join(known)}"
    return f"{where}: {problem['msg'].removeprefix('Value error, ')}"
