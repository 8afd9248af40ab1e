"""From the files of a config to examples."""

from pathlib import Path

from training.config import Config
from training.examples import Examples, examples
from training.impressions import Impressions, read_impressions
from training.inputs import Advance, Archived, inputs
from training.networks import learned_dim
from training.saved import Trained
from training.train import Material
from training.vocabulary import Vocabulary


def silent(done: int, of: int) -> None:
    """Tells nobody."""


def prepare(config: Config, archived: Archived | None = None, advance: Advance = silent) -> Material:
    """The examples to train and to validate on, and the vocabularies of the first.

    Raises:
        FileNotFoundError, ImpressionsError, ConfigError: see `read_impressions` and `inputs`.
    """
    train = read_impressions(config.data.train)
    vocabularies = {
        side: {column: Vocabulary.of(train.values(column)) for column in columns}
        for side, columns in (("item", config.model.item), ("context", config.model.context))
    }
    parts = inputs(train, config, archived, advance)
    dims = {name: learned_dim(name, config.model) for name in config.learned}
    for name in config.views:
        dims[name] = parts[name].table.take(parts[name].row_N[:1])[0].shape[1]
    valid = read_impressions(config.data.valid)
    return Material(
        train=examples(train, parts, vocabularies, aggregate=config.training.aggregate),
        valid=examples(
            valid, inputs(valid, config, archived, advance), vocabularies, aggregate=config.training.aggregate
        ),
        vocabularies=vocabularies,
        dims=dims,
    )


def held_out(
    path: Path, trained: Trained, archived: Archived | None = None, advance: Advance = silent
) -> tuple[Impressions, Examples]:
    """Impressions that a model was not trained on, and the examples of them.

    Raises:
        FileNotFoundError, ImpressionsError, ConfigError: see `read_impressions` and `inputs`.
    """
    impressions = read_impressions(path)
    parts = inputs(impressions, trained.config, archived, advance)
    return impressions, examples(impressions, parts, trained.vocabularies, aggregate=trained.config.training.aggregate)
