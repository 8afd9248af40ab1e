"""What a model has to beat: itself without the image or the text, and logistic regression on ids."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import vstack
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import OneHotEncoder

from training.config import NONE, Config
from training.evaluate import of_clicks
from training.examples import examples
from training.impressions import Impressions
from training.inputs import Archived
from training.predict import predict
from training.prepare import held_out, prepare
from training.saved import Trained
from training.train import Watch, train

LEAST_SEEN = 5  # impressions of a value that is given a weight of its own
ID = "item_id"


def without(config: Config) -> dict[str, Config]:
    """The same config without the image, and without the text; those of them that leave something to learn from."""
    model = config.model
    found = {}
    for part, other in (("image", model.text), ("text", model.image)):
        if getattr(model, part) != NONE and (other != NONE or model.item or model.context):
            found[f"no {part}"] = config.changed(**{part: NONE})
    return found


def trained_without(
    config: Config, path: Path, folder: Path, archived: Archived | None, watch: Watch | None = None
) -> dict[str, dict[str, float | None]]:
    """Metrics of clicks in the impressions at `path`, of models that lack the image or the text.

    Args:
        config: of the whole model.
        path: impressions to evaluate on.
        folder: where their runs are kept; one that is done is not done again.
        archived: reads the views that are left.
        watch: told how they are trained.
    """
    found = {}
    for name, less in without(config).items():
        trained = train(less, prepare(less, archived), folder / name.replace(" ", "_"), watch=watch).trained
        _, held = held_out(path, trained, archived)
        found[name] = of_clicks(predict(trained.model, held).moments()[0].numpy(), held)
    return found


def on_ids(trained: Trained, train: Impressions, test: Impressions) -> dict[str, float | None]:
    """Metrics of clicks in `test`, of logistic regression on one-hot ids and categories learned from `train`."""
    config = trained.config.model
    names = [*([ID] if ID in train.table.column_names else []), *config.item, *config.context]
    if not names:
        ctr_M = np.full(len(test), train.clicked.mean())
    else:
        ctr_M = _regression(_columns(train, names), train.clicked, _columns(test, names))
    return of_clicks(ctr_M, examples(test, {}, trained.vocabularies, aggregate=False))


def _regression(train: pd.DataFrame, clicked: NDArray[np.int8], test: pd.DataFrame) -> NDArray[np.float64]:
    encoder = OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=LEAST_SEEN).fit(train)
    counted = train.assign(clicked=clicked).groupby(list(train.columns), sort=False)["clicked"].agg(["sum", "size"])
    known: Any = encoder.transform(counted.index.to_frame(index=False))
    weight = np.concatenate([counted["sum"], counted["size"] - counted["sum"]]).astype(np.float64)
    some = np.flatnonzero(weight)
    kind = np.repeat([1, 0], len(counted))
    model = LogisticRegression(max_iter=500).fit(vstack([known, known]).tocsr()[some], kind[some], weight[some])
    ctr_M: NDArray[np.float64] = model.predict_proba(encoder.transform(test))[:, 1]
    return ctr_M


def _columns(impressions: Impressions, names: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame({name: pd.Series(impressions.values(name)).astype(str) for name in names})
