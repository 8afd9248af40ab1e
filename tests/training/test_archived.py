"""A model whose image comes from a view is trained on what the archive's history holds."""

from pathlib import Path

import numpy as np
import pytest

from feature_repo.embeddings import OOV_KEY
from tests.training.archive import IMAGE, TEXT, Archived, Embedded
from tests.training.logs import write_log
from training.archived import HistoryArchive
from training.config import Config, ConfigError
from training.examples import OOV_ROW
from training.prepare import held_out, prepare
from training.train import train


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return write_log(tmp_path / "log", count=200).changed(image=IMAGE.view, text="none")


def test_archived_embeddings_are_trained_on_and_missing_ones_are_oov(config: Config, tmp_path: Path) -> None:
    archived = Archived.at(tmp_path)
    # embedded before any of the impressions; the last three items never were
    known = [f"https://shop.example/{i}.png" for i in range(13)]
    archived.push(IMAGE, [Embedded(key, -90_000, -89_000, i / 10) for i, key in enumerate(known)])
    # the OOV embedding changes while they are shown: all of them are OOV
    archived.push(IMAGE, [Embedded(OOV_KEY, at, at, value) for at, value in ((-80_000, 50.0), (-43_100, 60.0))])
    history = HistoryArchive.of(archived.store, config)
    material = prepare(config, history)
    assert material.dims == {"image": 3}
    outcome = train(config, material, tmp_path / "run")
    part = outcome.trained.model.part("image")
    assert part.network is None
    assert part.centre_D.mean().item() == pytest.approx(np.mean([i / 10 for i in range(13)]), abs=0.01)
    shown, held = held_out(config.data.test, outcome.trained, history)
    is_oov = held.parts["image"].row_N == OOV_ROW
    assert held.impressions_N[is_oov].sum() == sum(int(str(i)) >= 13 for i in shown.values("item_id"))
    assert 0 < is_oov.sum() < len(held)


def test_a_view_that_does_not_fit_is_named(config: Config, tmp_path: Path) -> None:
    store = Archived.at(tmp_path).store
    with pytest.raises(ConfigError, match=r"model.image: unknown view 'other__v1'; known are: text_lstm__v1, tiny__v1"):
        HistoryArchive.of(store, config.changed(image="other__v1"))
    with pytest.raises(ConfigError, match=r"model.image='text_lstm__v1' embeds the text"):
        HistoryArchive.of(store, config.changed(image=TEXT.view))
    with pytest.raises(ConfigError, match="no archive was given"):
        prepare(config)
