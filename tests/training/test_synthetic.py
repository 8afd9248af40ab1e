"""The synthetic log: what it promises of its truth, its splits and its times."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score

from training.synthetic import SPLITS, SyntheticLog, make_log
from training.titles import ADJECTIVES, draw_titles
from training.truth import Measured

IMPRESSIONS = 12_000


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> SyntheticLog:
    return make_log(
        7,
        items=120,
        impressions=IMPRESSIONS,
        folder=tmp_path_factory.mktemp("log"),
        base_url="http://h.example/i/",
        side=32,
    )


def parts(log: SyntheticLog) -> dict[str, pd.DataFrame]:
    return {split: getattr(log, split).frame for split in SPLITS}


def test_the_same_seed_gives_the_same_log_and_another_seed_another(log: SyntheticLog, tmp_path: Path) -> None:
    few = {"items": 20, "impressions": 200, "side": 16}
    logs = [make_log(seed, folder=tmp_path / str(i), **few) for i, seed in enumerate((1, 1, 2))]
    assert [logs[0].train.table.equals(each.train.table) for each in logs] == [True, True, False]
    assert [logs[0].jpeg(3) == each.jpeg(3) for each in logs] == [True, True, False]
    pd.testing.assert_frame_equal(SyntheticLog.open(log.folder).items, log.items)


def test_no_photograph_is_the_source_of_items_of_two_splits(log: SyntheticLog) -> None:
    assert (log.items.groupby("source")["split"].nunique() == 1).all()
    assert set(log.items["split"]) == set(SPLITS)
    for split, frame in parts(log).items():
        of_split = log.items.loc[log.items["split"] == split, "item_id"]
        assert set(frame["item_id"]) <= set(of_split)


def test_items_keep_arriving_and_none_is_shown_before_it_is_published_or_in_two_splits_times(log: SyntheticLog) -> None:
    published = log.items.set_index("item_id")["published_at"]
    frames = parts(log)
    for frame in frames.values():
        assert frame["event_timestamp"].is_monotonic_increasing
        assert (frame["event_timestamp"] >= frame["item_id"].map(published)).all()
        first = frame.groupby("item_id")["event_timestamp"].min()
        span = frame["event_timestamp"].iloc[-1] - frame["event_timestamp"].iloc[0]
        assert first.max() - first.min() > span / 2
    assert frames["train"]["event_timestamp"].max() < frames["valid"]["event_timestamp"].min()
    assert frames["valid"]["event_timestamp"].max() < frames["test"]["event_timestamp"].min()
    assert sum(map(len, frames.values())) == IMPRESSIONS


def test_clicks_are_drawn_from_the_kept_probability_and_no_other_scores_better(log: SyntheticLog) -> None:
    frame = pd.concat(parts(log).values())
    spread = np.sqrt((frame["true_ctr"] * (1 - frame["true_ctr"])).sum())
    assert abs(frame["clicked"].sum() - frame["true_ctr"].sum()) < 4 * spread
    best = log_loss(frame["clicked"], frame["true_ctr"])
    for other in (frame["true_ctr"] ** 1.5, np.full(len(frame), frame["clicked"].mean()), np.sqrt(frame["true_ctr"])):
        assert log_loss(frame["clicked"], other) > best


def test_pixels_words_and_context_each_tell_of_clicks(log: SyntheticLog) -> None:
    frame = pd.concat(parts(log).values()).merge(log.items[["item_id", "colourfulness", "edge_density", "brightness"]])
    pixels = frame[["colourfulness", "edge_density", "brightness"]]
    known = {
        "pixels": (pixels - pixels.mean()) / pixels.std(),
        "words": frame["text"].str.get_dummies(sep=" "),
        "context": pd.get_dummies(frame[["publisher", "user_segment", "device"]]),
    }

    def auc(names: list[str]) -> float:
        columns = np.hstack([known[name].to_numpy(dtype=float) for name in names])
        model = LogisticRegression(C=1.0, max_iter=300).fit(columns, frame["clicked"])
        return float(roc_auc_score(frame["clicked"], model.predict_proba(columns)[:, 1]))

    everything = auc(list(known))
    for name in known:
        assert auc([other for other in known if other != name]) < everything - 0.003, name
    assert everything < roc_auc_score(frame["clicked"], frame["true_ctr"]) + 0.01


def test_what_was_measured_is_in_the_picture_that_is_served(log: SyntheticLog) -> None:
    for item in log.items.head(5).itertuples():
        with Image.open(io.BytesIO(log.jpeg(item.item_id))) as picture:
            measured = Measured.of(picture)
        assert (measured.colourfulness, measured.edge_density, measured.brightness) == pytest.approx(
            (item.colourfulness, item.edge_density, item.brightness)
        )
        assert item.image_url == f"http://h.example/i/{item.item_id}.jpg"


def test_measures_are_those_of_their_names() -> None:
    grey, half = Image.new("RGB", (8, 8), (128, 128, 128)), Image.new("RGB", (8, 8), (0, 0, 0))
    half.paste((255, 0, 0), (0, 0, 4, 8))
    assert Measured.of(grey).colourfulness == pytest.approx(0)
    assert Measured.of(grey).edge_density == 0
    assert Measured.of(grey).brightness == pytest.approx(128 / 255)
    assert Measured.of(half).colourfulness > 50
    assert Measured.of(half).edge_density == pytest.approx(1 / 7)


def test_two_words_say_together_what_neither_says_alone() -> None:
    titles = draw_titles(np.random.default_rng(0), 4000)
    effects = {title.text: title.effect for title in titles}

    def mean(*words: str) -> float:
        return float(np.mean([e for text, e in effects.items() if set(words) <= set(text.replace(":", "").split())]))

    assert mean("secret", "lamp") - mean("ordinary", "lamp") > ADJECTIVES["secret"] - ADJECTIVES["ordinary"] + 0.4


def test_too_few_items_for_a_log_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs 20 items"):
        make_log(0, 5, 100, tmp_path)
