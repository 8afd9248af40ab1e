"""Mistakes in a config are named before anything runs."""

from pathlib import Path

import pytest

from tests.training.logs import CONFIG
from training.config import Config, ConfigError, load_config


def load(folder: Path, text: str) -> Config:
    (folder / "ctr.toml").write_text(text)
    return load_config(folder / "ctr.toml")


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (
            'image = "learned"',
            'image = "inception"',
            "model.image='inception': 'learned', 'none' or the name of a view",
        ),
        ("width = 16", "wdith = 16", "model.wdith: no such setting; there are image, text"),
        ("[training]", "[trainig]", "trainig: no such setting; there are data, model, training"),
        ("epochs = 3", "epochs = 0", "training.epochs: Input should be greater than or equal to 1"),
        ("heads = 2", "heads = 3", r"model.lstm: heads=3 is not allowed: 2 x width = 8"),
        ("channels = [8]", "channels = [9]", "model.conv: channels=\\(9,\\) is not allowed"),
        ('images = "images"', "", "model.image is learned: data.images must name the folder"),
        ('context = ["hour"]', 'context = ["publisher"]', "publisher: a column belongs to the item or to the context"),
        ('valid = "valid.parquet"', "", "data.valid: Field required"),
        ("[data]", "[data", "is no TOML"),
    ],
)
def test_a_mistake_is_named_with_what_is_allowed(tmp_path: Path, before: str, after: str, said: str) -> None:
    assert before in CONFIG
    with pytest.raises(ConfigError, match=said):
        load(tmp_path, CONFIG.replace(before, after))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: No such file"):
        load_config(tmp_path / "nowhere.toml")


def test_paths_are_relative_to_the_file_and_defaults_are_filled_in(tmp_path: Path) -> None:
    config = load(tmp_path, CONFIG)
    assert config.data.train == tmp_path.resolve() / "train.parquet"
    assert config.data.images == tmp_path.resolve() / "images"
    assert (config.model.noise, config.model.oov_dropout, config.training.patience) == ("binomial", 0.1, 3)
    assert config.learned == ("image", "text")


def test_one_word_takes_the_image_from_a_view_and_nothing_else_changes(tmp_path: Path) -> None:
    config = load(tmp_path, CONFIG.replace('image = "learned"', 'image = "inception_v3__v1"'))
    assert config.views == {"image": "inception_v3__v1"}
    assert config.learned == ("text",)
